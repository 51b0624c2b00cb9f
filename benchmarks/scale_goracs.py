"""GORACS on more rows than a table can hold: time, memory and objective.

    python -m benchmarks.scale_goracs --rows 1000000 --valid 10000 --width 64 --budget 1024
    python -m benchmarks.scale_goracs --rows 20000 --compare --pool 8192

With ``--compare`` the exact way runs as well, and the ratio of the two objectives is printed. Peak memory is that of
the whole process, data included.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from typing import Any

import torch

from benchmarks.plain_goracs import World, mixture
from recbole_llm.coreset import goracs_select
from recbole_llm.report import peak_mib


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
        "exchanges": len(info.trace) - 1,
        "transports solved": info.n_solves,
        "rows considered": info.n_considered,
        "missed gain": info.missed_gain,
        "peak MiB of the process": peak_mib(),
    }


def main() -> None:
    """Measure and print JSON."""
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
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.basicConfig(level=logging.INFO)
    world = mixture(arguments.rows, arguments.valid, arguments.width, arguments.seed)
    results = {"setting": vars(arguments), "approximate": measured(world, "approximate", arguments)}
    if arguments.compare:
        results["exact"] = measured(world, "exact", arguments)
        results["approximate / exact"] = results["approximate"]["objective"] / results["exact"]["objective"]
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
