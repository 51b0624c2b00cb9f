"""Training of RecBole's own models by RecBole's own trainers, on the rows of all models."""

from __future__ import annotations

import copy
import inspect
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from recbole.utils import ModelType, get_trainer, init_seed

from recbole_llm.callbacks import Callbacks, Scalars
from recbole_llm.classic.by_labels import by_labels
from recbole_llm.classic.epochs import KeptEpochs
from recbole_llm.data.loaders import eval_loader, train_loader
from recbole_llm.data.rows import Rows, rows_digest
from recbole_llm.disk import told_by_system
from recbole_llm.errors import InputError
from recbole_llm.evaluation import protocol_of
from recbole_llm.evaluation.collector import install_collector
from recbole_llm.hashing import hash_arrays, hash_json
from recbole_llm.recbole_checkpoints import load_checkpoint
from recbole_llm.settings.models import needs_recbole_package
from recbole_llm.settings.recommender_checks import TRAIN_STAGES, check_train_stage, no_catalogue

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_llm.settings.config import Config

log = logging.getLogger(__name__)


def fit_classic(
    config: Config,
    rows: Rows,
    checkpoint: Path,
    on_score: Callable[[int, float], None] | None = None,
    build: Callable[..., Any] | None = None,
    callbacks: Callbacks | None = None,
    unfinished: Path | None = None,
) -> Any:
    """Train a RecBole model and leave its best epoch in the trainer.

    The order of seeding and building is that of RecBole's quick start, so that the same settings give the same model,
    but where histories are masked at random (BERT4Rec): RecBole draws from the same numbers to count operations.

    Args:
        config: the model's config.
        rows: its rows.
        checkpoint: the ``.pth`` file RecBole writes its best epoch to; the models of earlier stages go beside it.
        on_score: told epoch (from 1) and validation score of every validated epoch of the last stage; what it raises
            ends the training.
        build: gives the untrained model, in place of the config's own class, of the config and the rows.
        callbacks: who gets the scalars of the last stage, beside TensorBoard.
        unfinished: folder for the epochs of a training that is not finished, from which it goes on; None for none.

    Returns:
        RecBole's trainer, its ``model`` in the state of the best epoch.

    Raises:
        InputError: the model ranks nothing, lacks a package, a column or a setting, or failed inside RecBole.
    """
    if config["MODEL_TYPE"] == ModelType.DECISIONTREE:
        raise no_catalogue(config["model"])
    with _errors_of_recbole(config, checkpoint.with_name("traceback.txt")):
        *earlier, last = _stages(config, checkpoint.parent)
        states = None if unfinished is None else unfinished / f"epochs-{_fingerprint(config, rows)}"
        for stage in earlier:
            before = None if states is None else states.with_name(f"{states.name}-{stage['train_stage']}")
            trainer = _fit_stage(stage, rows, checkpoint, build or _build, before, is_last=False)
            trainer.save_pretrained_model(trainer.pretrain_epochs - 1, _stage_file(checkpoint.parent, stage))
        trainer = _fit_stage(last, rows, checkpoint, build or _build, states, on_score, callbacks)
    if checkpoint.exists():  # a trainer with nothing to validate on may save none and keeps its last epoch
        restore(trainer.model, checkpoint)
    return trainer


def _fit_stage(
    config: Config,
    rows: Rows,
    checkpoint: Path,
    build: Callable[..., Any],
    states: Path | None,
    on_score: Callable[[int, float], None] | None = None,
    callbacks: Callbacks | None = None,
    is_last: bool = True,
) -> Any:
    train_data, valid_data = train_loader(config, rows), eval_loader(config, rows, "valid")
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    model = build(config, rows)
    log.info(model)
    trainer_class = getattr(model, "trainer_class", None) or get_trainer(config["MODEL_TYPE"], config["model"])
    trainer = trainer_class(config, model)
    trainer.checkpoint_dir, trainer.saved_model_file = str(checkpoint.parent), str(checkpoint)
    install_collector(trainer)
    if callbacks:
        trainer.tensorboard = Scalars(trainer.tensorboard, callbacks)
    options = {"saved": True, "show_progress": config["show_progress"]}
    if states is not None and KeptEpochs.serves(trainer, train_data):
        n_epochs = None if is_last else trainer.pretrain_epochs
        KeptEpochs(states, trainer, train_data, on_score).fit(checkpoint, valid_data, n_epochs, **options)
        return trainer
    told: dict[str, Any] = {}
    if on_score is not None and "callback_fn" in inspect.signature(trainer.fit).parameters:
        told["callback_fn"] = lambda epoch, score: on_score(epoch + 1, float(score))
    elif on_score is not None:
        log.info("%s's trainer does not report its epochs, so trials cannot be stopped early.", config["model"])
    trainer.fit(train_data, valid_data, **options, **told)
    return trainer


def best_epoch(trainer: Any, is_validated: bool) -> int:
    """The epoch, from 1, whose weights one of RecBole's trainers has left; the last without a validation.

    Args:
        trainer: has trained.
        is_validated: whether there were validation rows.
    """
    epochs, step = len(trainer.train_loss_dict), trainer.eval_step
    validations = epochs // step if is_validated and step > 0 else 0
    best: int = (validations - trainer.cur_step) * step if validations else epochs
    return best


def rows_facts(rows: Rows) -> dict[str, Any]:
    """What training reads of the data: every column of training rows, users, items and knowledge; validation rows."""
    data = rows.train
    tables = {name: getattr(data, name) for name in data.feat_name_list}
    read = {
        name: {column: hash_arrays(table[column].numpy()) for column in table.columns} for name, table in tables.items()
    }
    return {"train": read, "valid": rows_digest(rows.valid)}


def _fingerprint(config: Config, rows: Rows) -> str:
    """Of the settings that a training depends on and of its rows."""
    return hash_json({"settings": config.learning_facts(), **rows_facts(rows)})[:16]


def _build(config: Config, rows: Rows) -> Any:
    model_class = by_labels(config.model_class) if protocol_of(config).has_labels else config.model_class
    return model_class(config, rows.train).to(config["device"])


def load_classic(config: Config, rows: Rows, checkpoint: Path) -> Any:
    """A RecBole model as :func:`fit_classic` left it in its checkpoint, in eval mode."""
    model = _build(_stages(config, checkpoint.parent)[-1], rows)
    restore(model, checkpoint)
    return model.eval()


def restore(model: AbstractRecommender, checkpoint: Path) -> None:
    """Give a RecBole model the weights, and what else it learned, of a checkpoint."""
    state = load_checkpoint(checkpoint, map_location=model.device)
    model.load_state_dict(state["state_dict"])
    model.load_other_parameter(state.get("other_parameter"))


# ---------------------------------------------------------------------------------------------------------- stages


def _stages(config: Config, folder: Path) -> list[Any]:
    """The config of each stage from ``train_stage`` to the last; for most models the config as it is."""
    names = TRAIN_STAGES.get(config["model"])
    if names is None:
        return [config]
    model, first = config["model"], config["train_stage"]
    check_train_stage(model, config)
    stages: list[Any] = []
    for name in names[names.index(first) :]:
        stage = copy.copy(config)
        stage.final_config_dict = {**config.final_config_dict, "train_stage": name}
        if stages:
            stage["pre_model_path"] = _stage_file(folder, stages[-1])
        stages.append(stage)
    return stages


def _stage_file(folder: Path, stage: Any) -> str:
    return str(folder / f"{stage['train_stage']}.pth")


# ---------------------------------------------------------------------------------------------------------- errors


@contextmanager
def _errors_of_recbole(config: Config, record: Path) -> Iterator[None]:
    """One line for what RecBole's code stumbles over: a missing package, column or setting, a loss that is no number.

    Args:
        config: the model's config.
        record: file for the traceback.
    """
    try:
        yield
    except InputError:
        raise
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0].replace("_", "-")
        raise needs_recbole_package(config["model"], package) from error
    except Exception as error:
        code = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if _package(frame).startswith("recbole")]
        if _package(code[-1]) != "recbole":
            raise  # a fault of ours is no mistake of the user
        if (told := told_by_system(error)) is not None:
            raise told from error  # of a full disk or a closed folder, no fault of RecBole's either
        try:
            record.write_text(traceback.format_exc(), encoding="utf-8")
            kept = f"traceback in {record}"
        except OSError as closed:
            kept = f"its traceback cannot be written to {record}: {closed.strerror}"
        line = f"{Path(code[-1].f_code.co_filename).name}, line {code[-1].f_lineno}"
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(
            f"RecBole's {config['model']} failed on dataset '{config['dataset']}' with {what} ({line}; "
            f"{kept}); check the columns and settings that it needs",
            kind="data",
        ) from error


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]
