"""The interface of the axis ``objective``: weight and loss of each answer token.

All of them are weighted means: the sum of weight * loss over the sum of weights, over the answer tokens of one role in
one optimiser step. Weights have no gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from recbole_llm.declare import Declared, Settings
from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from recbole_llm.objective.legal_tokens import LegalTokens
    from recbole_llm.objective.tokens import AnswerTokens


class TokenObjective(Declared, ABC):
    """Says what the loss of an answer's tokens is in fine-tuning."""

    name: ClassVar[str]
    """Value of the config key ``objective``."""
    reads_legal: ClassVar[bool] = False
    """Whether it reads the softmax among tokens that continue a title: every answer must then be one."""

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Refuse settings that do not go together, before anything is loaded.

        Raises:
            InputError: they do not.
        """
        if cls.reads_legal:
            _check_titles(cls.name, settings)

    @property
    def reads_effects(self) -> bool:
        """Whether it reads what the history adds to the logits: each answer is scored without a history as well."""
        return False

    @abstractmethod
    def terms(self, tokens: AnswerTokens) -> tuple[Tensor, Tensor]:
        """Loss of each answer token, and what it counts in the mean, without a gradient. Returns: both [n]."""

    @abstractmethod
    def known_weights(self, lengths: np.ndarray, branching: np.ndarray) -> np.ndarray | None:
        """Sum of the weights of each answer's tokens, where it is known before the forward pass.

        Args:
            lengths: int64 [answers], tokens, EOS included; 0 for a row without this answer.
            branching: int64 [answers], of these the ones with several legal tokens; read by those who read legal ones.

        Returns:
            [answers]; None where the LLM decides.
        """

    def facts(self) -> dict[str, Any]:
        """What the result of training depends on, as JSON values."""
        return {"objective": self.name, **asdict(cast(Any, self))}

    @property
    def start_tau(self) -> float:
        """Temperature of the softmax among legal tokens at the first step."""
        return 1.0

    def next_tau(self, statistics: FirstTokens, tau: float) -> float:
        """Temperature after ``tau`` by the logits of a step; most keep it."""
        return tau

    @property
    def adapts(self) -> bool:
        """Whether :meth:`next_tau` reads anything."""
        return False

    @property
    def adapts_before(self) -> bool:
        """Whether :meth:`next_tau` gives the temperature of the step that it reads, and not of the one after it."""
        return False


@dataclass
class FirstTokens:
    """Logits of the first branching token of each answer of an optimiser step.

    Attributes:
        right: float, of the right tokens.
        legal: float, of all legal ones, pooled.
        counts: legal tokens of each answer's.
    """

    right: list[float]
    legal: list[float]
    counts: list[int]

    @classmethod
    def together(cls, parts: Sequence[FirstTokens]) -> FirstTokens:
        """The logits of several processes, one after another."""
        found = cls([], [], [])
        for part in parts:
            found.right += part.right
            found.legal += part.legal
            found.counts += part.counts
        return found

    def add(self, tokens: AnswerTokens) -> None:
        """Note those of one forward pass."""
        import torch

        legal = legal_of(tokens)
        branching = (legal.counts > 1).nonzero()[:, 0]
        own = tokens.numbers()[branching]
        first = torch.ones_like(own, dtype=torch.bool)
        first[1:] = own[1:] != own[:-1]
        chosen = branching[first]
        self.right += (legal.right[chosen] * legal.tau).tolist()
        self.counts += legal.counts[chosen].tolist()
        self.legal += (legal.scaled[torch.isin(legal.token, chosen)] * legal.tau).tolist()


def legal_of(tokens: AnswerTokens) -> LegalTokens:
    """The legal tokens, which an objective that reads them is given."""
    if tokens.legal is None:
        raise ValueError("the tokens that continue a title were not read")
    return tokens.legal


def _check_titles(name: str, settings: Settings) -> None:
    """Refuse what trains or searches beyond the catalogue's titles where the loss is among them.

    Raises:
        InputError: the grounding, its probabilities, or distilled answers that are no titles.
    """
    grounding = settings["grounding"]
    if grounding not in ("constrained", "likelihood"):
        raise InputError(
            "objective",
            f"{name} tunes among tokens that continue a title, and grounding={grounding} searches all text; set "
            "--grounding=constrained or likelihood, with --title_renormalize=True",
            kind="conflict",
        )
    if not settings["title_renormalize"]:
        raise InputError(
            "title_renormalize",
            f"objective={name} tunes probabilities among tokens that continue a title, so these are to rank; set "
            "--title_renormalize=True",
            kind="conflict",
        )
    if settings["curriculum"] != "none" and not settings["distil_on_trie"]:
        raise InputError(
            "distil_on_trie",
            f"objective={name} knows titles alone, and raw distilled answers may be none; set --distil_on_trie=True, "
            "or --curriculum=none",
            kind="conflict",
        )
