"""Files of a finished LLM run, beside those of every run, and how they are loaded."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from recbole.data.interaction import Interaction

from recbole_llm.adapter import INSTANCE_GATES
from recbole_llm.coreset import score_strata
from recbole_llm.evaluation import protocol_of
from recbole_llm.experiment.run_folder import RunFolder
from recbole_llm.model.base import LLMRecommender
from recbole_llm.report import ResultTable, RunResult, plot_coreset, plot_curriculum, plot_gates, plot_goracs
from recbole_llm.selection.row_selection import FILE as CORESET_FILE
from recbole_llm.selection.row_selection import MAP as CORESET_MAP
from recbole_llm.selection.row_selection import SUMMARY as CORESET_SUMMARY
from recbole_llm.trainer.distillation import SUMMARY
from recbole_llm.trainer.history_policy import FACTS as POLICY_FACTS
from recbole_llm.trainer.history_policy import WEIGHTS as POLICY_WEIGHTS
from recbole_llm.trainer.history_policy import HistoryCut, read_policy
from recbole_llm.trainer.llm_trainer import LLMTrainer
from recbole_llm.trainer.reweighting import Reweighting
from recbole_llm.trainer.tuning import TuningResult
from recbole_llm.trainer.tuning_stages import CurriculumStage

if TYPE_CHECKING:
    from recbole_llm.settings.config import Config

log = logging.getLogger(__name__)
N_STRATA = 50  # of the picture, where the selector has none


def write_llm_run(folder: RunFolder, trainer: LLMTrainer, test_rows: Interaction) -> None:
    """Write the history of the last stage, the stages used, the adapter, and what curriculum and gates did.

    Args:
        folder: folder to write into.
        trainer: it has fitted the model.
        test_rows: the rows whose gates are drawn, where weights depend on the row.
    """
    folder.write("history.json", trainer.tuned[-1].history if trainer.tuned else [])
    folder.write("stages.json", trainer.model.stages.used)
    trainer.model.write_report(folder.path)
    if trainer.gammas:
        folder.write("gammas.json", trainer.gammas)
    _write_selection(folder, trainer)
    if trainer.history_policy:
        for name in (POLICY_WEIGHTS, POLICY_FACTS):
            shutil.copy(trainer.history_policy / name, folder.path / name)
    if not trainer.tuned:
        return
    if trainer.model.reads_items:
        trainer.write_run(folder.path)
        return
    last = trainer.tuned[-1]
    if trainer.config["preference"] != "none":
        folder.write("preference.json", {"stage": last.stage, **last.settings, "best_epoch": last.best_epoch})
    shutil.copytree(last.folder / "adapter", folder.path / "adapter")
    gates = trainer.model.row_inputs(trainer.model.histories(test_rows)).get(INSTANCE_GATES)
    if gates is not None:
        plot_gates(gates.cpu().numpy(), folder.path / "gates.png", title=f"{folder.path.name}: gates of the test rows")
    if trainer.distilled:
        folder.write("distilled.json", json.loads((trainer.distilled / SUMMARY).read_text(encoding="utf-8")))
    if of_curriculum := next((tuned for tuned in trainer.tuned if tuned.stage == CurriculumStage.name), None):
        _write_curriculum(folder, trainer, of_curriculum)


def _write_selection(folder: RunFolder, trainer: LLMTrainer) -> None:
    """Write which rows were selected, by a selector or by a file of an earlier run."""
    if trainer.coreset:
        for name in (CORESET_FILE, CORESET_SUMMARY):
            shutil.copy(trainer.coreset / name, folder.path / name)
        _plot_coreset(folder, trainer)
        _plot_search(folder, trainer.coreset)
    elif trainer.n_train_rows and trainer.config["coreset_file"]:
        shutil.copy(trainer.config["coreset_file"], folder.path / CORESET_FILE)


def _write_curriculum(folder: RunFolder, trainer: LLMTrainer, tuned: TuningResult) -> None:
    """Write what the curriculum of a tuning did, as numbers and as a plot; and the others, where several were tried."""
    if len(trainer.tried) > 1:
        log.info("curricula by alpha, on validation rows:\n%s", _write_curricula(folder, trainer))
    facts = {**tuned.settings, "initial_distance": tuned.initial_distance, "best_epoch": tuned.best_epoch}
    folder.write("curriculum.json", facts)
    plot_curriculum(
        tuned.history,
        folder.path / "curriculum.png",
        title=f"{folder.path.name}: {', '.join(f'{name} {value:g}' for name, value in tuned.settings.items())}",
        metric=trainer.valid_metric,
        initial_distance=tuned.initial_distance,
        best_epoch=tuned.best_epoch,
    )


def _write_curricula(folder: RunFolder, trainer: LLMTrainer) -> str:
    """Write ``curricula.csv``: a line for every value of ``alpha``, with the validation of its best epoch.

    Returns:
        The same as text, rounded.
    """
    lines, kept = [], {tuned.folder for tuned in trainer.tuned}
    for tried in {one.folder: one for one in trainer.tried}.values():  # 1 and 1.0 are one curriculum
        facts = {**tried.settings, "epochs": len(tried.history), "best_epoch": tried.best_epoch}
        best = tried.history[tried.best_epoch - 1]
        found = {f"valid_{name}": value for name, value in best["valid"].items()}
        loss = {} if "valid_loss" not in best else {"valid_loss": best["valid_loss"]}
        lines.append({**facts, **found, **loss, "chosen": int(tried.folder in kept)})
    frame = pd.DataFrame(lines)
    frame.to_csv(folder.path / "curricula.csv", index=False)
    shown = [*lines[0]][: [*lines[0]].index("best_epoch") + 1]
    return str(frame[[*shown, f"valid_{trainer.valid_metric}", "chosen"]].to_string(index=False))


def read_llm_run(folder: Path, config: Config, model: LLMRecommender) -> None:
    """Give a model what a run of this config left in its folder: the adapter, and the strength of the re-weighting."""
    model.restore(folder)
    if config["history_policy"] != "fixed":
        policy = read_policy(folder, model.n_items, config["MAX_ITEM_LIST_LENGTH"])
        model.history_cut = HistoryCut(policy, model)
    model.prepare()
    if config["reweight"] != "none":
        metric = protocol_of(config).usual_metric
        gammas = json.loads((folder / "gammas.json").read_text(encoding="utf-8"))
        model.rescore = Reweighting(config, model, metric).rescorer(gammas.get(metric, 0.0))


def write_stage_table(folder: RunFolder, results: Sequence[RunResult], n_valid: int) -> str:
    """Write test and validation metrics after every stage; returns them as text.

    ``stage_table.md`` has a line for each stage and split, ``stage_table.json`` and ``.csv`` the unrounded values.

    Args:
        folder: the run folder.
        results: the stages; their ``n_rows`` are test rows.
        n_valid: number of validation rows.
    """
    lines = []
    for result in results:
        for split in ("valid", "test"):
            facts = {"model": f"{result.model}, {split}", "notes": (), "test": getattr(result, split), "valid": {}}
            facts["n_rows"] = n_valid if split == "valid" else result.n_rows
            own = ("valid_loss",) if split == "valid" else ("distinct_answers", "top_answer")
            facts["summary"] = {name: value for name, value in result.summary.items() if name in own}
            facts["warnings"] = result.warnings if split == "test" else ()
            lines.append(RunResult(**{**vars(result), **facts}))
    table = ResultTable(tuple(lines), title="Stages")
    table.write(folder.path, "stage_table")
    return table.text()


def _plot_coreset(folder: RunFolder, trainer: LLMTrainer) -> None:
    """Strata are those of the selector where it has some."""
    with open(folder.path / CORESET_FILE, newline="", encoding="utf-8") as file:
        rows = [(float(line["score"]), line["selected"] == "1") for line in csv.DictReader(file)]
    summary = json.loads((folder.path / CORESET_SUMMARY).read_text(encoding="utf-8"))
    scores, selected = (np.array(column) for column in zip(*rows, strict=True))
    plot_coreset(
        folder.path / "coreset.png",
        scores,
        score_strata(scores, summary.get("n_groups", N_STRATA), summary.get("hard_prune_ratio", 0.0)),
        selected,
        summary["seconds"],
        {tuned.stage: sum(record["seconds"] for record in tuned.history) for tuned in trainer.tuned},
        title=f"{folder.path.name}: {summary['coreset']}, {summary['selected']:,} of {summary['pool']:,} rows",
        n_all=summary["rows"] if trainer.tuned else None,
    )


def _plot_search(folder: RunFolder, coreset: Path) -> None:
    """``goracs.png``, or another selector's, where the selector tells of a search."""
    if not (coreset / CORESET_MAP).is_file():
        return
    summary = json.loads((coreset / CORESET_SUMMARY).read_text(encoding="utf-8"))
    outcome, name = summary["outcome"], summary["coreset"]
    several = len(outcome["starts"]) > 1
    traces = {
        f"class {label}, {start}" if several else start: trace
        for label, starts in outcome["starts"].items()
        for start, trace in starts.items()
    }
    title = f"{folder.path.name}: {name}, {outcome['method']}, {summary['selected']:,} of {summary['pool']:,} rows"
    with np.load(coreset / CORESET_MAP) as positions:
        plot_goracs(folder.path / f"{name}.png", traces, **positions, title=title)
