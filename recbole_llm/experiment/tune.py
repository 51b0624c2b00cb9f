"""``tune``: search for the settings of one model on validation rows; the best are tested at the end."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock

from recbole_llm.errors import InputError
from recbole_llm.evaluation import protocol_of
from recbole_llm.experiment.finished import FinishedRuns, run_fingerprint
from recbole_llm.experiment.results import data_hash_of
from recbole_llm.experiment.run import check_row_digests, run_one
from recbole_llm.experiment.run_folder import folder_stem
from recbole_llm.experiment.run_record import Run
from recbole_llm.experiment.timing import plan_of
from recbole_llm.experiment.trained import is_few_shot
from recbole_llm.experiment.tune_plan import Plan, check_plan, unread_in
from recbole_llm.experiment.tune_space import as_space
from recbole_llm.experiment.tune_study import Attempt, Pruned, Study
from recbole_llm.experiment.tune_table import TrialTable, write_best
from recbole_llm.logs import console_log
from recbole_llm.report import plot_importances, plot_slices
from recbole_llm.settings.command import Command, split_by_model
from recbole_llm.settings.config import Config
from recbole_llm.settings.values import parse_texts, split_names, write_setting
from recbole_llm.stages import StageStore, fingerprint
from recbole_llm.timeline import RunPlan, in_command, timeline

BEST, TRIALS = "best.yaml", "trials"
TRIAL_LABEL = "validation"  # of a trial's run: it is no run of a table, which has test rows
# Mistakes that a trial's own combination of values can make; "data" is what RecBole's code stumbles over.
OF_A_TRIAL = ("numeric", "value", "conflict", "data")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """The result of :func:`recbole_llm.tune`.

    Attributes:
        folder: ``saved/tune-<model>-<dataset>-<fingerprint>``, with the table, plots and ``best.yaml``.
        table: the trials, in order, with scores on the validation rows.
        best: the searched settings with the best trial's values.
        run: the run with these settings, evaluated on validation and test rows.
    """

    folder: Path
    table: TrialTable
    best: dict[str, Any]
    run: Run

    @property
    def trials(self) -> pd.DataFrame:
        """A line per trial: ``trial`` (from 1), ``state``, the validation score, settings, ``epochs``, ``note``."""
        return self.table.to_frame()

    def text(self) -> str:
        """Text for the terminal: the trials, the best one, and its test metrics."""
        number, n = self.table.best_number, self.table.n_ended
        test = "    ".join(f"{name}: {value:.4f}" for name, value in self.run.metrics.items())
        values = ", ".join(f"{name}={write_setting(name, value)}" for name, value in self.best.items())
        return "\n".join(
            [
                self.table.text(),
                "",
                f"best of {n} trials by {self.table.metric} on validation rows: trial {number}, {values}",
                f"the test rows were evaluated for this trial alone: {test}",
            ]
        )


def tune(
    model: str,
    dataset: str,
    space: Mapping[str, Any],
    *,
    sampler: str = "tpe",
    pruner: str = "none",
    trials: int | None = None,
    asha_min_epochs: int = 1,
    asha_reduction: int = 3,
    config_files: str | Sequence[str | Path] = (),
    **settings: Any,
) -> Tuned:
    """Search for the settings of one model that are best on its validation rows.

    The same call continues a stopped search, also with more trials. Several processes with the same call share the
    trials.

    Args:
        model: name of a model or preset, ours or RecBole's.
        dataset: name of the data set.
        space: setting to its values: a list, or a text as in RecBole's ``hyper.test`` (``"uniform 0.1,0.5"``).
        sampler: ``tpe``, ``random``, or ``grid`` for every combination.
        pruner: ``asha`` stops trials that fall behind after some epochs, ``none`` runs all to the end.
        trials: number of trials; 20 by default, or all of a grid.
        asha_min_epochs: validated epochs before ASHA first compares.
        asha_reduction: one trial in this many continues at each comparison.
        config_files: YAML files of settings, later ones win.
        **settings: settings of all trials, by name.

    Returns:
        The trials, the best settings, and their run.

    Raises:
        InputError: a wrong setting or range, found before the first trial; or no trial gave a score.

    Example:
        >>> import recbole_llm
        >>> recbole_llm.tune("SASRec", "ml-100k", {"n_layer": [1, 2]})
        Traceback (most recent call last):
        ...
        recbole_llm.errors.InputError: n_layer is not a setting of SASRec; did you mean n_layers?
        >>> found = recbole_llm.tune("SASRec", "ml-100k", {"n_layers": [1, 2]}, sampler="grid")  # doctest: +SKIP
        >>> found.best, found.run.metrics["ndcg@10"]  # doctest: +SKIP
    """
    files = split_names(config_files) if isinstance(config_files, str) else [str(file) for file in config_files]
    shared, per_model = split_by_model(parse_texts(settings))
    command = Command([model], dataset, files, shared, per_model)
    plan = check_plan(Plan(command, as_space(space), sampler, pruner, trials, asha_min_epochs, asha_reduction))
    with console_log():
        return run_plan(plan)


def run_plan(plan: Plan, words: Sequence[str] = ()) -> Tuned:
    """Run the trials of a checked plan that have not ended yet, then the best one's settings with its test rows.

    Args:
        plan: what :func:`recbole_llm.experiment.tune_plan.check_plan` gave.
        words: the command line, to be written beside the results.

    Raises:
        InputError: a mistake that would end every trial, or no trial gave a score.
    """
    for line in unread_in(plan):
        log.warning(line)
    search = _Search(plan)
    for name, dimension in plan.space.items():
        log.info("searched: %s: %s", name, dimension)
    with closing(search.study.attempts()) as attempts, in_command(search.run_plans()) as course:
        for attempt in attempts:
            course.limit(plan.n_trials - attempt.number)
            search.run(attempt)
    with FileLock(search.folder / ".trials" / "table.lock"):
        return search.end(words)


class _Search:
    """Runs of a plan, each a trial of its study."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        config = self._config(plan.first)
        self.data, self.metric = data_hash_of(config), protocol_of(config).valid_metric
        facts = {name: value for name, value in vars(plan).items() if name not in ("command", "space", "trials")}
        facts["space"] = {name: [type(one).__name__, str(vars(one))] for name, one in plan.space.items()}
        facts["run"] = self._name(config, TRIAL_LABEL)
        stem = folder_stem(f"tune-{plan.model}-{plan.command.dataset}")
        self.folder = Path(config["checkpoint_dir"]) / f"{stem}-{fingerprint(facts)}"
        self.study = Study(self.folder, plan, bool(config["valid_metric_bigger"]), int(config["seed"]))
        self.finished = FinishedRuns(self.folder)
        self._rows = ""

    def _config(self, values: Mapping[str, Any]) -> Config:
        return Config(self.plan.model, self.plan.command.dataset, settings=self.plan.settings(values))

    def _name(self, config: Config, label: str) -> str:
        return run_fingerprint(config, label, is_few_shot(config), self.data)

    def run_plans(self) -> list[RunPlan]:
        """What the trials consist of."""
        config = self._config(self.plan.first)
        return [plan_of(config, config["model"], is_few_shot(config))] * self.plan.n_trials

    def run(self, attempt: Attempt) -> None:
        """Run a trial to its end.

        Raises:
            InputError: a mistake that every other trial would make as well.
        """
        shown = ", ".join(f"{name}={write_setting(name, value)}" for name, value in attempt.values.items())
        log.info("trial %d of %d: %s", attempt.number + 1, self.plan.n_trials, shown)
        config = None
        try:
            config = self._config(attempt.values)
            run, name = self._run(config, attempt)
            self._check_row_digests(run)
        except Pruned:
            log.info("trial %d has fallen behind and is ended.", attempt.number + 1)
            attempt.prune()
            self._give_up(config)
        except InputError as error:
            if error.kind not in OF_A_TRIAL:
                raise
            log.warning("trial %d gave no score: %s", attempt.number + 1, error)
            attempt.fail(str(error))
            self._give_up(config)
        except torch.OutOfMemoryError:
            log.warning("trial %d gave no score: the device has too little memory.", attempt.number + 1)
            attempt.fail("the device has too little memory")
            self._give_up(config)
        else:
            facts = {"run": name, "folder": str(run.folder), "epochs": run.result.epochs, "valid": run.valid_metrics}
            attempt.finish(self._score(run), **facts)

    def _give_up(self, config: Config | None) -> None:
        """Remove the resumable state of a trial that will not be continued."""
        if config is not None:
            StageStore(Path(config["checkpoint_dir"]) / "stages").forget(config.settings())

    def _run(self, config: Config, attempt: Attempt) -> tuple[Run, str]:
        """The run of a trial and its name; one with the same settings is found again, its epochs told as they were."""
        name = self._name(config, TRIAL_LABEL)
        run = self.finished.find(name, config)
        if run is None:
            run = run_one(config, with_test=False, on_score=attempt.report)
            self.finished.add(name, run)
            return run, name
        timeline().found(config["model"])
        for epoch, score in sorted(self.study.scores_of(name).items()):
            attempt.report(epoch, score)
        return run, name

    def _check_row_digests(self, run: Run) -> None:
        check_row_digests("a trial", run.rows_digest, "the trials before it", self._rows or run.rows_digest)
        self._rows = run.rows_digest

    def _score(self, run: Run) -> float:
        if run.valid_score is None:
            raise InputError("valid_metric", f"{self.metric} could not be measured on the validation rows", kind="data")
        return float(run.valid_score)

    def end(self, words: Sequence[str]) -> Tuned:
        """The results, written into the folder.

        Raises:
            InputError: no trial gave a score.
        """
        plan, best = self.plan, self.study.best
        values = [
            {name: one.value(trial.params[name]) for name, one in plan.space.items()} for trial in self.study.trials
        ]
        shown = shlex.join(["recbole-llm", "tune", *words]) if words else ""
        table = TrialTable.of(self.study.trials, values, self.metric, best.number if best else None, shown)
        table.write(self.folder, TRIALS)
        if best is None:
            reason = next((line["note"] for line in table.lines if line["note"]), "")
            raise InputError("tune", f"no trial gave a score; the first one: {reason}", kind="conflict")
        chosen = values[best.number]
        config = self._config(chosen)
        file = write_best(self.folder / BEST, config)
        self._draw(table)
        name = self._name(config, plan.model)
        run = self.finished.find(name, config)
        if run is None:
            log.info("The best trial's settings again, now with the test rows: %s", file)
            run = run_one(config)
            self.finished.add(name, run)
        return Tuned(self.folder, table, chosen, run)

    def _draw(self, table: TrialTable) -> None:
        """Pictures of the trials that ended with a score."""
        ended = [line for line in table.lines if line["score"] is not None and line["state"] == "complete"]
        columns = {name: [line["values"][name] for line in ended] for name in self.plan.space}
        scores = [line["score"] for line in ended]
        title = f"{self.plan.model} on {self.plan.command.dataset}"
        plot_slices(self.folder / "slices.png", columns, scores, f"validation {self.metric}", title=title)
        if importances := self.study.importances():
            plot_importances(self.folder / "importances.png", importances, title=title)
