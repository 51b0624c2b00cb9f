"""Regret of LMDH, of LinUCB and of random lists in a simulated world of relevance and dispersion.

    python -m benchmarks.regret                        4,000 rounds, seeds 0, 1, 2
    python -m benchmarks.regret --rounds 1000

Writes ``results/regret.json`` and ``docs/images/lmdh_regret.png``. The world is that of
:class:`recbole_llm.rerank.ListWorld`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.reports import RESULTS
from recbole_llm.report import versions
from recbole_llm.rerank import simulated_regret
from recbole_llm.rerank.simulation import POLICIES

FILE = RESULTS / "regret.json"
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "lmdh_regret.png"
N_POINTS = 200  # of a curve that are kept


def measure(rounds: int, seeds: Sequence[int], exploration: float) -> dict[str, object]:
    """Mean regret over seeds of every policy, after some of the rounds."""
    kept = np.unique(np.linspace(1, rounds, min(N_POINTS, rounds)).astype(int))
    curves = {
        policy: np.mean([simulated_regret(policy, rounds, seed, exploration) for seed in seeds], axis=0)
        for policy in POLICIES
    }
    last = {
        policy: {str(n): round(float(curve[n - 1]), 3) for n in (rounds // 16, rounds // 4, rounds)}
        for policy, curve in curves.items()
    }
    points = {policy: curve[kept - 1].round(3).tolist() for policy, curve in curves.items()}
    setting = {"rounds": rounds, "seeds": list(seeds), "exploration": exploration}
    return {"setting": setting, "regret": last, "round": kept.tolist(), "curves": points, "versions": versions()}


def figure(found: Mapping[str, object]) -> Figure:
    """The curves, regret by round, both logarithmic, beside a root."""
    drawn = Figure(figsize=(6.0, 4.5), layout="constrained")
    axes = drawn.add_subplot()
    rounds, curves = np.array(found["round"]), found["curves"]
    assert isinstance(curves, dict)
    for policy, curve in curves.items():
        axes.loglog(rounds, curve, label={"lmdh": "LMDH", "linucb": "LinUCB, relevance alone"}.get(policy, policy))
    axes.loglog(rounds, curves["lmdh"][-1] * np.sqrt(rounds / rounds[-1]), "k:", label="a root")
    axes.set_xlabel("round")
    axes.set_ylabel("regret, mean over seeds")
    axes.legend()
    return drawn


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--exploration", type=float, default=0.5)
    words = parser.parse_args()
    found = measure(words.rounds, words.seeds, words.exploration)
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    figure(found).savefig(PICTURE, dpi=100)
    print(json.dumps(found["regret"], indent=1))


if __name__ == "__main__":
    main()
