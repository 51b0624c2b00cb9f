"""One cell: an arm, trained in the world of a seed and measured on every test user; kept as JSON, and run once."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import recbole_llm
from benchmarks.answer_loss import answer_losses
from benchmarks.claims.declare import Arm, World
from benchmarks.coresets import marked_shares, read_choice, write_rows
from benchmarks.planted import NAME, PlantedRows, make_world, write_world
from benchmarks.planted import World as Drawn
from benchmarks.reports import RESULTS, read_report
from recbole_llm.data.rows import load_rows

ROOT = Path(__file__).resolve().parents[2]
CELLS = RESULTS / "claims"
HOME = Path("saved") / "claims"  # worlds and the LLMs that their cells share
CONFIGS = (ROOT / "properties" / "llm" / "tiny.yaml", Path(__file__).with_name("settings.yaml"))
LLM_KEYS = ("MAX_ITEM_LIST_LENGTH", "tiny_n_layers")  # what an LLM's making depends on
LLM_SEED = 2020  # of the world in which a shared LLM is made: it reads titles, not what this seed draws
DIGITS = 6  # of a kept number

# How a world's marks choose training rows: an oracle that knows what no selector is told.
CHOICES: dict[str, Callable[[PlantedRows], np.ndarray]] = {
    "rows of the last group": lambda rows: rows.group == rows.group.max(),
    "rows that are not mislabelled": lambda rows: ~rows.mislabelled,
}


def cell_file(world: str, arm: str, seed: int) -> Path:
    """Where a cell's result is kept."""
    return CELLS / f"{world}-{arm}-{seed}.json"


def read_cell(world: str, arm: str, seed: int) -> dict[str, Any]:
    """What a cell's file holds; nothing where the cell was not run."""
    return read_report(cell_file(world, arm, seed))


def run_cell(world: World, name: str, arm: Arm, seed: int, environment: Mapping[str, str]) -> None:
    """Draw the world of a seed, train an arm in it, and keep what it did.

    Stages are kept for the cell alone, so that its seconds are those of everything but the shared LLM.

    Args:
        world: its world.
        name: of the arm.
        arm: what is trained.
        seed: of the world and of the run.
        environment: the versions that it is measured with.
    """
    drawn, folder = make_world(replace(world.planted, seed=seed)), HOME / "worlds" / f"{world.name}-{seed}"
    write_world(drawn, folder)
    settings: dict[str, Any] = {**world.settings, **arm.settings}
    llm = shared_llm(world)
    with tempfile.TemporaryDirectory() as scratch:
        started = time.process_time()
        given = {**settings, "data_path": str(folder), "seed": seed}
        if arm.rows:
            file = Path(scratch) / "coreset.csv"
            size, history = given.pop("coreset_size"), given["MAX_ITEM_LIST_LENGTH"]
            write_rows(drawn, folder, file, CHOICES[arm.rows], size, MAX_ITEM_LIST_LENGTH=history)
            given["coreset_file"] = str(file)
        if arm.teacher_epochs:
            teacher = {**given, "llm_path": str(llm), "epochs": arm.teacher_epochs, "curriculum": "sd_only"}
            given["sd_file"] = str(distilled_by(Path(scratch) / "teacher", teacher))
        run = train(arm.model, **given, llm_path=str(llm), checkpoint_dir=scratch)
        seconds = time.process_time() - started
        stages = Path(scratch) / "stages"
        content = {
            "model": arm.model,
            "settings": settings,
            "environment": dict(environment),
            "cost": {"seconds": seconds, "rows": run.result.train_rows, "tokens": trained_tokens(Path(scratch))},
            "values": {**of_users(run, drawn), **of_the_run(run, stages)},
            "shares": marks_of(drawn.rows("train"), Path(scratch) if arm.rows else run.folder),
        }
    CELLS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(content), ensure_ascii=False, separators=(",", ":"))
    cell_file(world.name, name, seed).write_text(text + "\n", encoding="utf-8")


def train(model: str, **settings: Any) -> recbole_llm.Run:
    """A run with the settings that all cells share."""
    return recbole_llm.run(model, NAME, config_files=CONFIGS, show_progress=False, state="WARNING", **settings)


def distilled_by(scratch: Path, settings: Mapping[str, Any]) -> Path:
    """File of the answers that a run of its own distils."""
    train("SOFT", **settings, checkpoint_dir=str(scratch))
    (file,) = scratch.glob("stages/distil-*/answers.jsonl")
    return file


@cache
def shared_llm(world: World) -> Path:
    """Folder of the tiny LLM that all cells of a world tune, and of all worlds with the same titles and prompts."""
    drawn, folder = make_world(replace(world.planted, seed=LLM_SEED)), HOME / "worlds" / f"{world.name}-{LLM_SEED}"
    write_world(drawn, folder)
    own = {key: world.settings[key] for key in LLM_KEYS if key in world.settings}
    given = {"data_path": str(folder), "seed": LLM_SEED, "checkpoint_dir": str(HOME)}
    run = train("BIGRec", llm_path="tiny", epochs=0, valid_sample_size=2, test_sample_size=2, **given, **own)
    stages = json.loads((run.folder / "stages.json").read_text(encoding="utf-8"))
    return (HOME / "stages" / str(stages["tiny-llm"])).resolve()


# ------------------------------------------------------------------------------------------------- what is measured


def of_users(run: recbole_llm.Run, drawn: Drawn) -> dict[str, list[float]]:
    """By measure: a value of every test user, users in the order of their ids.

    ``loss`` (of the true answer, nats per token), ``item`` (1 where the first item of the ranking is the target),
    ``category`` (1 where it shares the target's category), ``ndcg@10``.
    """
    test = load_rows(run.config, few_shot=False).test
    tokens = test.field2id_token[test.uid_field][test.inter_feat[test.uid_field].numpy()]
    losses = dict(zip(tokens.tolist(), answer_losses(run.model, test, run.model.training_budget.tokens), strict=True))
    ranks = run.ranks.set_index("user_id").sort_index()
    first = [items.split()[0] if isinstance(items, str) else items[0] for items in ranks["top_items"]]
    size, rank = drawn.settings.items_per_category, ranks["rank"].to_numpy(float)
    gains = np.where(rank <= 10, 1 / np.log2(rank + 1), 0.0)
    return {
        "loss": [float(losses[user]) for user in ranks.index],
        "item": (rank == 1).astype(float).tolist(),
        "category": [
            float(_category(item, size) == _category(target, size))
            for item, target in zip(first, ranks["item_id"], strict=True)
        ],
        "ndcg@10": gains.tolist(),
    }


def _category(token: str, items_per_category: int) -> int:
    return (int(token.removeprefix("i")) - 1) // items_per_category


def of_the_run(run: recbole_llm.Run, stages: Path) -> dict[str, float]:
    """By measure: one number of the run.

    ``first epoch``: mean training loss in the first epoch of the last stage, on what it is tuned on. Where answers
    were distilled: ``distilled item`` and ``distilled category``, the share of training rows whose distilled answer
    lies nearest to the target itself, and to an item of its category.
    """
    found: dict[str, float] = {}
    if run.history:
        found["first epoch"] = run.history[0]["train_loss"]
    for file in stages.glob("distil-*/nearest.npy"):
        targets, nearest = np.load(file).T
        category = np.array([values[0] if values else "" for values in run.model.catalog.attributes])
        found["distilled item"] = float((nearest == targets).mean())
        found["distilled category"] = float((category[nearest] == category[targets]).mean())
    return found


def trained_tokens(scratch: Path) -> int:
    """Tokens that went through the LLM in all tuning stages of a cell's runs, prompts and padding included."""
    files = scratch.glob("**/stages/*/history.json")
    epochs = [epoch for file in files for epoch in json.loads(file.read_text(encoding="utf-8"))]
    return round(sum(float(epoch["tokens_per_second"]) * float(epoch["seconds"]) for epoch in epochs))


def marks_of(rows: PlantedRows, folder: Path) -> Mapping[str, float]:
    """Shares of marked rows among those that a coreset chose, or that an oracle's file named; of all rows else."""
    return marked_shares(rows, read_choice(folder).get("ids"))


def rounded(content: Any) -> Any:
    """Plain data with its decimals cut, as a file's size is that of its digits."""
    if isinstance(content, float):
        return round(content, DIGITS)
    if isinstance(content, Mapping):
        return {key: rounded(value) for key, value in content.items()}
    return [rounded(value) for value in content] if isinstance(content, list | tuple) else content


def missing(cells: Iterable[tuple[World, str, int]]) -> list[tuple[World, str, int]]:
    """Those of some cells that have no file yet."""
    return [(world, arm, seed) for world, arm, seed in cells if not cell_file(world.name, arm, seed).exists()]
