"""What a finished run of an LLM recommender leaves in its folder, beside what every run leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence

from recbole_llm.report import ResultTable, RunResult, plot_curriculum
from recbole_llm.trainer.distillation import SUMMARY
from recbole_llm.trainer.llm_trainer import LLMTrainer
from recbole_llm.trainer.run_folder import RunFolder


def write_llm_run(folder: RunFolder, trainer: LLMTrainer) -> None:
    """Write the history of the last stage, the stages used, the adapter, and what the curriculum did."""
    folder.write("history.json", trainer.history)
    folder.write("stages.json", trainer.model.stages.used)
    if trainer.gammas:
        folder.write("gammas.json", trainer.gammas)
    if not trainer.tuned:
        return
    last = trainer.tuned[-1]
    shutil.copytree(last.folder / "adapter", folder.path / "adapter")
    if trainer.distilled:
        folder.write("distilled.json", json.loads((trainer.distilled / SUMMARY).read_text(encoding="utf-8")))
    if not last.settings:
        return
    facts = {**last.settings, "initial_distance": last.initial_distance, "best_epoch": last.best_epoch}
    folder.write("curriculum.json", facts)
    plot_curriculum(
        last.history,
        folder.path / "curriculum.png",
        title=f"{folder.path.name}: {', '.join(f'{name} {value:g}' for name, value in last.settings.items())}",
        metric=trainer.valid_metric,
        initial_distance=last.initial_distance,
        best_epoch=last.best_epoch,
    )


def write_stage_table(folder: RunFolder, results: Sequence[RunResult]) -> str:
    """Write test and validation metrics after every stage; returns them as text.

    ``stage_table.md`` has a line for each stage and split, ``stage_table.json`` and ``.csv`` the unrounded values.
    """
    lines = []
    for result in results:
        for split in ("valid", "test"):
            facts = {"model": f"{result.model}, {split}", "notes": (), "test": getattr(result, split), "valid": {}}
            lines.append(RunResult(**{**vars(result), **facts}))
    table = ResultTable(tuple(lines), title="Stages")
    table.write(folder.path, "stage_table")
    return table.text()
