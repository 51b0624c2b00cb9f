"""Training and evaluation within a run: RecBole's models after training, LLM models after each stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from recbole_llm.callbacks import Callbacks, Scalars
from recbole_llm.classic.auxiliary import auxiliary_rows
from recbole_llm.classic.taught import Lessons, taught
from recbole_llm.classic.training import best_epoch, fit_classic
from recbole_llm.data.loaders import eval_loader, train_loader
from recbole_llm.data.rows import Rows
from recbole_llm.distributed import on_main
from recbole_llm.evaluation import Evaluation, Protocol, spread_warnings
from recbole_llm.experiment.audit import memorisation
from recbole_llm.experiment.examples import write_examples
from recbole_llm.experiment.length_curve import write_length_curve
from recbole_llm.experiment.llm_run import write_llm_run
from recbole_llm.experiment.run_folder import RunFolder
from recbole_llm.experiment.trained import build_llm
from recbole_llm.hashing import hash_arrays
from recbole_llm.model.base import LLMRecommender
from recbole_llm.registry import load_class
from recbole_llm.report import TINY_LLM_NOTE, RunResult
from recbole_llm.settings.config import Config
from recbole_llm.stages import StageStore
from recbole_llm.timeline import EVALUATE, TRAIN, timeline
from recbole_llm.trainer.llm_trainer import LLMTrainer
from recbole_llm.trainer.tuning import TuningResult

SAME_FOR_ALL = ("Pop",)  # models that give every row one answer by design
REUSED_NOTE = "Wall time excludes stages reused from an earlier run: "
log = logging.getLogger(__name__)

Evaluations = dict[str, Evaluation]  # by "valid" and "test"; no "valid" where there are no such rows
OnScore = Callable[[int, float], None]  # told epoch and validation score of every validated epoch; may raise to end it
Stages = list[tuple[RunResult, Evaluations]]  # the model after each stage of its training, the last one stands


@dataclass(frozen=True)
class Teacher:
    """What a classic model learns from beside its rows.

    Attributes:
        lessons: an LLM's lists.
        note: what the table says of it.
    """

    lessons: Lessons
    note: str

    def build(self, config: Config, rows: Rows) -> Any:
        """The untrained model."""
        return taught(config.model_class)(config, rows.train, self.lessons).to(config["device"])

    def facts(self, config: Config) -> dict[str, Any]:
        """What tells this training from others, as plain data."""
        lessons = self.lessons
        lists = hash_arrays(lessons.items.numpy(), lessons.list_of.numpy())
        return {"settings": config.settings(), "lists": lists, "weight": lessons.weight, "decay": lessons.decay}


@dataclass(frozen=True)
class _Given:
    """What a training is given.

    Attributes:
        config: the resolved config.
        rows: the rows of the run.
        folder: folder of the run.
        protocol: how rows are evaluated.
    """

    config: Config
    rows: Rows
    folder: RunFolder
    protocol: Protocol

    def line(self, evaluations: Evaluations, **facts: Any) -> RunResult:
        """A line of a table, without its wall time.

        Args:
            evaluations: evaluations of the model as it stands.
            **facts: ``model`` (here the name of the stage), ``train_rows``, ``epochs``, ``best_epoch``, ``notes``, the
                ``warnings`` of training, ``valid_loss``, ``auxiliary_rows``; ``known``, what the untuned LLM knows.
        """
        config, rows = self.config, self.rows
        notes = (*self.protocol.notes(), *facts.pop("notes", ()))
        split = "test" if "test" in evaluations else "valid"
        last, n_rows = evaluations[split], len(rows.test if split == "test" else rows.valid)
        warnings, n_answers = list(facts.pop("warnings", ())), int(rows.whole.item_num) - 1  # the padding is none
        if config["model"] not in SAME_FOR_ALL:
            warnings += spread_warnings(last.summary, n_rows, n_answers)
        loss = facts.pop("valid_loss", None)
        summary = {**last.summary, **facts.pop("known", {}), **({} if loss is None else {"valid_loss": loss})}
        return RunResult(
            **facts,
            dataset=config["dataset"],
            point=config.effective_point() if config.is_llm else "",
            seed=config["seed"],
            n_rows=n_rows,
            folder=str(self.folder.path),
            test=dict(evaluations["test"].metrics) if "test" in evaluations else {},
            valid=dict(evaluations["valid"].metrics) if "valid" in evaluations else {},
            summary=summary,
            warnings=tuple(warnings),
            notes=notes,
        )


def train_classic(
    config: Config,
    rows: Rows,
    folder: RunFolder,
    protocol: Protocol,
    *,
    with_test: bool = True,
    on_score: OnScore | None = None,
    callbacks: Callbacks | None = None,
    teacher: Teacher | None = None,
) -> tuple[Any, Stages]:
    """Train one of RecBole's models and evaluate it.

    Args:
        config: the resolved config.
        rows: the rows of the run.
        folder: folder of the run; the checkpoint and the losses go there.
        protocol: how rows are evaluated.
        with_test: whether test rows are.
        on_score: see :data:`OnScore`.
        callbacks: who gets the scalars of the training, beside TensorBoard.
        teacher: what it learns from beside its rows.

    Returns:
        The model, and the one stage of its training.
    """
    protocol.prepare(rows)
    build = teacher.build if teacher else None
    splits = ("valid", "test") if with_test else ("valid",)
    # Made first: rows that cannot be evaluated are refused before hours of training.
    loaders = {split: loader for split in splits if (loader := eval_loader(config, rows, split))}
    timeline().begin(TRAIN)
    facts = teacher.facts(config) if teacher else config.settings()
    with StageStore(Path(config["checkpoint_dir"]) / "stages").unfinished(facts) as states:
        trainer = fit_classic(config, rows, folder.path / "model.pth", on_score, build, callbacks, states)
    timeline().begin(EVALUATE)
    found = {split: protocol.evaluate(trainer, loader, config["show_progress"]) for split, loader in loaders.items()}
    evaluations = protocol.finish(trainer, found)
    protocol.keep(folder.path)
    if hasattr(trainer.model, "fixed_length"):
        write_length_curve(folder, trainer, protocol, loaders.get("valid", loaders["test"]), trainer.model)
    if "test" in evaluations:
        write_examples(folder.path, config, trainer.model, rows, evaluations["test"])
    losses = [{"epoch": 1 + epoch, "train_loss": _plain(loss)} for epoch, loss in trainer.train_loss_dict.items()]
    folder.write("history.json", losses)
    told: dict[str, Any] = {"model": "training", "train_rows": len(rows.train), "epochs": len(losses)}
    told["best_epoch"] = best_epoch(trainer, "valid" in evaluations)
    told["notes"] = (teacher.note,) if teacher else ()
    return trainer.model, [(_Given(config, rows, folder, protocol).line(evaluations, **told), evaluations)]


def _plain(loss: Any) -> Any:
    """A loss of one of RecBole's trainers as plain data: several models have a tuple of them."""
    return [float(part) for part in loss] if isinstance(loss, tuple) else float(loss)


def train_llm(
    config: Config,
    rows: Rows,
    folder: RunFolder,
    protocol: Protocol,
    *,
    with_test: bool = True,
    on_score: OnScore | None = None,
    callbacks: Callbacks | None = None,
) -> tuple[Any, Stages]:
    """Train an LLM recommender and evaluate it after each stage of its training.

    Args:
        config: the resolved config.
        rows: the rows of the run.
        folder: folder of the run; it gets what :func:`recbole_llm.experiment.llm_run.write_llm_run` writes.
        protocol: how rows are evaluated.
        with_test: whether test rows are evaluated; otherwise only the last stage is reported.
        on_score: see :data:`OnScore`.
        callbacks: who gets the scalars of the training, beside TensorBoard.

    Returns:
        The model, and the stages; an untuned LLM has one too.
    """
    model = build_llm(config, rows)
    protocol.prepare(rows, model)
    log.info(model)
    with model.stages.unfinished(config.settings()):
        trainer = cast(type[LLMTrainer], load_class(model.trainer))(config, model)
        if callbacks:
            trainer.tensorboard = Scalars(trainer.tensorboard, callbacks)
        return model, _fit_and_evaluate(_Given(config, rows, folder, protocol), trainer, with_test, on_score)


def _fit_and_evaluate(given: _Given, trainer: LLMTrainer, with_test: bool, on_score: OnScore | None) -> Stages:
    """See :func:`train_llm`."""
    config, rows, protocol, model = given.config, given.rows, given.protocol, trainer.model
    valid_data, test_data = (eval_loader(config, rows, split) for split in ("valid", "test"))
    trainer.fit(train_loader(config, rows), valid_data, show_progress=config["show_progress"], callback_fn=on_score)
    asked = config["beyond_accuracy"] and not model.reads_items  # what answers no prompt is asked for no title
    known = on_main(lambda: memorisation(model, rows)) if asked else {}
    stages: Stages = []  # the main process's; the others know none

    def evaluate(index: int, valid: Evaluation | None) -> None:
        """Evaluate the model as it stands, that is after the tuning stage of this index."""
        found = {} if valid is None else {"valid": valid}
        if with_test:
            found["test"] = protocol.evaluate(trainer, test_data, config["show_progress"])
        loss = trainer.loss_of(trainer.tuned[index] if trainer.tuned else None)

        def tell() -> None:
            evaluations = protocol.finish(trainer, found)
            facts = {**_stage_facts(trainer, index, len(rows.train)), "notes": _notes(model), "known": known}
            stages.insert(0, (given.line(evaluations, **facts, valid_loss=loss), evaluations))

        on_main(tell)

    evaluate(len(trainer.tuned) - 1, trainer.valid_evaluation)
    on_main(lambda: _write(given, trainer, valid_data or test_data, stages[0][1]))
    for index in reversed(range(len(trainer.tuned) - 1 if with_test else 0)):
        evaluate(index, trainer.restore(trainer.tuned[index], valid_data, config["show_progress"]))
    return stages


def _notes(model: LLMRecommender) -> tuple[str, ...]:
    """What is to be known of a line: that the LLM is a toy, and what its time does not count."""
    notes = (TINY_LLM_NOTE,) if model.config["llm_path"] == "tiny" else ()
    return (*notes, REUSED_NOTE + ", ".join(model.stages.reused)) if model.stages.reused else notes


def _stage_facts(trainer: LLMTrainer, index: int, n_rows: int) -> dict[str, Any]:
    """What a line of the table says of the training up to a stage; epochs are counted from the first stage on.

    Args:
        trainer: it has fitted its model.
        index: index of the stage in ``trainer.tuned``; -1 without training.
        n_rows: rows to train on, where the trainer knows of no others.
    """
    n_rows = n_rows if trainer.n_train_rows is None else trainer.n_train_rows
    facts: dict[str, Any] = {"model": "no training", "train_rows": n_rows, "epochs": 0, "best_epoch": 0}
    tuned = trainer.tuned[: index + 1]
    if tuned:
        stage, before = tuned[-1], sum(len(earlier.history) for earlier in tuned[:-1])
        facts |= {"model": stage.stage, "epochs": before + len(stage.history)}
        facts |= {"best_epoch": before + stage.best_epoch}
        if not trainer.model.reads_items:
            facts["train_tokens"] = _n_tokens(tuned)
    facts["warnings"] = tuple(line for one in tuned for line in one.warnings)
    facts["auxiliary_rows"] = auxiliary_rows(trainer.model.stages)
    return facts


def _write(given: _Given, trainer: LLMTrainer, data: Any, evaluations: Evaluations) -> None:
    """Write what the folder holds of the trained model.

    Args:
        given: what the training was given.
        trainer: it has fitted its model.
        data: loader of the rows that are evaluated by length of history, where a policy cuts histories.
        evaluations: evaluations of the model after its last stage.
    """
    folder, model = given.folder, trainer.model
    given.protocol.keep(folder.path)
    if model.history_cut is not None:
        write_length_curve(folder, trainer, given.protocol, data, model.history_cut)
    write_llm_run(folder, trainer, given.rows.test.inter_feat)
    if "test" in evaluations:
        write_examples(folder.path, given.config, model, given.rows, evaluations["test"])


def _n_tokens(tuned: Sequence[TuningResult]) -> int:
    """Tokens that stages were trained on, those of prompts included; a run that found a stage counts them too."""
    return sum(round(record["seconds"] * record["tokens_per_second"]) for stage in tuned for record in stage.history)
