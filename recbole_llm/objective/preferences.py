"""The values of the axis ``preference``: losses of the log-ratios of right and wrong answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Contrasts:
    """Right and wrong answers of some rows, as log-ratios of the tuned LLM and its reference.

    Attributes:
        chosen: [m], of the right answers.
        rejected: [m, k], of the wrong ones.
        mask: bool [m, k], True where there is one.
        across: bool [m, m * k], True where a row's right answer may stand against another row's wrong one; None where
            nobody asks.
        prompts: [m, d], vectors of the rows' prompts; None if all are equal or not needed.
    """

    chosen: Tensor
    rejected: Tensor
    mask: Tensor
    across: Tensor | None = None
    prompts: Tensor | None = None


class PreferenceObjective(ABC):
    """A loss of contrasts: a mean over the rows that have any."""

    name: ClassVar[str]
    """Value of the config key ``preference``."""
    across_rows: ClassVar[bool] = False
    """Whether rows are set against one another's answers, so that a step cannot be taken row by row."""
    compares_prompts: ClassVar[bool] = True
    """Whether it is then told how alike the rows' prompts are."""

    @abstractmethod
    def loss(self, contrasts: Contrasts, beta: float, temperature: float) -> Tensor:
        """The mean, a scalar.

        Args:
            contrasts: contrasts of some rows.
            beta: strength.
            temperature: temperature of the weights by likeness of prompts.
        """


class OwnContrasts(PreferenceObjective):
    """A loss of each row's own wrong answers: the function of :mod:`recbole_llm.objective.preference` of its name."""

    loss_name: ClassVar[str]

    def loss(self, contrasts: Contrasts, beta: float, temperature: float) -> Tensor:
        """See :class:`PreferenceObjective`."""
        from recbole_llm.objective import preference

        found: Tensor = getattr(preference, self.loss_name)(contrasts.chosen, contrasts.rejected, beta, contrasts.mask)
        return found


class DPOPreference(OwnContrasts):
    """Pairs of a right and a wrong answer: :func:`recbole_llm.objective.dpo_loss`."""

    name, loss_name = "dpo", "dpo_loss"


class SPRecPreference(DPOPreference):
    """Pairs whose wrong answer is the model's own, in rounds (SPRec, arXiv 2412.09243)."""

    name = "sprec"


class SDPOPreference(OwnContrasts):
    """The right answer among several wrong ones: :func:`recbole_llm.objective.sdpo_loss`."""

    name, loss_name = "sdpo", "sdpo_loss"


class DMPOPreference(OwnContrasts):
    """The right answer against the mean of several wrong ones: :func:`recbole_llm.objective.dmpo_loss`."""

    name, loss_name = "dmpo", "dmpo_loss"


class RPOPreference(PreferenceObjective):
    """Each right answer of a step against each wrong one, by likeness of prompts: :func:`.rpo_loss`."""

    name = "rpo"
    across_rows = True

    def loss(self, contrasts: Contrasts, beta: float, temperature: float) -> Tensor:
        """See :class:`PreferenceObjective`."""
        from recbole_llm.objective.rpo import rpo_loss, rpo_weights

        if contrasts.across is None:
            raise ValueError("rpo needs to know which answers may stand against which")
        rejected = contrasts.rejected.flatten()
        if contrasts.prompts is None:
            weights = rejected.new_ones(contrasts.across.shape)
        else:
            of_rejected = contrasts.prompts.repeat_interleave(contrasts.rejected.shape[1], dim=0)
            weights = rpo_weights(contrasts.prompts, of_rejected, temperature, contrasts.across)
        found: Tensor = rpo_loss(contrasts.chosen, rejected, weights, beta, contrasts.across)
        return found


class RPODiagonalPreference(PreferenceObjective):
    """A row's own wrong answers for the most part, those of all others equally: :func:`.rpo_diagonal_loss`."""

    name = "rpo_diagonal"
    across_rows = True
    compares_prompts = False

    def loss(self, contrasts: Contrasts, beta: float, temperature: float) -> Tensor:
        """See :class:`PreferenceObjective`."""
        from recbole_llm.objective.rpo import rpo_diagonal_loss

        found: Tensor = rpo_diagonal_loss(contrasts.chosen, contrasts.rejected, beta, mask=contrasts.across)
        return found
