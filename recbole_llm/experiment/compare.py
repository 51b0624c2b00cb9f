"""Several models side by side, on the same rows, in one table."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from recbole_llm.disk import explained
from recbole_llm.distributed import on_main, process
from recbole_llm.experiment.finished import FinishedRuns, run_fingerprint
from recbole_llm.experiment.planned import Planned, check_planned, make_configs, plan, run_plans
from recbole_llm.experiment.results import data_hash_of, table_of, write_results
from recbole_llm.experiment.run import check_row_digests, is_teacher, run_one, teach
from recbole_llm.experiment.run_folder import folder_stem, new_folder
from recbole_llm.experiment.run_record import Run
from recbole_llm.locks import OwnedLock
from recbole_llm.logs import console_log
from recbole_llm.report import ResultTable, RunResult
from recbole_llm.settings.check import check_baseline, check_command
from recbole_llm.settings.command import Command, check_distinct, split_by_model
from recbole_llm.settings.config import Config
from recbole_llm.settings.readers import unread
from recbole_llm.settings.seeds import check_one_seed, check_seeds, seed_list
from recbole_llm.settings.values import parse_texts, split_names
from recbole_llm.stages import fingerprint
from recbole_llm.timeline import in_command, timeline

log = logging.getLogger(__name__)
Show = Callable[[ResultTable], None]


def compare(
    models: str | Sequence[str],
    dataset: str,
    seeds: int | Sequence[int] | None = None,
    *,
    baseline: str = "",
    config_files: str | Sequence[str | Path] = (),
    **settings: Any,
) -> ResultTable:
    """Train and evaluate several models on the same rows.

    Args:
        models: names of models, ours and RecBole's: a list, or ``"Pop,SASRec,BIGRec"``.
        dataset: name of the data set.
        seeds: seeds that each model is run with, or their number, counted from the setting ``seed``. By default one
            run, with the setting ``seed``. With ``seeds``, finished runs are not repeated, so a stopped comparison
            continues when it is called again.
        baseline: the model that the others are compared with; by default RecBole's first, else the first.
        config_files: YAML files of settings, later ones win.
        **settings: settings by name, for every model that has them; ``**{"BIGRec.epochs": 4}`` is for BIGRec only.

    Returns:
        The table, which a notebook shows. ``saved/results-<dataset>-<time>`` (with seeds
        ``saved/compare-<dataset>-<fingerprint>``) holds it as Markdown, LaTeX, CSV and JSON, with plots, and everything
        on one page, ``report.html``.

    Raises:
        InputError: a wrong setting or file, found before the first model trains.

    Example:
        >>> import recbole_llm
        >>> recbole_llm.compare("Pop,SASRec", "ml-100k", seeds=[1, 1])
        Traceback (most recent call last):
        ...
        recbole_llm.errors.InputError: seeds: [1, 1] is not allowed; give ...
        >>> table = recbole_llm.compare("Pop,SASRec", "ml-100k", seeds=5)  # doctest: +SKIP
        >>> table.to_frame()[["model", "seed", "ndcg@10"]]  # doctest: +SKIP
        >>> table.comparisons[0].p  # doctest: +SKIP
    """
    files = split_names(config_files) if isinstance(config_files, str) else [str(file) for file in config_files]
    shared, per_model = split_by_model(parse_texts(settings))
    names = split_names(models if isinstance(models, str) else list(models))
    check_distinct(names)
    checked = None if seeds is None else check_seeds(seeds)
    check_one_seed(shared, per_model, checked)
    with console_log():
        return run_models(Command(names, dataset, files, shared, per_model, checked, baseline))[0]


def run_models(command: Command, words: Sequence[str] = (), show: Show | None = None) -> tuple[ResultTable, Path]:
    """Run all models of a command on the same rows and write their table.

    Args:
        command: what to run.
        words: the command line, to be written beside the results.
        show: gets the table in the main process before any file of it is written, which a full disk may prevent.

    Returns:
        The table, and the folder with ``report.html``, ``results.md``, ``results.csv`` and ``results.json``.

    Raises:
        InputError: a wrong setting; or a model's settings give it other rows than the first model's.
    """
    for line in unread(command.given, check_command(command)):
        log.warning(line)
    first = make_configs(command)
    seeds = None if command.seeds is None else seed_list(command.seeds, first[0]["seed"])
    by_seed = [plan(first)] if seeds is None else [plan(make_configs(command, seed)) for seed in seeds]
    check_baseline(command.baseline, [plan.label for plan in run_plans(by_seed[:1])])
    check_planned(by_seed[0])
    config = by_seed[0][0].config
    if seeds is None:
        stem = _stem("results", command)
        with in_command(run_plans(by_seed)):
            runs = _run(by_seed[0])
        return _write(command, words, runs, partial(new_folder, Path(config["checkpoint_dir"]), stem), show)
    data = data_hash_of(config)
    names = {id(one): run_fingerprint(one.config, one.label, one.few_shot, data) for own in by_seed for one in own}
    stem = f"{_stem('compare', command)}-{fingerprint({'runs': list(names.values())})}"
    finished = FinishedRuns(Path(config["checkpoint_dir"]) / stem)
    lock = OwnedLock(finished.folder / ".lock", f"Comparison {stem}")
    with lock if process().is_main else nullcontext(), in_command(run_plans(by_seed)):
        runs = []
        for planned in by_seed:
            own = [names[id(one)] for one in planned]
            runs += _run(planned, finished, own, runs[0] if runs else None)
        return _write(command, words, runs, lambda: finished.folder, show)


def _write(
    command: Command, words: Sequence[str], runs: Sequence[Run], make_folder: Callable[[], Path], show: Show | None
) -> tuple[ResultTable, Path]:
    """The table of runs, shown before anything of it is written, and the folder it is written to.

    It is written too where it cannot be shown: the reader has gone, or the terminal lacks a character.
    """

    def write() -> tuple[ResultTable, Path]:
        table = table_of(runs, shlex.join(["recbole-llm", *words]) if words else "", command.baseline)
        try:
            if show is not None:
                show(table)
        finally:
            folder = make_folder()
            with explained(folder, "the table and its plots"):
                write_results(runs, table, folder, want_rows=command.seeds is not None)
        return table, folder

    return on_main(write)


def _stem(kind: str, command: Command) -> str:
    return folder_stem(f"{kind}-{command.dataset}")


def _run(
    planned: Sequence[Planned],
    finished: FinishedRuns | None = None,
    names: Sequence[str] = (),
    beside: Run | None = None,
) -> list[Run]:
    """Run what is planned with one seed.

    Args:
        planned: the runs.
        finished: where finished runs are found and noted; None runs all.
        names: fingerprints of the runs.
        beside: a run before these, evaluated on the same rows.
    """
    runs: list[Run] = []
    for one, name in zip_longest(planned, names):
        if one.beside and (runs[-1].result.train_rows or 0) <= one.config["train_sample_size"]:
            log.info("Skipping %s: the training set has no more than train_sample_size rows", one.label)
            timeline().skip(one.label)
            continue
        first = runs[0] if runs else beside
        run = _found(finished, name, one.config) if finished else None
        if run is not None:
            timeline().found(one.label)
            log.info("%s, seed %s: found in %s", one.label, one.config["seed"], run.folder)
            if first is not None:
                check_row_digests(one.label, run.rows_digest, first.result.model, first.rows_digest)
        else:
            run = run_one(one.config, one.label, one.few_shot, first)
            if finished and process().is_main:
                finished.add(name, run)
        _tell_runs()
        runs.append(run)
        if is_teacher(one.config):
            if run.student is not None:
                timeline().found(run.student.result.model)
            runs.append(run.student or teach(run))
            _tell_runs()
    return runs


def _tell_runs() -> None:
    """Say how many runs of the command are done, and how long the others may take."""
    done, planned = timeline().n_done, timeline().n_runs
    if planned > 1:
        left = timeline().left() if done < planned else ""
        log.info("%d of %d runs done, %s", done, planned, left or f"{planned - done} left")


def _found(finished: FinishedRuns, name: str, config: Config) -> Run | None:
    """A finished run, which the main process looks for."""

    def look() -> tuple[Path, RunResult, str] | None:
        run = finished.find(name, config)
        return None if run is None else (run.folder, run.result, run.rows_digest)

    found = on_main(look)
    return None if found is None else Run(found[0], config, *found[1:])
