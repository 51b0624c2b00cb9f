"""States of histories by a frozen sequential recommender, the input of instance-wise gates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from recbole_llm.errors import InputError
from recbole_llm.stages import stage_seed

if TYPE_CHECKING:
    from torch import Tensor

Histories = Sequence[Sequence[int]]
"""Item ids of each row's history, oldest first."""
StatesOf = Callable[[Histories], np.ndarray]
"""Gives the states of histories, float32 [rows, d]; zeros where nothing is known of one."""


class SequenceStates:
    """States of rows, each of the row's own history.

    Args:
        compute: gives the states of histories; one that remembers what it computed makes :meth:`prepare` worthwhile.

    Example:
        >>> states = SequenceStates(lambda histories: np.array([[float(len(own))] for own in histories]))
        >>> states.of([[1, 2], [3]]).tolist()
        [[2.0], [1.0]]
    """

    def __init__(self, compute: StatesOf) -> None:
        self._compute = compute

    def prepare(self, histories: Histories) -> None:
        """Compute the states of the rows that will be trained on, all at once instead of batch by batch."""
        self._compute(histories)

    def of(self, histories: Histories) -> Tensor:
        """States of rows. Returns: float32 [rows, d]."""
        import torch

        return torch.from_numpy(self._compute(histories))


class PermutedStates(SequenceStates):
    """A control experiment: every history gets the state of another training row's, always the same one.

    Args:
        compute: see :class:`SequenceStates`.
        seed: seed of the run; the other row is drawn by it and the history.

    Example:
        >>> states = PermutedStates(lambda histories: np.array([[float(sum(own))] for own in histories]), seed=0)
        >>> states.prepare([[1], [2]])  # the training rows
        >>> states.of([[1], [2]]).tolist()
        [[2.0], [1.0]]
    """

    def __init__(self, compute: StatesOf, seed: int) -> None:
        super().__init__(compute)
        self._seed = stage_seed(seed, "other history")
        self._trained: list[tuple[int, ...]] = []

    def prepare(self, histories: Histories) -> None:
        """See :class:`SequenceStates`; the other rows are drawn from these."""
        super().prepare(histories)
        self._trained = list(dict.fromkeys(map(tuple, histories)))

    def of(self, histories: Histories) -> Tensor:
        """States of other rows. Returns: float32 [rows, d].

        Raises:
            InputError: :meth:`prepare` has seen fewer than two different histories.
        """
        return super().of([self._other(tuple(history)) for history in histories])

    def _other(self, history: tuple[int, ...]) -> tuple[int, ...]:
        if len(self._trained) < 2:
            raise InputError(
                "ilora_permuted: needs epochs > 0 and at least two different training histories: before training "
                "there are no other rows' gates to use",
                kind="conflict",
            )
        generator = np.random.default_rng([self._seed, *history])
        while (other := self._trained[generator.integers(len(self._trained))]) == history:
            pass
        return other
