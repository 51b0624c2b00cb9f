"""The files that benchmarks leave: written, read, and as lines of the page of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from recbole_llm.report import NOT_RUN

RESULTS = Path(__file__).resolve().parent / "results"


def write_report(file: Path, report: Mapping[str, Any]) -> None:
    """Leave what a benchmark has found as JSON."""
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def read_report(file: Path) -> dict[str, Any]:
    """What a file of a benchmark holds; nothing where it was not run."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def rendered(file: Path, lines: Callable[[dict[str, Any]], Iterator[str]]) -> Iterator[str]:
    """What a benchmark wrote, as Markdown; "not run" where there is no such file."""
    if report := read_report(file):
        yield from lines(report)
    else:
        yield f"{NOT_RUN.capitalize()}."
