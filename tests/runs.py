"""The command run inside this process on a small world, and what it leaves behind."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recbole_llm.quick_start import main
from recbole_llm.report import ResultTable
from recbole_llm.settings.models import is_llm_model
from tests.processes import forked_python

if TYPE_CHECKING:
    from recbole_llm import Run

INTERRUPTED = 130  # exit status of a command that Ctrl-C ended

# The smallest LLM; it learns fast enough that one epoch changes its answers.
TINY = (
    "--tiny_steps=30",
    "--tiny_n_layers=1",
    "--tiny_hidden_size=32",
    "--tiny_vocab_size=512",
    "--prompt_style=plain",
    "--lora_dropout=0",
    "--lora_target_modules=auto",
    "--warmup_steps=0",
    "--num_beams=2",
    "--max_new_tokens=10",
    "--alpha=1",
)
SMALL = ("--epochs=2", "--eval_step=1", "--topk=[1,5,10]", "--valid_metric=NDCG@10", "--show_progress=False")


@dataclass(frozen=True)
class Finished:
    """One finished command.

    Attributes:
        status: exit status.
        folders: label of a model to its run folder.
        results: folder of the table, None if there is none.
    """

    status: int
    folders: dict[str, Path]
    results: Path | None

    @property
    def table(self) -> ResultTable:
        """The table as it was written."""
        return ResultTable.read(self.results / "results.json")

    def result(self, label: str) -> Any:
        """One line of the table."""
        return next(result for result in self.table.results if result.model == label)

    def log(self, label: str) -> str:
        """The log of one model's run."""
        return next(self.folders[label].glob("*.log")).read_text(encoding="utf-8")

    def json(self, label: str, name: str) -> Any:
        """A JSON file of one model's run folder."""
        return json.loads((self.folders[label] / name).read_text(encoding="utf-8"))

    def ranks(self, label: str, phase: str = "test") -> list[dict[str, str]]:
        """What each evaluated row got."""
        with open(self.folders[label] / f"{phase}_ranks.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def stage(self, label: str, stage: str) -> Path:
        """Folder of a stage that a run used."""
        return self.folders[label].parent / "stages" / self.json(label, "stages.json")[stage]


def words_for(models: str, world: Path, saved: Path, *words: str) -> list[str]:
    """A whole command line; of several words with one key the last stands, and ``TINY`` is for LLM models only."""
    where = [f"--model={models}", f"--dataset={world.name}", f"--data_path={world.parent}", f"--checkpoint_dir={saved}"]
    llms = [name for name in models.split(",") if is_llm_model(name)]
    tiny = TINY if llms else ()
    # Keys that RecBole's models know as well are given to the LLM models alone.
    own = [f"--{name}.{word}" for name in llms for word in ("learning_rate=0.02", "train_batch_size=32")]
    by_key = {word.partition("=")[0]: word for word in [*where, *SMALL, *tiny, *own, *words]}
    return list(by_key.values())


def run(models: str, world: Path, saved: Path, *words: str) -> Finished:
    """Run the command, beside the results."""
    saved.mkdir(parents=True, exist_ok=True)
    before = set(saved.iterdir())
    with working_in(saved.parent):
        status = main(words_for(models, world, saved, *words))
    if status == INTERRUPTED:  # the command has said how it goes on; a test sees what interrupted it
        raise KeyboardInterrupt
    new = sorted(set(saved.iterdir()) - before, key=lambda folder: folder.stat().st_ctime_ns)
    tables = [folder for folder in new if folder.name.startswith("results-")]
    runs = [folder for folder in new if f"-{world.name}-" in folder.name and folder not in tables]
    folders = {folder.name.partition(f"-{world.name}-")[0]: folder for folder in runs}
    for folder in runs if status == 0 else ():
        check_stages(folder)
    return Finished(status, folders, tables[0] if tables else None)


def check_stages(folder: Path) -> None:
    """The log of a finished run says of each stage that it begins, in the order that was told from the first on."""
    log = next(folder.glob("*.log")).read_text(encoding="utf-8")
    if ", run folder " not in log or not (folder / "timing.json").is_file():
        return  # it shows warnings alone, or the run has ended early
    lines = re.findall(r"stage (\d+) of (\d+): ([\w-]+)(?: \(([^)]*)\))?", log)
    names = [name for _, _, name, _ in lines]
    assert [(int(number), int(count)) for number, count, _, _ in lines] == [
        (1 + i, len(lines)) for i in range(len(lines))
    ]
    assert (names[0], names[-1]) == ("prepare", "evaluate")
    for index, (_, _, _, around) in enumerate(lines):
        parts = dict(part.split(": ") for part in around.split("; ") if part)
        told = [*parts.get("done", "").split(", "), names[index], *parts.get("next", "").split(", ")]
        assert [name for name in told if name] == names
    assert set(json.loads((folder / "timing.json").read_text())["seconds"]) <= set(names)


def ranked_alike(one: Finished, other: Finished, label: str, other_label: str | None = None) -> bool:
    """Whether two computations of one result rank alike: of all rows of validation and test, at most one otherwise.

    Weights that differ by rounding decide between two answers of nearly equal probability, so one row may turn over.
    """
    rows = [
        pair
        for phase in ("valid", "test")
        for pair in zip(one.ranks(label, phase), other.ranks(other_label or label, phase), strict=True)
    ]
    return sum(ours["rank"] != theirs["rank"] for ours, theirs in rows) <= 1 < len(rows)


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Change the working folder for the duration of the context."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def histories_in(folder: Path) -> dict[str, list[str]]:
    """Each user's items by time, read from the file."""
    rows: dict[str, list[tuple[int, str]]] = {}
    for line in (folder / f"{folder.name}.inter").read_text().splitlines()[1:]:
        user, item, _, time = line.split("\t")
        rows.setdefault(user, []).append((int(time), item))
    return {user: [item for _, item in sorted(own)] for user, own in rows.items()}


def metrics_of(ranks: Sequence[int], cutoffs: Sequence[int]) -> dict[str, float]:
    """Metrics of 1-based ranks, 0 for a target that is not ranked, from their definitions for one target per row."""
    ranks = np.asarray(ranks, dtype=float)
    metrics = {}
    for k in cutoffs:
        hit = (ranks > 0) & (ranks <= k)
        safe = np.where(hit, ranks, 1.0)
        metrics[f"hit@{k}"] = metrics[f"recall@{k}"] = hit.mean()
        metrics[f"mrr@{k}"] = (hit / safe).mean()
        metrics[f"ndcg@{k}"] = (hit / np.log2(safe + 1)).mean()
    return metrics


def asked_in_new_process(run: Run, folder: Path, users: Sequence[str], k: int) -> tuple[bytes, bytes]:
    """What a run recommends after a new process has loaded its folder, and here: CSV files, to the last digit."""
    files = [folder / f"{name}.csv" for name in ("again", "here")]
    program = """
        import sys
        from recbole_llm import load_run
        load_run(sys.argv[1]).recommend(users=sys.argv[4:], k=int(sys.argv[3])).to_csv(sys.argv[2], index=False)
    """
    forked_python(program, run.folder, files[0], str(k), *users, cwd=folder)
    run.recommend(users=list(users), k=k).to_csv(files[1], index=False)
    again, here = (file.read_bytes() for file in files)
    return again, here
