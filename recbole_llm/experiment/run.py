"""One run: read the rows, train and evaluate a model, write its folder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recbole.utils import init_seed

from recbole_llm.callbacks import Callbacks, Started, make_callbacks
from recbole_llm.data.numbering import Numbering
from recbole_llm.data.rows import Rows, load_rows
from recbole_llm.disk import write_json
from recbole_llm.distributed import asks_for_shards, launched, on_main, process
from recbole_llm.evaluation import Protocol, protocol_of
from recbole_llm.evaluation.reranking import Reranking
from recbole_llm.experiment.llm_run import read_llm_run, write_stage_table
from recbole_llm.experiment.model_card import write_card, write_prompt
from recbole_llm.experiment.results import table_of, write_report
from recbole_llm.experiment.run_folder import RunFolder
from recbole_llm.experiment.run_record import DATA, FACTS, STUDENT, Run, run_facts
from recbole_llm.experiment.student import lessons_of, student_label
from recbole_llm.experiment.timing import plan_of, write_timing
from recbole_llm.experiment.train import OnScore, Stages, Teacher, train_classic, train_llm
from recbole_llm.experiment.trained import Trained, is_few_shot, texts_built_of
from recbole_llm.logs import SHOWN, console_log, run_log
from recbole_llm.report import RunResult, revision, versions
from recbole_llm.settings.check import check_resolved
from recbole_llm.settings.config import Config
from recbole_llm.settings.readers import unread
from recbole_llm.settings.task_checks import other_rows
from recbole_llm.settings.values import split_names
from recbole_llm.timeline import PREPARE, in_run

# Keys of RecBole's that nothing reads, and what is there instead.
WITHOUT_EFFECT = {
    "verbose": "the whole log is in the run folder; --quiet shows less",
    "save_dataloaders": "rows are made anew from the data's files, and no loader is kept",
    "dataloaders_save_path": "rows are made anew from the data's files, and no loader is kept",
    "dataset_save_path": "rows are made anew from the data's files; nothing that was pickled is loaded",
}
WITHOUT_EFFECT_ON_LLMS = {
    "shuffle": "the rows of an LLM are in another order in every epoch",
    "enable_scaler": "with enable_amp an LLM computes in bfloat16, which needs no scaling of gradients",
    "require_pow": "it belongs to RecBole's embedding loss",
}
log = logging.getLogger(__name__)


def run(model: str | type, dataset: str, *, config_files: str | Sequence[str | Path] = (), **settings: Any) -> Run:
    """Train and evaluate one model.

    Args:
        model: name of a model or preset, ours or RecBole's, or a class.
        dataset: name of the data set.
        config_files: YAML files of settings, later ones win.
        **settings: settings by name, such as ``train_sample_size=1024``; they win over files.

    Returns:
        The run; its folder is ``saved/<model>-<dataset>-<time>``.

    Raises:
        InputError: a wrong setting or file.

    Example:
        >>> import recbole_llm
        >>> recbole_llm.run("Popp", "ml-100k")
        Traceback (most recent call last):
        ...
        recbole_llm.errors.InputError: ...
        >>> pop = recbole_llm.run("Pop", "ml-100k", show_progress=False)  # doctest: +SKIP
        >>> pop.metrics["ndcg@10"]  # doctest: +SKIP
    """
    files = split_names(config_files) if isinstance(config_files, str) else list(config_files)
    return run_config(model, dataset, files, settings)


def run_config(
    model: str | type | None, dataset: str | None, files: Sequence[str | Path], settings: Mapping[str, Any]
) -> Run:
    """See :func:`run`; model and data set may also be named in the files or the settings."""
    with console_log():
        config = Config(model, dataset, files, settings)
        check_resolved([config.resolution])
        for line in unread(settings, [config.resolution]):
            log.warning(line)
        found = with_report(run_one(config, keep_model=True))
        if is_teacher(config):
            teach(found)
        return found


def with_report(run: Run) -> Run:
    """Write a run's ``report.html`` and its plots into its folder, as those of several runs are; returns the run."""
    on_main(lambda: write_report([run], table_of([run]), run.folder) and None)
    return run


def run_one(
    config: Config,
    label: str | None = None,
    few_shot: bool | None = None,
    beside: Run | None = None,
    keep_model: bool = False,
    *,
    with_test: bool = True,
    on_score: OnScore | None = None,
    teacher: Teacher | None = None,
) -> Run:
    """Train and evaluate one model and leave its run folder.

    Args:
        config: the resolved config.
        label: the model's name in the table.
        few_shot: whether ``train_sample_size`` applies; by default to LLM models, and to all with ``sample_for: all``.
        beside: another model's run that this one is compared to.
        keep_model: whether the run holds the model in memory, instead of reading it from the folder when asked.
        with_test: whether test rows are evaluated, and not validation rows alone.
        on_score: told epoch and validation score of every validated epoch; may raise to end the run.
        teacher: what one of RecBole's models learns from beside its rows.

    Of several processes all take part in a run of an LLM model, and the main one alone in one of RecBole's.

    Raises:
        InputError: a setting that shows to be wrong only now; or other rows than those ``beside`` was evaluated on.
    """
    options: dict[str, Any] = {"with_test": with_test, "on_score": on_score}
    how = (config, label or config["model"], few_shot, beside, keep_model)
    if config.is_llm:
        return _run(*how, **options)
    made: list[Run] = []  # with the model, which the other processes do without

    def compute() -> tuple[Path, RunResult, str]:
        made.append(_run(*how, **options, teacher=teacher))
        return made[0].folder, made[0].result, made[0].rows_digest

    folder, result, digest = on_main(compute)
    return made[0] if made else Run(folder, config, result, digest)


def _run(
    config: Config,
    label: str,
    few_shot: bool | None,
    beside: Run | None,
    keep_model: bool,
    teacher: Teacher | None = None,
    **options: Any,
) -> Run:
    """See :func:`run_one`."""
    few_shot = is_few_shot(config) if few_shot is None else few_shot
    plan = plan_of(config, label, few_shot)  # before the folder is there, in which nothing was measured
    folder = RunFolder(config, label)
    with run_log(folder.log, config["state"]), _callbacks(config) as callbacks, in_run(plan) as course:
        _log_settings(config, folder)
        callbacks.start(Started(folder.path.name, folder.path, config.settings(), config["callback_project"]))
        started = time.perf_counter()
        init_seed(config["seed"], config["reproducibility"])
        course.begin(PREPARE)
        rows = load_rows(config, few_shot)
        log.info(rows.whole)
        digest = rows.evaluated()
        if beside is not None:
            check_row_digests(label, digest, beside.result.model, beside.rows_digest)
        protocol = protocol_of(config)
        _log_processes(config, label)
        options["callbacks"] = callbacks
        if config.is_llm:
            model, stages = train_llm(config, rows, folder, protocol, **options)
        else:
            model, stages = train_classic(config, rows, folder, protocol, teacher=teacher, **options)
        result = on_main(lambda: _write(config, label, folder, protocol, rows, model, stages, digest, started))
        course.end_stage()
        on_main(lambda: write_timing(folder.path, config, few_shot, course.measured()))
        callbacks.metrics = _flat(result)
        if not keep_model:
            return Run(folder.path, config, result, digest)
        if config.is_llm:
            read_llm_run(folder.path, config, model)  # the state that is evaluated and kept is that of the last stage
        return Run(
            folder.path, config, result, digest, Trained(config, model.eval(), rows, Reranking.read(folder.path))
        )


def _log_settings(config: Config, folder: RunFolder) -> None:
    log.info("%s on %s, run folder %s", config.effective_point(), config["dataset"], folder.path)
    log.info("Settings that differ from their defaults: %s", _told(config))
    log.info(str(config))  # text once: each handler would make it anew
    for key, instead in (WITHOUT_EFFECT | (WITHOUT_EFFECT_ON_LLMS if config.is_llm else {})).items():
        if key in config.resolution.user:
            log.warning("%s has no effect: %s", key, instead)


def _log_processes(config: Config, label: str) -> None:
    """Say which of several processes train."""
    if (count := launched().count) > 1 and config.is_llm:
        shares = ", which share the LLM's weights in training" if asks_for_shards() else ""
        log.info("%s is trained and evaluated by %d processes%s", label, count, shares)
        if (precision := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
            log.warning("mixed_precision=%s has no effect; set llm_dtype or enable_amp", precision)
    elif count > 1:
        log.info("%s is trained by the main process; the other %d wait for it", label, count - 1)


def _write(
    config: Config,
    label: str,
    folder: RunFolder,
    protocol: Protocol,
    rows: Rows,
    model: Any,
    stages: Stages,
    digest: str,
    started: float,
) -> RunResult:
    """Write what a run's folder holds of every model; returns the run's line in a table."""
    last, evaluations = stages[-1]
    result = replace(last, model=label, wall_seconds=time.perf_counter() - started, revision=revision())
    folder.write("metrics.json", {"valid": result.valid, "test": result.test, "summary": result.summary})
    for warning in result.warnings:
        log.warning("%s: %s", label, warning)
    folder.write(FACTS, {"rows": digest, "environment": versions(), **run_facts(result)})
    folder.write(DATA, rows.whole.reading.to_dict())
    Numbering.of(rows, not config.is_llm, digest, texts_built_of(config)).write(folder.path)
    if config.is_llm and not model.reads_items:
        write_card(folder.path, model, result, write_prompt(folder.path, model, rows.test.inter_feat))
    for split, evaluation in evaluations.items():
        protocol.write(folder.path, split, evaluation)
    if len(stages) > 1:
        lines = [replace(line, model=f"{label} after {line.model}") for line, _ in stages]
        lines[-1] = replace(lines[-1], wall_seconds=result.wall_seconds)
        log.info("stages:\n%s", write_stage_table(folder, lines, len(rows.valid)), extra=SHOWN)
    split, found = ("test", result.test) if result.test else ("validation", result.valid)
    log.info("%s %s: %s", label, split, "    ".join(f"{name} : {value:.4f}" for name, value in found.items()))
    return result


def _callbacks(config: Config) -> Callbacks:
    """The callbacks of a run; with several processes only the main one has any."""
    return make_callbacks(config) if process().is_main else Callbacks()


def _flat(result: RunResult) -> dict[str, float]:
    """All numbers of a run by ``<split>/<metric>``."""
    parts = {"valid": result.valid, "test": result.test, "summary": result.summary}
    return {f"{part}/{name}": value for part, own in parts.items() for name, value in own.items() if value is not None}


def is_teacher(config: Config) -> bool:
    """Whether a run's rankings are to teach a classic model."""
    return config.is_llm and config["distill_into"] is not None


def teach(run: Run) -> Run:
    """Train the classic model that a run's rankings teach, as a run of its own, and note it in the teacher's folder.

    Args:
        run: run of an LLM recommender with ``distill_into``.

    Returns:
        The classic model's run; :attr:`Run.student` of the teacher.
    """
    lessons, note, config = lessons_of(run.model, run.folder, run.result.model)
    label = student_label(config, run.result.model)
    student = run_one(config, label, few_shot=False, beside=run, teacher=Teacher(lessons, note))
    if process().is_main:
        write_json(run.folder / STUDENT, {"folder": student.folder.name})
    run.__dict__.pop("student", None)
    return student


def _told(config: Config) -> str:
    """The settings that differ from their defaults, in one line."""
    changed = config.resolution.differences()
    return ", ".join(f"{key} = {value}" for key, (value, _) in sorted(changed.items())) or "none"


def check_row_digests(label: str, digest: str, other: str, other_digest: str) -> None:
    """Refuse two runs of one table that are evaluated on different rows.

    Args:
        label: name of a model.
        digest: digest of its rows, :meth:`recbole_llm.data.rows.Rows.evaluated`.
        other: name of the model before it.
        other_digest: digest of that one's rows.

    Raises:
        InputError: they differ.
    """
    if digest != other_digest:
        raise other_rows("eval_args", label, other)
