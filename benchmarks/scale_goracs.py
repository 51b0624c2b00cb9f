"""GORACS on more rows than a table can hold: time, memory and objective.

    python -m benchmarks.scale_goracs --rows 1000000 --valid 10000
    python -m benchmarks.scale_goracs --rows 20000 --valid 5000 --pool 8192 --compare

With ``--compare`` the exact way runs as well. Peak memory is that of the whole process, data included. What was
measured is written beside what is there, by rows.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.plain_goracs import World, mixture
from benchmarks.reports import RESULTS, read_report, rendered, write_report
from recbole_llm.coreset import goracs_select
from recbole_llm.report import peak_mib, versions

FILE = RESULTS / "scale_goracs.json"


def measured(world: World, method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One selection, as plain data."""
    started = time.perf_counter()
    _, info = goracs_select(
        *world,
        arguments.budget,
        arguments.weight,
        max_exchanges=arguments.exchanges,
        method=method,
        pool_size=arguments.pool,
        return_info=True,
    )
    return {
        "method": info.method,
        "seconds": time.perf_counter() - started,
        **{f"seconds, {name}": seconds for name, seconds in info.seconds.items()},
        "objective at the start": info.trace[0],
        "objective": info.objective,
        "starts": {name: [trace[0], trace[-1], len(trace) - 1] for name, trace in info.starts[0].items()},
        "exchanges": len(info.trace) - 1,
        "transports solved": info.n_solves,
        "rows considered": info.n_considered,
        "missed gain": info.missed_gain,
        "peak MiB of the process": peak_mib(),
    }


def render(file: Path = FILE) -> Iterator[str]:
    """The lines of the page's Markdown."""
    return rendered(file, _lines)


def _lines(reports: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| training x validation rows | way | pool | threads | load before | minutes | exchanges "
        "| objective at the start | at the end | / exact | peak MiB |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for report in reports.values():
        setting, ways = report["setting"], report["ways"]
        exact = ways.get("exact", {}).get("objective")
        for name, found in ways.items():
            cells = [
                f"{setting['rows']:,} x {setting['valid']:,}",
                name,
                f"{setting['pool']:,}" if name == "approximate" else "",
                str(setting["threads"]),
                f"{report['load average before']:.1f}",
                f"{found['seconds'] / 60:.1f}",
                str(found["exchanges"]),
                f"{found['objective at the start']:.5f}",
                f"{found['objective']:.5f}",
                f"{found['objective'] / exact:.4f}" if exact else "",
                f"{found['peak MiB of the process']:,.0f}",
            ]
            yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure, and print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="training rows (default %(default)s)")
    parser.add_argument("--valid", type=int, default=10_000, help="validation rows (default %(default)s)")
    parser.add_argument("--width", type=int, default=64, help="of the vectors (default %(default)s)")
    parser.add_argument("--budget", type=int, default=1024, help="rows to select (default %(default)s)")
    parser.add_argument("--weight", type=float, default=0.1, help="of the gradient norms (default %(default)s)")
    parser.add_argument("--exchanges", type=int, default=100, help="at most (default %(default)s)")
    parser.add_argument("--pool", type=int, default=16384, help="rows of a pool (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the data (default %(default)s)")
    parser.add_argument("--compare", action="store_true", help="run the exact way, too")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default %(default)s)")
    parser.add_argument("--json", type=Path, default=FILE, help="file to write to (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.basicConfig(level=logging.INFO)
    setting = {name: value for name, value in vars(arguments).items() if name not in ("json", "compare")}
    load = os.getloadavg()[0]
    world = mixture(arguments.rows, arguments.valid, arguments.width, arguments.seed)
    names = ["approximate", *(["exact"] if arguments.compare else [])]
    report = {
        "setting": setting,
        "load average before": load,
        "environment": versions(),
        "ways": {n: measured(world, n, arguments) for n in names},
    }
    known = read_report(arguments.json)
    known[str(arguments.rows)] = report
    write_report(arguments.json, known)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
