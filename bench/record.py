"""Keeps the outcome of a run in a file, so that the page can be made again without measuring."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench.rounds import Outcome

_NAME: Final = "results.json"


def write(folder: Path, run: dict[str, Any], outcomes: Mapping[str, Outcome]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    document = {"run": run, "trials": {name: asdict(outcome) for name, outcome in outcomes.items()}}
    text = json.dumps(document, indent=1, default=str)
    (folder / _NAME).write_text(text + "\n")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Outcome]]:
    document = json.loads((folder / _NAME).read_text())
    return document["run"], {name: Outcome(**outcome) for name, outcome in document["trials"].items()}
