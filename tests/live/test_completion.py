"""Shell completion: the files for it, and the words that they offer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Forkd
from tests.server import LIMIT, ROOT, program

FILES = {"bash": "forkd", "zsh": "_forkd", "fish": "forkd.fish"}

# A shell runs its own completion on a terminal only, so these functions replace it.
ZSH = """
compdef() {}
_describe() { print -l -- ${completions_with_descriptions%%:*} }
compadd() { print -l -- $completions }
source "$1"; shift
words=("$@"); CURRENT=$#
_forkd_completion
"""
BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_forkd_completion forkd
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = 'source $argv[1]; complete -C "$argv[2..]"'

COMMANDS = {
    "bash": ["bash", "--norc", "-c", BASH, "bash"],
    "zsh": ["zsh", "-f", "-c", ZSH, "zsh"],
    "fish": ["fish", "--no-config", "-c", FISH],
}

pytestmark = pytest.mark.slow


def offered(words: str, cwd: Path) -> list[str]:
    """Returns what a shell is offered at the end of these words. A trailing blank begins another word."""
    place = str(len(words.split(" ")) - 1)
    result = program(cwd=cwd, _FORKD_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=place)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.split()


@pytest.mark.parametrize("shell", FILES)
def test_the_file_speaks_as_the_program_does(shell: str) -> None:
    # Everything else differs slightly between versions of click.
    def told(text: str) -> list[str]:
        return re.findall(r"\b(?:COMP_\w+|_FORKD_COMPLETE)=\S+|\bforkd\b|_forkd_\w+|\b(?:plain|dir|file)\b", text)

    made = program(cwd=ROOT, _FORKD_COMPLETE=f"{shell}_source")
    file = (ROOT / "completion" / FILES[shell]).read_text()
    assert made.returncode == 0
    assert set(told(file)) == set(told(made.stdout)), "out of date; run: make reference"
    assert f"_FORKD_COMPLETE={shell}_complete" in told(file)


@pytest.mark.parametrize("shell", FILES)
def test_the_shell_completes_with_the_file(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"needs the program {shell}")
    (tmp_path / "forkd").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m forkd "$@"\n')
    (tmp_path / "forkd").chmod(0o755)
    result = subprocess.run(
        [*COMMANDS[shell], str(ROOT / "completion" / FILES[shell]), "forkd", "sta"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    words = [line.partition("\t")[0] for line in result.stdout.splitlines()]  # fish also shows what each command does
    assert (words, result.stderr) == (["stacks", "start", "status"], "")


def test_services_of_the_running_forkd_are_offered(forkd: Forkd, tmp_path: Path) -> None:
    service = 'app = "forkd.services:echo"\nlisten = "127.0.0.1:0"\nworkers = 1\n'
    server = forkd(file=f"[service.echo]\n{service}[service.other]\n{service}")
    server.serving(2)
    for command in "stacks", "scale":
        assert offered(f"forkd {command} -c forkd.toml ", tmp_path) == ["plain,echo", "plain,other"]
    (tmp_path / "forkd.toml").write_text(f'[master]\ncontrol = "control.sock"\n[service.later]\n{service}')
    assert offered("forkd stacks -c forkd.toml ", tmp_path) == ["plain,echo", "plain,other"]
    assert offered("forkd scale --control control.sock o", tmp_path) == ["plain,other"]
    assert server.stop() == 0
    assert offered("forkd stacks -c forkd.toml ", tmp_path) == ["plain,later"]


def test_where_nothing_is_known_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text("[service.x]\nlisten = 3\n")
    for where in "-c wrong.toml", "-c none.toml", "--control none.sock", "--control .", f"-c {tmp_path}":
        assert offered(f"forkd stacks {where} ", tmp_path) == []


def test_files_and_kinds_of_worker_are_offered(tmp_path: Path) -> None:
    for words in "forkd run ", "forkd check ", "forkd status -c ", "forkd status --control ", "forkd load --json ":
        assert offered(words, tmp_path) == ["file,"]
    assert offered("forkd run a:b --worker ", tmp_path) == ["plain,sync", "plain,event"]
    assert offered("forkd run a:b --worker e", tmp_path) == ["plain,event"]
