"""The lines of TOML keys, checked with examples and with generated documents whose key lines are known."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkd.settings.toml_lines import DEPTH, dotted, line_of, places, printable

Path = tuple[str | int, ...]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", {}, id="empty"),
        pytest.param("# a = 1\n\na = 1 # b = 2\n", {"a": 3}, id="comments"),
        pytest.param("a = 1\r\n\r\nb = 2\r\n", {"a": 1, "b": 3}, id="lines end in CR LF"),
        pytest.param("[a]\nb = 1\n[a.c]\nd = 2", {"a": 1, "a.b": 2, "a.c": 3, "a.c.d": 4}, id="tables"),
        pytest.param("[a.b]\n[a]\nc = 1\n", {"a": 1, "a.b": 1, "a.c": 3}, id="a table after its inner one"),
        pytest.param(" [ a . 'b' ]\nc.d = 1\n", {"a": 1, "a.b": 1, "a.b.c": 2, "a.b.c.d": 2}, id="dotted"),
        pytest.param('"x y" = 1\n"\\u0061" = 2\n\'\\u\' = 3\n"" = 4', {"x y": 1, "a": 2, "\\u": 3, "": 4}, id="quoted"),
        pytest.param('"a.b" = 1\n', {"a.b": 1}, id="a dot in quotes"),
        pytest.param("a = { b = 1, c = { d = 2 } }", {"a": 1, "a.b": 1, "a.c": 1, "a.c.d": 1}, id="inline tables"),
        pytest.param(
            "a = [\n 1, # one\n 2.5,\n\n 1979-05-27 07:32:00,\n]\nb = 1",
            {"a": 1, "a[0]": 2, "a[1]": 3, "a[2]": 5, "b": 7},
            id="an array over several lines",
        ),
        pytest.param(
            "a = []\nb = [[], [1]]", {"a": 1, "b": 2, "b[0]": 2, "b[1]": 2, "b[1][0]": 2}, id="arrays in arrays"
        ),
        pytest.param(
            "a = [\n {b = 1},\n {b = [\n2]}]", {"a": 1, "a[0]": 2, "a[0].b": 2, "a[1]": 3, "a[1].b": 3, "a[1].b[0]": 4}
        ),
        pytest.param(
            "[[a]]\nb = 1\n[a.c]\nd = 2\n[[a]]\n[[a.e]]\n[[a.e]]\nf = 3",
            {"a": 1, "a[0]": 1, "a[0].b": 2, "a[0].c": 3, "a[0].c.d": 4, "a[1]": 5}
            | {"a[1].e": 6, "a[1].e[0]": 6, "a[1].e[1]": 7, "a[1].e[1].f": 8},
            id="arrays of tables",
        ),
        pytest.param('a = """\nb = 1\n\\""" ["""""\nc = 1', {"a": 1, "c": 4}, id="a text of several lines"),
        pytest.param("a = '''\n'b' = [''''\nc = ''\nd = \"\"", {"a": 1, "c": 3, "d": 4}, id="a literal text"),
        pytest.param('a = """"""\nb = """a"\\\n"""\nc = "\\"#"', {"a": 1, "b": 2, "c": 4}, id="quotes at the edges"),
    ],
)
def test_each_key_has_its_line(text: str, expected: dict[str, int]) -> None:
    assert set(flat(tomllib.loads(text))) == set(expected)  # check the example itself
    assert places(text) == expected


def test_keys_nested_deeper_than_any_setting_are_left_out() -> None:
    text = f"{'a.' * 500}a = 1\n[{'b.' * 500}b]\nc = 1\nd = {'[' * 200}{']' * 200}\n"
    found = places(text)
    assert max(key.count(".") + key.count("[") for key in found) < DEPTH
    assert found["a.a"] == 1
    assert found["b.b"] == 2


def test_a_key_without_a_line_takes_that_of_the_table_around_it() -> None:
    found = {"a": 1, "a.b[1]": 5}
    assert line_of(found, "a.b[1].c.d") == 5
    assert line_of(found, "a.b[0]") == 1
    assert line_of(found, "x.y") == 0
    assert line_of(found | {"": 1}, "x.y") == 1


def test_a_path_is_written_on_one_line() -> None:
    assert dotted(("service", "a\nb", "listen", 1, 0, "ü")) == "service.a\\nb.listen[1][0].ü"
    assert printable("\udcff\x1b[31m") == "\\udcff\\x1b[31m"


def flat(value: Any, path: Path = ()) -> list[str]:
    """Returns every key, table and element that tomllib found."""
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    here = [dotted(path)] if path else []
    return here + [name for key, item in inner for name in flat(item, (*path, key))]


class Document:
    """Writes TOML and records the line of each key it writes."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[str, int] = {}

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def note(self, path: Path) -> None:
        self.lines.setdefault(dotted(path), self.text.count("\n") + 1)

    def names(self, count: int) -> list[str]:
        return self.draw(st.lists(NAMES, unique=True, max_size=count))

    def key(self, base: Path, parts: list[str]) -> Path:
        for number, part in enumerate(parts):
            self.text += self.pick(".", " . ", "\t.") if number else ""
            base = (*base, part)
            self.note(base)
            self.text += self.pick(*SPELLINGS[part])
        return base

    def pairs(self, base: Path, names: list[str], depth: int) -> None:
        for name in names:
            self.text += self.pick("", "\n", "  ", "# x = 1 [y]\n")
            path = self.key(base, [name, *(["deep", "er"] if self.pick(False, False, True) else [])])
            self.text += self.pick(" = ", "=", "\t=  ")
            self.value(path, depth)
            self.text += self.pick("\n", " # = '\n", "\r\n")

    def value(self, path: Path, depth: int) -> None:
        kind = self.pick("scalar", "scalar", "array", "inline") if depth else "scalar"
        if kind == "scalar":
            self.text += self.pick(*SCALARS)
        elif kind == "array":
            self.array(path, depth)
        else:
            self.text += "{ "
            for number, name in enumerate(self.names(3)):
                self.text += ", " if number else ""
                inner = self.key(path, [name])
                self.text += " = "
                self.value(inner, depth - 1)
            self.text += "}"

    def array(self, path: Path, depth: int) -> None:
        size = self.pick(0, 1, 3)
        self.text += "["
        for number in range(size):
            self.text += self.pick("", "\n", " # ] , [\n\n")
            self.note((*path, number))
            self.value((*path, number), depth - 1)
            self.text += self.pick("", " ", "\n") + ("," if number < size - 1 else self.pick("", ",", "\n,\n"))
        self.text += self.pick("", "\n") + "]"

    def tables(self, base: Path, header: list[str], depth: int) -> None:
        """Writes the tables inside a table, each with its header; they follow its own keys."""
        for name in self.names(2):
            parts = [name + "_", *(["mid"] if self.pick(False, True) else [])]
            array = self.pick(False, True)
            for number in range(self.pick(1, 2) if array else 1):
                self.text += "[[" if array else "["
                self.text += self.pick("", " ")
                path = self.head(header, base, parts)
                if array:
                    path = (*path, number)
                    self.note(path)
                self.text += "]]\n" if array else self.pick("]\n", " ] # [x]\n")
                self.pairs(path, self.names(2), 2)
                if depth:
                    self.tables(path, header + parts, depth - 1)

    def head(self, header: list[str], base: Path, parts: list[str]) -> Path:
        for part in header:
            self.text += self.pick(*SPELLINGS[part]) + "."
        return self.key(base, parts)


WORDS = ["a", "b-1", "42", "with space", "x.y", "#", "=[{", "q'", 'q"', "tab\t", "ü", ""]
NAMES = st.sampled_from(WORDS)
BARE = {"a", "b-1", "42", "deep", "er", "mid", "a_", "b-1_", "42_"}


def spellings(word: str) -> list[str]:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
    ways = [f'"{escaped}"', '"' + "".join(f"\\U{ord(c):08x}" for c in word) + '"']
    return ways + ([word] if word in BARE else []) + ([f"'{word}'"] if "'" not in word else [])


SPELLINGS = {word: spellings(word) for word in [*WORDS, *(w + "_" for w in WORDS), "deep", "er", "mid"]}
SCALARS = [
    *("1", "+1_000", "0xff", "1.5e-3", "nan", "-inf", "true", "1979-05-27", "1979-05-27 07:32:00.5-07:00", "07:32:00"),
    *(
        '""',
        '"a = 1 # [\\" "',
        "''",
        "'\\'",
        '"\\\\"',
        '"""a"""',
        '"""\n[x]\ny = "1"\\"""\n"""""',
        "'''\n#'\n''''",
        '""""a"""',
    ),
]


@st.composite
def documents(draw: st.DrawFn) -> Document:
    document = Document(draw)
    document.pairs((), document.names(4), 3)
    document.tables((), [], 1)
    return document


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(documents())
def test_keys_of_a_built_document_are_found_on_their_lines(document: Document) -> None:
    assert set(flat(tomllib.loads(document.text))) == set(
        document.lines
    )  # check that the document is TOML and means what was intended
    assert places(document.text) == document.lines


VALUES = ["1", "[]", "{}", "[1, [2],\n{ a = 1 }]", "{ a.b = [\n{}, 1], 'c' = {} }", '"""\n[a]\n"""', "'] }'"]
KEYS = st.lists(st.sampled_from(["a", "b", '"c"', "d", "'e.f'"]), min_size=1, max_size=3).map(".".join)
LINES = st.one_of(
    st.builds("{} = {}\n".format, KEYS, st.sampled_from(VALUES)),
    st.builds("[{}]\n".format, KEYS),
    st.builds("[[{}]] # x\n".format, KEYS),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(LINES, max_size=6).map("".join))
def test_every_text_that_tomllib_accepts_has_the_same_keys(text: str) -> None:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # about half of them have a duplicate key, or a table inside a number
        return
    assert set(places(text)) == set(flat(table))
