"""Checks the pages without mkdocs: the navigation lists them, links lead somewhere, and pictures match the code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from docs.tools import diagrams, picture
from tests.server import ROOT

DOCS = ROOT / "docs"
SITE = (ROOT / "mkdocs.yml").read_text()
PAGES = sorted(path for path in DOCS.rglob("*.md") if "tools" not in path.parts)
OTHERS = sorted([*ROOT.glob("*.md"), ROOT / "examples/README.md"])
WORDS = 1200


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: str) -> str:
    """Returns the page without its blocks and spans of code."""
    return re.sub(r"(`+)[^`].*?\1", "", re.sub(r"(?ms)^```.*?^```$", "", page))


def links(page: str) -> list[str]:
    """Returns the page's links and pictures, except those on other hosts."""
    found = re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", prose(page))
    return [each for each in found if not re.match(r"[a-z]+:", each)]


def anchors(page: str) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^```.*?^```$", "", page))
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def test_the_navigation_lists_every_page_once() -> None:
    listed = re.findall(r"(?m)^ +- .*: (\S+\.md)$", SITE[SITE.index("\nnav:\n") :])
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in PAGES)


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=named)
def test_its_links_lead_somewhere(path: Path) -> None:
    missing = []
    for link in links(path.read_text()):
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        # The anchors of the API's page come from docstrings.
        anchored = there.suffix == ".md" and anchor and there.name != "api.md"
        if not there.exists() or (anchored and anchor not in anchors(there.read_text())):
            missing.append(link)
    assert missing == []


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_a_page_of_the_site_needs_nothing_but_the_site(path: Path) -> None:
    page = path.read_text()
    outside = [
        each for each in links(page) if not (path.parent / each.partition("#")[0]).resolve().is_relative_to(DOCS)
    ]
    assert outside == [], "name it as `code` instead: the site does not have it"
    assert re.findall(r"!\[[^]]*\]\(https?:[^)]*\)", page) == []
    for source in re.findall(r"(?ms)^```mermaid\n(.*?)^```$", page):
        assert diagrams.fence(source).startswith('<div class="diagram"><svg ')


def test_the_site_fetches_nothing_from_other_hosts() -> None:
    assert "\n  font: false\n" in SITE
    assert not re.search(r"(url\(|@import\s)\s*[\"']?(https?:)?//", (DOCS / "assets/site.css").read_text())


def test_the_picture_of_the_wings_is_that_of_the_code() -> None:
    assert picture.FILE.read_text() == picture.current(), "it is out of date: make reference"


def test_an_arrow_that_others_imply_is_left_out() -> None:
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set[str]()}
    assert picture.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()}


def test_a_diagram_that_cannot_be_drawn_is_an_error() -> None:
    assert diagrams.moves("stateDiagram-v2\n  [*] --> one\n  one --> [*]\n") == [("(begin)", "one"), ("one", "(end)")]
    for source in ("flowchart LR\n  a --> b\n", "stateDiagram-v2\n  state one\n"):
        with pytest.raises(ValueError, match="the site"):
            diagrams.moves(source)


def test_make_run_serves_the_sample() -> None:
    if not shutil.which("make"):
        pytest.skip("needs the program make")
    command = ["make", "--dry-run", "--no-print-directory", "run"]  # the tests themselves may run under make
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1].endswith("/bin/forkd run etc/forkd.toml")


def test_the_readme_is_short_and_has_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.split()) <= WORDS
    assert re.search(r"(?m)^make run ", readme)
    assert re.search(r"(?m)^make test ", readme)
