"""One run, or several models side by side under one judge."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole.utils import ModelType, init_seed

from recbole_llm.classic.training import fit_classic, load_classic
from recbole_llm.data.loaders import eval_loader, train_loader
from recbole_llm.data.rows import Rows, load_rows
from recbole_llm.errors import InputError
from recbole_llm.evaluation import Evaluation, Protocol, check_together, protocol_of
from recbole_llm.experiment.llm_run import read_llm_run, write_llm_run, write_stage_table
from recbole_llm.experiment.run_folder import RunFolder, new_folder
from recbole_llm.logs import console_log, run_log
from recbole_llm.model.base import LLMRecommender
from recbole_llm.report import TINY_LLM_NOTE, ResultTable, RunResult, data_hash, versions
from recbole_llm.settings.command import Command, check_prefixes, help_text, parse_command
from recbole_llm.settings.config import Config, settings_for, union_load_col
from recbole_llm.trainer.llm_trainer import LLMTrainer

REUSED_NOTE = "the time is without what an earlier run had computed: "
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """One finished run.

    Attributes:
        result: its line in the table.
        valid: what it did on the validation rows, or None without any.
        test: what it did on the test rows.
        rows: digest of the evaluated (user, target) pairs.
        folder: the run folder.
    """

    result: RunResult
    valid: Evaluation | None
    test: Evaluation
    rows: str
    folder: Path

    def as_recbole(self, config: Config) -> dict[str, Any]:
        """The result under the keys RecBole's quick start uses."""
        metric = protocol_of(config).valid_metric
        return {
            "best_valid_score": self.valid.metrics[metric] if self.valid else None,
            "valid_score_bigger": config["valid_metric_bigger"],
            "best_valid_result": self.valid.metrics if self.valid else None,
            "test_result": self.test.metrics,
        }


def run_recbole_llm(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train and judge one model, in the shape of RecBole's ``run_recbole``.

    Args:
        model: name of a model, ours or RecBole's.
        dataset: name of the data set.
        config_file_list: config files.
        config_dict: settings; they win over files.

    Returns:
        ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``, ``test_result``; metrics are unrounded.

    Raises:
        InputError: a wrong setting or file.
    """
    with console_log():
        config = Config(model, dataset, list(config_file_list or []), config_dict)
        return run_one(config).as_recbole(config)


def load_data_and_model(folder: str | Path) -> tuple[Config, Any, Any, Any, Any, Any]:
    """A trained model and its data, in the shape of RecBole's function of this name.

    Args:
        folder: a run folder, ``saved/<model>-<dataset>-<time>``.

    Returns:
        Its config, the model in eval mode, the data set, and the loaders of its training, validation and test rows
        (None where there are none). ``model.full_sort_predict(interaction)`` scores items: ``[rows, items]``.

    Raises:
        InputError: no run folder, or one whose weights or data are missing or others.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder} is no run folder: it holds no config.yaml; give one that a run left")
    config = Config(config_file_list=[folder / "config.yaml"])
    rows = load_rows(config, _is_few_shot(config))
    if config.is_llm:
        model = _build_llm(config, rows)
        protocol_of(config).prepare(rows, model)
        model.eval()
        read_llm_run(folder, config, model)
    else:
        model = load_classic(config, rows, folder / "model.pth")
    loaders = (train_loader(config, rows), eval_loader(config, rows, "valid"), eval_loader(config, rows, "test"))
    return config, model, rows.whole, *loaders


def run_one(
    config: Config, label: str | None = None, few_shot: bool | None = None, beside: Outcome | None = None
) -> Outcome:
    """Train and judge one model and leave its run folder.

    Args:
        config: the resolved config.
        label: the model's name in the table.
        few_shot: whether ``train_sample_size`` applies; by default to LLM models, and to all with ``sample_for: all``.
        beside: another model's run that this one is compared to.

    Raises:
        InputError: a setting that shows to be wrong only now; or other rows than those ``beside`` was judged on.
    """
    label = label or config["model"]
    few_shot = _is_few_shot(config) if few_shot is None else few_shot
    folder = RunFolder(config, label)
    with run_log(folder.log, config["state"]):
        log.info("%s on %s, run folder %s", config.effective_point(), config["dataset"], folder.path)
        log.info(config)
        started = time.perf_counter()
        init_seed(config["seed"], config["reproducibility"])
        rows = load_rows(config, few_shot)
        log.info(rows.whole)
        judged = rows.judged()
        if beside is not None and judged != beside.rows:
            raise InputError(
                f"{label} would be judged on other rows than {beside.result.model}: give all models the same "
                "eval_args, intervals and sample sizes"
            )
        protocol = protocol_of(config)
        stages = (_run_llm if config.is_llm else _run_classic)(config, rows, folder, protocol)

        def result_of(trained: _Trained, name: str) -> RunResult:
            return RunResult(
                model=name,
                dataset=config["dataset"],
                point=config.effective_point() if config.is_llm else "",
                seed=config["seed"],
                train_rows=trained.train_rows,
                epochs=trained.epochs,
                best_epoch=trained.best_epoch,
                wall_seconds=time.perf_counter() - started if trained is stages[-1] else None,
                n_rows=len(rows.test),
                folder=str(folder.path),
                test=trained.test.metrics,
                valid=trained.valid.metrics if trained.valid else {},
                notes=(*protocol.notes(), *trained.notes),
            )

        trained = stages[-1]
        result, valid, test = result_of(trained, label), trained.valid, trained.test
        folder.write("metrics.json", {"valid": result.valid, "test": result.test})
        for split, evaluation in (("valid", valid), ("test", test)):
            if evaluation is not None:
                protocol.write(folder.path, split, evaluation)
        if len(stages) > 1:
            results = [result_of(stage, f"{label} after {stage.name}") for stage in stages]
            log.info("stages:\n%s", write_stage_table(folder, results, len(rows.valid)))
        log.info("%s test: %s", label, "    ".join(f"{name} : {value:.4f}" for name, value in result.test.items()))
    return Outcome(result, valid, test, judged, folder.path)


def _is_few_shot(config: Config) -> bool:
    """Whether ``train_sample_size`` applies where nothing else is said."""
    return config.is_llm or config["sample_for"] == "all"


@dataclass(frozen=True)
class _Trained:
    """A model after a stage of its training."""

    name: str
    valid: Evaluation | None
    test: Evaluation
    train_rows: int
    epochs: int
    best_epoch: int
    notes: tuple[str, ...]


def _run_classic(config: Config, rows: Rows, folder: RunFolder, protocol: Protocol) -> list[_Trained]:
    protocol.prepare(rows)
    trainer = fit_classic(config, rows, folder.path / "model.pth")
    valid_data, test_data = (eval_loader(config, rows, phase) for phase in ("valid", "test"))
    valid, test = (
        protocol.complete(protocol.evaluate(trainer, data, config["show_progress"])) if data else None
        for data in (valid_data, test_data)
    )
    epochs, step = len(trainer.train_loss_dict), trainer.eval_step
    validations = epochs // step if valid and step > 0 else 0
    best = (validations - trainer.cur_step) * step if validations else epochs
    return [_Trained("training", valid, test, len(rows.train), epochs, best, ())]


def _build_llm(config: Config, rows: Rows) -> LLMRecommender:
    init_seed(config["seed"], config["reproducibility"])
    return config.model_class(config, rows.whole).to(config["device"])


def _run_llm(config: Config, rows: Rows, folder: RunFolder, protocol: Protocol) -> list[_Trained]:
    model = _build_llm(config, rows)
    protocol.prepare(rows, model)
    log.info(model)
    trainer = LLMTrainer(config, model)
    valid_data = eval_loader(config, rows, "valid")
    trainer.fit(train_loader(config, rows), valid_data, show_progress=config["show_progress"])
    notes = (TINY_LLM_NOTE,) if config["llm_path"] == "tiny" else ()
    if model.stages.reused:
        notes += (REUSED_NOTE + ", ".join(model.stages.reused),)

    def judged(place: int) -> _Trained:
        """The model as it stands, which is that after the stage at this place; epochs count from the first stage on."""
        valid = protocol.complete(trainer.judge_valid(valid_data, config["show_progress"])) if valid_data else None
        test = protocol.complete(trainer.judge(eval_loader(config, rows, "test"), config["show_progress"]))
        n_rows = len(rows.train) if trainer.n_train_rows is None else trainer.n_train_rows
        if not trainer.tuned:
            return _Trained("no training", valid, test, n_rows, 0, 0, notes)
        stage, before = trainer.tuned[place], sum(len(tuned.history) for tuned in trainer.tuned[:place])
        epochs, best = before + len(stage.history), before + stage.best_epoch
        return _Trained(stage.stage, valid, test, n_rows, epochs, best, notes)

    stages = [judged(len(trainer.tuned) - 1)]
    write_llm_run(folder, trainer, rows.test.inter_feat)
    for place in reversed(range(len(trainer.tuned) - 1)):
        trainer.restore(trainer.tuned[place], valid_data)
        stages.insert(0, judged(place))
    return stages


# ---------------------------------------------------------------------------------------------- side by side


def run_models(command: Command, words: Sequence[str] = ()) -> tuple[ResultTable, Path]:
    """Run all models of a command on the same rows and write their table.

    Args:
        command: what to run.
        words: the command line, to be written beside the results.

    Returns:
        The table, and the folder with ``results.md``, ``results.csv`` and ``results.json``.

    Raises:
        InputError: a wrong setting; or a model's settings give it other rows than the first model's.
    """
    configs = _make_configs(command)
    outcomes: list[Outcome] = []
    for config, label, few_shot in _plan(configs):
        if few_shot and outcomes[-1].result.train_rows <= config["train_sample_size"]:
            log.info("%s is left out: there are no more rows than that.", label)
            continue
        outcomes.append(run_one(config, label, few_shot, outcomes[0] if outcomes else None))
    table = ResultTable(
        tuple(outcome.result for outcome in outcomes),
        environment=versions(),
        data_hash={command.dataset: data_hash(sorted(Path(configs[0]["data_path"]).glob(f"{command.dataset}.*")))},
        command=shlex.join(["recbole-llm", *words]),
        title=protocol_of(configs[0]).title,
    )
    folder = new_folder(Path(configs[0]["checkpoint_dir"]), f"results-{command.dataset}")
    table.write(folder)
    return table, folder


def _make_configs(command: Command) -> list[Config]:
    if not command.models:
        raise InputError("no model given; add --model=<name>, such as --model=BIGRec or --model=Pop,SASRec,BIGRec")
    if not command.dataset:
        raise InputError("no data set given; add --dataset=<name>, such as --dataset=ml-100k")
    check_prefixes(command.per_model, command.models)
    configs = [Config(model, command.dataset, None, settings_for(model, command)) for model in command.models]
    check_together([protocol_of(config) for config in configs])
    columns = union_load_col(configs)
    for config in configs:
        config["load_col"] = columns
    return configs


def _plan(configs: Sequence[Config]) -> list[tuple[Config, str, bool | None]]:
    """The runs of a command: every model once, RecBole's sequential ones also on the LLM's few-shot rows."""
    sizes = [config["train_sample_size"] for config in configs if config.is_llm]
    runs: list[tuple[Config, str, bool | None]] = []
    for config in configs:
        runs.append((config, config["model"], None))
        if config.is_llm or config["sample_for"] == "llm":
            continue
        config["train_sample_size"] = config["train_sample_size"] or next(filter(None, sizes), None)
        learns_rows = config["MODEL_TYPE"] == ModelType.SEQUENTIAL or protocol_of(config).has_labels
        few_shot = learns_rows and config["train_sample_size"] is not None
        if few_shot and config["sample_for"] == "both":
            runs.append((config, f"{config['model']} ({config['train_sample_size']} rows)", True))
    return runs


def _refuse_several_processes() -> None:
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise InputError(f"WORLD_SIZE: the launcher started {processes} processes, a run is one; use --num_processes=1")


def main(argv: Sequence[str] | None = None) -> int:
    """The command: print one table of all models, or one line of error.

    Returns:
        Exit status: 0, or 2 for a mistake in the input.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    words = list(sys.argv[1:] if argv is None else argv)
    started = time.perf_counter()
    try:
        _refuse_several_processes()
        command = parse_command(words)
        if command.help:
            print(help_text())
            return 0
        with console_log():
            table, folder = run_models(command, words)
    except InputError as error:
        print(f"recbole-llm: error: {error}", file=sys.stderr)
        return 2
    print(table.text())
    print(f"results: {folder}")
    print(f"time: {time.perf_counter() - started:.0f} s")
    return 0
