"""Time and memory of a whole report, ``report.html`` and every other form, of 100,000 users, 5 models and 5 seeds.

    python -m benchmarks.scale_report [--users 100000] [--models 5] [--seeds 5]

The runs are stubs: folders as runs leave them, with random ranks, lists and histories. What is measured begins where
the last run of a command would have ended: comparing the runs from their files, writing the table in every form, its
plots and its rows, and the page.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_llm.experiment.results import table_of, write_results
from recbole_llm.experiment.run_record import Run
from recbole_llm.report import RunResult, peak_mib
from recbole_llm.settings.config import Config

N_ITEMS, WIDTH = 20_000, 20
NAMES = [f"{family}@{k}" for family in ("recall", "ndcg", "mrr", "hit") for k in (1, 5, 10, 20)]


@cache
def random_lists(n_users: int) -> dict[str, list[str]]:
    """Users, targets and best items, the same for all runs: reading them costs the same as reading different ones."""
    items = np.random.default_rng(0).integers(1, N_ITEMS, size=(n_users, WIDTH)).astype(str).tolist()
    users = [f"u{number}" for number in range(n_users)]
    return {"user_id": users, "item_id": [own[0] for own in items], "top_items": [" ".join(own) for own in items]}


def stub_run(folder: Path, config: Config, model: str, seed: int, n_users: int) -> Run:
    """A folder as a run leaves it, of random results."""
    rng = np.random.default_rng([len(model), ord(model[-1]), seed])
    folder.mkdir(parents=True)
    ranks = rng.integers(1, N_ITEMS, size=n_users)
    rows = pd.DataFrame({**random_lists(n_users), "rank": ranks})[["user_id", "item_id", "rank", "top_items"]]
    rows.to_csv(folder / "test_ranks.csv", index=False, lineterminator="\r\n")
    history = [{"epoch": epoch, "train_loss": 4 / epoch, "valid": {"ndcg@10": 0.01 * epoch}} for epoch in range(1, 101)]
    (folder / "history.json").write_text(json.dumps(history))
    (folder / "data.json").write_text(json.dumps({"lines": ["stub.inter: 2,000,000 lines, 2,000,000 read"]}))
    shown = [
        {"item_id": str(item), "title": f"Title {item}", "score": 1 / item, "is_target": False} for item in (1, 2, 3)
    ]
    examples = [
        {"user_id": f"u{row}", "item_id": "1", "history": [f"Title {item}" for item in range(10)], "target": "Title 1"}
        | {"answer": None, "outcome": f"rank {row}", "items": shown}
        for row in range(1, 11)
    ]
    (folder / "examples.json").write_text(json.dumps(examples))
    test = {name: float(rng.random() / 10) for name in NAMES}
    facts = {"train_rows": 10**6, "epochs": 100, "wall_seconds": 60.0, "n_rows": n_users, "folder": str(folder)}
    return Run(folder, config, RunResult(model, config["dataset"], seed=seed, test=test, valid=test, **facts))


def main() -> None:
    """Print seconds and MiB."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, number in (("users", 100_000), ("models", 5), ("seeds", 5)):
        parser.add_argument(f"--{name}", type=int, default=number)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        config = Config("Pop", "ml-100k", settings={"checkpoint_dir": name, "topk": [1, 5, 10, 20]})
        runs = [
            stub_run(Path(name) / f"model{model}-{seed}", config, f"Model{model}", seed, given.users)
            for seed in range(given.seeds)
            for model in range(given.models)
        ]
        before, started, spent = peak_mib(), time.perf_counter(), time.process_time()
        folder = Path(name) / "results"
        folder.mkdir()
        write_results(runs, table_of(runs, "python -m benchmarks.scale_report"), folder)
        seconds, spent = time.perf_counter() - started, time.process_time() - spent
        sizes = {file.name: file.stat().st_size // 2**10 for file in sorted(folder.iterdir())}
    print(f"{given.users:,} users, {given.models} models, {given.seeds} seeds: {seconds:.1f} s, CPU {spent:.1f} s")
    print(f"peak memory {peak_mib():,.0f} MiB, {before:,.0f} MiB before the report; KiB by file: {sizes}")


if __name__ == "__main__":
    main()
