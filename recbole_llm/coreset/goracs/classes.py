"""The budget of each class of rows, in the proportions of the validation rows (GORACS, arXiv 2506.04015, alg. 2)."""

from __future__ import annotations

import logging
from fractions import Fraction

import numpy as np

from recbole_llm.coreset.tf_dcon import proportional_quotas

log = logging.getLogger(__name__)


def class_budgets(train_labels: np.ndarray, valid_labels: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to select from each class, in the shares that the classes have among the validation rows.

    Of two classes the larger label's share is rounded, half to even; of more, remainders are compared. What a class
    cannot give, the others do, and rows of classes that no validation row has come last, both with a warning.

    Args:
        train_labels: ``[n_train]``.
        valid_labels: ``[n_valid]``, at least one.
        budget: at most n_train.

    Returns:
        Classes of the validation rows, ascending, and int64 budgets; their sum is less than ``budget`` where all rows
        of these classes are not enough.
    """
    classes, sizes = np.unique(valid_labels, return_counts=True)
    if len(classes) == 2:
        larger = round(Fraction(budget * int(sizes[1]), int(sizes.sum())))
        budgets = np.array([budget - larger, larger])
    else:
        budgets = proportional_quotas(sizes, budget)
    available = np.array([np.count_nonzero(train_labels == label) for label in classes])
    for index in np.flatnonzero(budgets > available):
        log.warning(
            "GORACS: class %s has %d training rows for a budget of %d; the rest comes from other classes",
            *(classes[index], available[index], budgets[index]),
        )
    budgets = np.minimum(budgets, available)
    while (missing := min(budget, available.sum()) - budgets.sum()) > 0:
        room = budgets < available
        more = np.zeros_like(budgets)
        more[room] = proportional_quotas(sizes[room], missing)
        budgets = np.minimum(budgets + more, available)
    return classes, budgets
