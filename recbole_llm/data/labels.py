"""Labels of rows: whether a user liked, or clicked, the target."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from recbole_llm.declare import Settings
from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

log = logging.getLogger(__name__)


def label_column(config: Settings) -> str | None:
    """The column of the labels that are to be predicted; None where targets are to be ranked instead."""
    return config["LABEL_FIELD"] if config["eval_args"]["mode"]["test"] == "labeled" else None


def label_sources(config: Settings) -> list[str]:
    """The columns that labels are read or made from: a missing value is not replaced by a mean there."""
    column = label_column(config)
    return list(config["threshold"] or ([column] if column else []))


def row_labels(dataset: Dataset) -> np.ndarray:
    """The label of each row: 1 for a like, 0 for none. Returns: float32 [rows]."""
    labels: np.ndarray = dataset.inter_feat[dataset.label_field].numpy()
    return labels.astype(np.float32)


def label_rule(config: Settings) -> str:
    """What counts as a like, in words: ``rating >= 4``."""
    for column, least in (config["threshold"] or {}).items():
        return f"{column} >= {least:g}"
    return f"{config['LABEL_FIELD']} = 1"


def missing_likes(column: str) -> InputError:
    """The refusal of rows whose files do not say what a user liked before."""
    return InputError(
        "benchmark_filename",
        f"the files have no column '{column}' that says what a user liked before; add it, or leave benchmark_filename "
        "out",
        kind="data",
    )


def missing_label(config: Settings, columns: Mapping[str, str]) -> str:
    """What to do about interactions without labels.

    Args:
        config: the model's config.
        columns: names and types of what the files hold; empty if that is not known.
    """
    label, rating = config["LABEL_FIELD"], config["RATING_FIELD"] or "rating"
    what = f"LABEL_FIELD: {config['model']} predicts clicks, and '{config['dataset']}' has no column '{label}' for them"
    if columns and rating not in columns:
        return f"{what} and no '{rating}' to make it of; it has {', '.join(columns)}: choose data with ratings"
    return f"{what}; name the column, or make one by a threshold: --threshold=\"{{'{rating}': 4}}\""


def check_labels(config: Settings, parts: Mapping[str, Dataset]) -> None:
    """Refuse labels that are not 0 and 1, and evaluated rows that AUC has no value for; the log says how many are 1.

    Args:
        config: the model's config.
        parts: the rows, by ``train``, ``valid`` and ``test``.

    Raises:
        InputError: what is wrong with them.
    """
    shares = []
    for name, part in parts.items():
        labels = row_labels(part)
        found = sorted(set(labels.tolist()))
        if other := set(found) - {0.0, 1.0}:
            column = config["LABEL_FIELD"]
            raise InputError(
                f"LABEL_FIELD: column '{column}' holds {max(other):g}, not only 0 and 1; make labels by a threshold: "
                f"--threshold=\"{{'{column}': {max(other):g}}}\"",
                kind="data",
            )
        if name != "train" and len(found) == 1 and "auc" in map(str.lower, config["metrics"]):
            raise InputError(
                f"threshold: with {label_rule(config)} all {len(labels)} {name} rows have the label {found[0]:g}, for "
                "which AUC has no value; set another threshold, or evaluate more rows",
                kind="data",
            )
        if found:
            shares.append(f"{labels.mean():.1%} of {len(labels):,} {name} rows")
    log.info("A like is %s: %s.", label_rule(config), ", ".join(shares))
