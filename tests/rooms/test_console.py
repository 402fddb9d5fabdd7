"""How the commands on a page are read, and when their output counts as what the page shows."""

from __future__ import annotations

import pytest

from tests.console import MACHINE, Command, File, for_machine, shows, steps

PAGE = f"""\
Prose with `$ no command`.

```python title="one.py"
print(1)
```

```console
$ python one.py
1
$ echo a \\
    b
a b
$ true
```

```sh
$ not run
```

{MACHINE}

```console
$ systemctl status
...
```
"""


def test_a_page_is_its_files_and_its_commands_in_order() -> None:
    here, machine = for_machine(PAGE)
    assert here == [
        File("one.py", "print(1)\n", 3),
        Command("python one.py", ("1",), 8),
        Command("echo a b", ("a b",), 10),
        Command("true", (), 13),
    ]
    assert machine == [Command("systemctl status", ("...",), 23)]
    assert steps(PAGE) == here + machine


def test_a_block_that_begins_with_output_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="line 2: a console block starts with a command"):
        steps("```console\noutput\n```\n")


@pytest.mark.parametrize(
    ("shown", "seen"),
    [
        (["one", "two"], "one\ntwo\n"),
        (["one", "", "two"], "one\ntwo\n\n"),
        ([" a   b"], "a b   \n"),
        (["one", "..."], "one\n"),
        (["one", "...", "four"], "one\ntwo\nthree\nfour\n"),
        (["took ... s"], "took 1.5 s\n"),
        (["a.b"], "a.b\n"),
        (["one"], "forkd: running shout as root; set master.user\none\n"),
    ],
)
def test_output_is_what_the_page_shows(shown: list[str], seen: str) -> None:
    assert shows(shown, seen)
    assert shows(shown, f"before\n{seen}after\n", all_of_it=False)


@pytest.mark.parametrize(
    ("shown", "seen"),
    [
        (["one"], "one\ntwo\n"),
        (["one", "two"], "two\none\n"),
        (["one", "...", "four"], "one\ntwo\n"),
        (["took ... s"], "took 1.5 ms\nover\n"),
        (["a.b"], "axb\n"),
        (["one"], ""),
    ],
)
def test_other_output_is_not(shown: list[str], seen: str) -> None:
    assert not shows(shown, seen)
