"""The claims ledger: run what is missing, and write docs/claims.md.

    python -m benchmarks.claims                       runs the cells that have no file yet, then writes the page
    python -m benchmarks.claims --render              only writes the page; cells that were not run say so
    python -m benchmarks.claims --only=noisy- --seeds=2020,2021

A cell is an arm in the world of a seed, ``benchmarks/results/claims/<world>-<arm>-<seed>.json``; delete a file to run
its cell again. Worlds, arms and claims are declared in ``benchmarks/claims/ledger.py``.
"""

from __future__ import annotations

import argparse
import itertools

import torch

from benchmarks.claims import ledger
from benchmarks.claims.cells import missing, run_cell
from benchmarks.claims.page import write_page
from recbole_llm.report import versions


def main() -> None:
    """Run the cells that are missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", action="store_true", help="run nothing")
    parser.add_argument("--only", default="", help="run only cells whose name, <world>-<arm>, starts with this")
    parser.add_argument("--seeds", default="", help="run only these, comma-separated")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",") if seed] or list(ledger.SEEDS)
    wanted = [(world, arm) for world, arm in ledger.cells() if f"{world.name}-{arm}".startswith(options.only)]
    cells = [(world, arm, seed) for seed, (world, arm) in itertools.product(seeds, wanted)]
    environment = versions()
    for world, arm, seed in [] if options.render else missing(cells):
        print(f"--- {world.name}-{arm}, seed {seed}", flush=True)
        run_cell(world, arm, ledger.ARMS[arm], seed, environment)
    write_page()


if __name__ == "__main__":
    main()
