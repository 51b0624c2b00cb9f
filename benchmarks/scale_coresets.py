"""Time and memory of every selector when it chooses 1,024 of 100,000 rows.

    python -m benchmarks.scale_coresets [--only dealrec,k_center] [--threads 1]

Scores, vectors and texts are random and given; what it takes to compute them is no part of this. Each selector runs in
a process of its own, whose peak memory counts as a whole: libraries, inputs and selection.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reports import RESULTS, read_report, rendered, write_report
from recbole_llm.registry import CORESETS, find_choice
from recbole_llm.report import peak_mib, versions

ROWS, BUDGET, WIDTH, VALID_ROWS = 100_000, 1_024, 64, 5_000
GOAL_MIB = 2_000
FILE = RESULTS / "scale_coresets.json"


def inputs_of(names: list[str]) -> dict[str, Any]:
    """Random values for the inputs of these names."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(5_000)])

    def scores(rows: int = ROWS) -> np.ndarray:
        return rng.gamma(2.0, size=rows)

    def vectors(rows: int = ROWS) -> np.ndarray:
        return rng.normal(size=(rows, WIDTH)).astype(np.float32)

    def labels(rows: int = ROWS) -> np.ndarray:
        return rng.integers(2, size=rows)

    def texts(rows: int = ROWS) -> list[str]:
        return [" ".join(words[row]) for row in rng.integers(len(words), size=(rows, 40))]

    makers: dict[str, Callable[..., Any]] = {
        "vectors": vectors,
        "recommender_vectors": vectors,
        "llm_vectors": vectors,
        "embeddings": vectors,
        "valid_embeddings": lambda: vectors(VALID_ROWS),
        "labels": labels,
        "valid_labels": lambda: labels(VALID_ROWS),
        "texts": texts,
        "target_texts": lambda: texts(VALID_ROWS),
        "history_lengths": lambda: rng.integers(2, 50, size=ROWS),
    }
    return {name: makers.get(name, scores)() for name in names}


def measured(name: str) -> dict[str, float]:
    """One selection in this process."""
    selector = find_choice("coreset", name).from_settings({})
    inputs = inputs_of([need.name for need in selector.needs])
    before, started = peak_mib(), time.perf_counter()
    selection = selector.select(np.arange(ROWS), BUDGET, seed=0, **inputs)
    seconds = time.perf_counter() - started
    if len(selection.ids) != BUDGET:
        raise RuntimeError(f"{name} selected {len(selection.ids)} rows")
    return {"seconds": seconds, "peak_mib": peak_mib(), "peak_mib_before": before}


def measured_alone(name: str, threads: int) -> dict[str, float]:
    """The same in a new process."""
    command = [sys.executable, "-m", "benchmarks.scale_coresets", f"--threads={threads}", "--one", name]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def render(file: Path = FILE) -> Iterator[str]:
    """The lines of the page's Markdown."""
    return rendered(file, _lines)


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{report['budget']:,} of {report['rows']:,} rows, vectors of {report['width']} numbers, threads: "
        f"{report['threads']}; load of the machine before: {report['load average before']:.1f}. Goal: at most "
        f"{report['goal_mib']:,} MiB."
    )
    yield ""
    yield "| selector | seconds | peak MiB of the process | of these before it began |"
    yield "|---|---:|---:|---:|"
    for name, found in report["selectors"].items():
        yield f"| `{name}` | {found['seconds']:.2f} | {found['peak_mib']:.0f} | {found['peak_mib_before']:.0f} |"


def main() -> None:
    """Measure all selectors, or those named, and write what was found beside what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="of torch and the linear algebra (default %(default)s)")
    parser.add_argument("--json", type=Path, default=FILE, help="file to write to (default: %(default)s)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(measured(arguments.one)))
        return
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # of the processes to come
    known = read_report(arguments.json).get("selectors", {})
    setting = {"rows": ROWS, "budget": BUDGET, "width": WIDTH, "goal_mib": GOAL_MIB, "threads": arguments.threads}
    setting["load average before"] = os.getloadavg()[0]
    for name in arguments.only.split(",") if arguments.only else [name for name, value in CORESETS.items() if value]:
        known[name] = measured_alone(name, arguments.threads)
        print(name, ", ".join(f"{key} {value:.1f}" for key, value in known[name].items()), flush=True)
        known[name]["environment"] = versions()
        write_report(arguments.json, {**setting, "selectors": known})
    print("\n".join(render(arguments.json)))


if __name__ == "__main__":
    main()
