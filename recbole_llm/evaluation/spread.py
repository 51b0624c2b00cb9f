"""Diversity of a model's answers over rows: a model that answers everybody alike has not learned."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

DISTINCT, TOP = "distinct_answers", "top_answer"
MOST_TOP = 0.3
LEAST_DISTINCT = 0.01


def answer_spread(answers: np.ndarray) -> dict[str, float]:
    """How many different answers there are, and how often the most frequent one is given.

    Args:
        answers: what each row was answered, such as the item ranked first, [rows]; 0 or an empty text where it got no
            answer.

    Returns:
        ``distinct_answers``, the number of different answers over that of rows, and ``top_answer``, the share of rows
        that got the most frequent one; empty without rows.

    Example:
        >>> answer_spread(np.array([7, 7, 3, 0]))
        {'distinct_answers': 0.5, 'top_answer': 0.5}
    """
    if not len(answers):
        return {}
    counts = np.unique(answers[answers.astype(bool)], return_counts=True)[1]
    return {DISTINCT: len(counts) / len(answers), TOP: float(counts.max(initial=0)) / len(answers)}


def spread_warnings(spread: Mapping[str, float], n_rows: int, n_answers: int) -> list[str]:
    """What is wrong with the answers, a line each.

    Args:
        spread: result of :func:`answer_spread`; nothing is said of an empty one.
        n_rows: rows that were answered.
        n_answers: different answers that there could be, such as the number of items: of two items, no more than two
            are asked for.

    Returns:
        Up to two lines: one answer takes more than 30 % of the rows; there are fewer different answers than 1 % of the
        rows.

    Example:
        >>> spread_warnings({"distinct_answers": 0.005, "top_answer": 0.2}, n_rows=1000, n_answers=2000)
        ['5 different answers to 1000 rows, fewer than 1 %']
    """
    found = []
    if spread.get(TOP, 0.0) > MOST_TOP:
        found.append(f"one answer is given to {spread[TOP]:.0%} of {n_rows} rows, more than {MOST_TOP:.0%}")
    if DISTINCT in spread and (distinct := round(spread[DISTINCT] * n_rows)) < LEAST_DISTINCT * min(n_rows, n_answers):
        found.append(f"{distinct} different answers to {n_rows} rows, fewer than 1 %")
    return found
