"""Finished runs compared with a baseline, over their seeds and users."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from recbole_llm.evaluation import Comparison, compare_two_level, holm, protocol_of
from recbole_llm.experiment.student import student_label
from recbole_llm.report import Compared
from recbole_llm.settings.config import Config
from recbole_llm.settings.models import recbole_models

if TYPE_CHECKING:
    from recbole_llm.experiment.run_record import Run

log = logging.getLogger(__name__)

Gains = Mapping[int, tuple[np.ndarray, np.ndarray]]  # by seed: ids and gains of users, [users] each


def compare_runs(runs: Sequence[Run], baseline: str) -> tuple[Compared, ...]:
    """Compare each model with a baseline; p-values are corrected for all of these comparisons (Holm).

    Args:
        runs: runs of all models and seeds, evaluated on the same rows.
        baseline: name of one of the models, as the table has it.

    Returns:
        A comparison for every other model, in the order of the runs; none where a model has fewer than two users.
    """
    protocol = protocol_of(leading_config(runs))
    gains: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for run in runs:
        rows = protocol.read(run.folder, "test", ["user_id", *protocol.outcome])
        own = user_gains(rows["user_id"], protocol.row_gains(rows))
        gains.setdefault(run.result.model, {})[int(run.result.seed or 0)] = own
    if len(next(iter(gains[baseline].values()))[0]) < 2:
        return ()
    found = {model: _compare(own, gains[baseline]) for model, own in gains.items() if model != baseline}
    corrected = holm([one.p for one in found.values()])
    return tuple(
        Compared(
            model=model,
            baseline=baseline,
            metric=protocol.compared_metric,
            p_holm=p_holm,
            **{name: getattr(one, name) for name in _SHARED},
        )
        for (model, one), p_holm in zip(found.items(), corrected, strict=True)
    )


def leading_config(runs: Sequence[Run]) -> Config:
    """Config whose ``valid_metric`` leads the table: the first LLM model's, as RecBole's models differ in defaults."""
    return next((run.config for run in runs if run.config.is_llm), runs[0].config)


_SHARED = ("difference", "users", "seeds_and_users", "p", "detectable", "n_users", "n_seeds")


def user_gains(users: pd.Series, gains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What users got out of their rows, scaled so that the mean over users is that over rows.

    Args:
        users: ids, of each row.
        gains: float64 [rows].

    Returns:
        The ids in their order, and the gains, [users] each; a user of several rows stands for all of them.
    """
    codes, ids = pd.factorize(users, sort=True)
    return np.asarray(ids), np.bincount(codes, gains) * (len(ids) / len(gains))


def _compare(own: Gains, other: Gains) -> Comparison:
    first, second = ([gains for _, gains in one.values()] for one in (own, other))
    ids, others = (next(iter(one.values()))[0].tolist() for one in (own, other))
    return compare_two_level(first, second, users=(ids, others), seeds=(list(own), list(other)))


def find_baseline(wanted: str, runs: Sequence[Run]) -> str:
    """The model that the others are compared with: the one asked for, else the first of RecBole's, else the first.

    A model of RecBole's that was taught another one's rankings is not the usual one.

    Args:
        wanted: a name in the table, or nothing.
        runs: runs of the table; the one asked for is not among them if it was skipped for want of rows.
    """
    labels = [run.result.model for run in runs]
    taught = {student_label(run.config, teacher) for run in runs for teacher in labels}
    own = (run.result.model for run in runs if run.config["model"] in recbole_models())
    usual = next((label for label in own if label not in taught), labels[0])
    if wanted and wanted not in labels:
        log.warning("baseline: %s was skipped; the others are compared with %s.", wanted, usual)
        return usual
    return wanted or usual
