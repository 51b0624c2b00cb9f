"""RecBole's function names: ``run_recbole_llm`` and ``load_data_and_model``, and the command's ``main``.

New code is better served by :func:`recbole_llm.run`, :func:`recbole_llm.compare` and :func:`recbole_llm.load_run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.experiment.command import main

if TYPE_CHECKING:
    from recbole_llm.settings.config import Config

__all__ = ["load_data_and_model", "main", "run_recbole_llm"]


def run_recbole_llm(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    saved: bool = True,
) -> dict[str, Any]:
    """Train and evaluate one model, in the shape of RecBole's ``run_recbole``.

    Args:
        model: name of a model, ours or RecBole's.
        dataset: name of the data set.
        config_file_list: config files.
        config_dict: settings; they win over files.
        saved: RecBole's; the run folder with the model is written in any case.

    Returns:
        ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``, ``test_result``; metrics are unrounded.

    Raises:
        InputError: a wrong setting or file.
    """
    from recbole_llm.experiment.run import run_config

    run = run_config(model, dataset, list(config_file_list or []), config_dict or {})
    return {
        "best_valid_score": run.valid_score,
        "valid_score_bigger": run.config["valid_metric_bigger"],
        "best_valid_result": run.valid_metrics or None,
        "test_result": run.metrics,
    }


def load_data_and_model(folder: str | Path) -> tuple[Config, Any, Any, Any, Any, Any]:
    """A trained model and its data, in the shape of RecBole's function of this name.

    Args:
        folder: a run folder, ``saved/<model>-<dataset>-<time>``.

    Returns:
        Its config, the model in eval mode, the data set, and the loaders of its training, validation and test rows
        (None if there are none). ``model.full_sort_predict(interaction)`` scores items: ``[rows, items]``.

    Raises:
        InputError: no run folder, or one whose weights or data are missing or others.
    """
    from recbole_llm.data.loaders import eval_loader, train_loader
    from recbole_llm.experiment.trained import config_of, load_trained

    config = config_of(Path(folder))
    trained = load_trained(Path(folder), config)
    rows = trained.rows
    loaders = (train_loader(config, rows), eval_loader(config, rows, "valid"), eval_loader(config, rows, "test"))
    return config, trained.model, rows.whole, *loaders
