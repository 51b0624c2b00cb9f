"""Training of RecBole's own models by RecBole's own trainers, on the rows of the judge."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from recbole.utils import ModelType, get_trainer, init_seed

from recbole_llm import compat
from recbole_llm.data.rows import Rows, eval_loader, train_loader
from recbole_llm.errors import InputError
from recbole_llm.trainer.judge import install_collector

log = logging.getLogger(__name__)


def fit_classic(config: Any, rows: Rows, checkpoint: Path) -> Any:
    """Train a RecBole model and leave its best epoch in the trainer.

    The order of seeding and building is that of RecBole's quick start, so that the same settings give the same model.

    Args:
        config: the model's config.
        rows: its rows.
        checkpoint: the ``.pth`` file RecBole writes its best epoch to.

    Returns:
        RecBole's trainer, its ``model`` in the state of the best epoch.
    """
    if config["MODEL_TYPE"] == ModelType.DECISIONTREE:
        raise InputError(f"model '{config['model']}' ranks no catalogue (a decision tree); leave it out of --model")
    train_data, valid_data = train_loader(config, rows), eval_loader(config, rows, "valid")
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    model = config.model_class(config, rows.train).to(config["device"])
    log.info(model)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.saved_model_file = str(checkpoint)
    install_collector(trainer)
    trainer.fit(train_data, valid_data, saved=True, show_progress=config["show_progress"])
    restore_best(trainer, checkpoint)
    return trainer


def restore_best(trainer: Any, checkpoint: Path) -> None:
    """Load the best epoch's weights; a trainer that saved none (nothing to validate on) keeps its last."""
    if not checkpoint.exists():
        return
    state = compat.load_checkpoint(checkpoint, map_location=trainer.device)
    trainer.model.load_state_dict(state["state_dict"])
    trainer.model.load_other_parameter(state.get("other_parameter"))
