"""A comparison of two models in a table: the difference and its significance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEVEL = 0.05  # a corrected p-value below is a difference


@dataclass(frozen=True)
class Compared:
    """A model of a table compared with the baseline; the statistics are those of ``recbole_llm.evaluation.Comparison``.

    Attributes:
        model: name in the table.
        baseline: name in the table.
        metric: by which they are compared; the difference is positive where the model is better.
        difference: mean over users and seeds, model - baseline.
        users: 95 % interval over users, of these very runs.
        seeds_and_users: 95 % interval over seeds and users; None where a model has one seed only.
        p: two-sided; over seeds and users where there are several seeds, else over users.
        p_holm: corrected for all comparisons of the table.
        detectable: the smallest true difference that would be found four times out of five.
        n_users: users compared.
        n_seeds: seeds of the model and of the baseline.
    """

    model: str
    baseline: str
    metric: str
    difference: float
    users: tuple[float, float]
    seeds_and_users: tuple[float, float] | None
    p: float
    p_holm: float
    detectable: float
    n_users: int
    n_seeds: tuple[int, int]

    @property
    def is_significant(self) -> bool:
        """Whether the corrected p-value is below 5 %."""
        return self.p_holm < LEVEL

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Compared:
        """Inverse of ``dataclasses.asdict``."""
        pairs = ("users", "seeds_and_users", "n_seeds")
        return cls(**{**facts, **{name: None if facts[name] is None else tuple(facts[name]) for name in pairs}})
