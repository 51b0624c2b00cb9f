"""The values of the axis ``objective``; sources and formulas are those of the functions of this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import numpy as np

from recbole_llm.declare import Setting, Settings
from recbole_llm.errors import InputError
from recbole_llm.objective.token_objective import FirstTokens, TokenObjective, legal_of

if TYPE_CHECKING:
    from torch import Tensor

    from recbole_llm.objective.tokens import AnswerTokens


@dataclass(frozen=True, repr=False)
class MSLObjective(TokenObjective):
    """The softmax of tuning sees only tokens that continue a title: :func:`recbole_llm.objective.msl_loss`.

    Attributes:
        tau: temperature, or the first one of an adaptive temperature.
        temperature: ``fixed``; or ``adaptive``, ``recbole_llm.objective.adaptive_temperature`` by every step's logits.
        eta: adaptive: probability of the right first token that is aimed at.
        tau_momentum: adaptive: weight of a new estimate.
        tau_update: adaptive: whether a step's logits give the temperature of the next step (``after``), or its own
            (``before``), as in the authors' code.
        denominator: mean over all ``answer`` tokens, or ``branching`` ones; by default the latter where adaptive.
        times_tau: whether the loss is multiplied by the temperature; by default where adaptive.

    Example:
        >>> MSLObjective(temperature="adaptive").facts()["denominator"]
        'branching'
    """

    tau: Annotated[
        float | None,
        Setting("temperature of the logits, or the first one", above=0, null="is 1, and 1.5 where it is adaptive"),
    ] = None
    temperature: Annotated[
        str,
        Setting("temperature by step", choices={"fixed": "msl_tau", "adaptive": "by the first tokens' logits"}),
    ] = "fixed"
    eta: Annotated[float, Setting("adaptive: probability that the right first token is to have", above=0, below=1)] = (
        0.25
    )
    tau_momentum: Annotated[float, Setting("adaptive: weight of a new estimate", above=0, high=1)] = 0.05
    tau_update: Annotated[
        str,
        Setting(
            "adaptive: step whose temperature the logits of a step give",
            choices={"after": "the next", "before": "its own, the authors' code, at the cost of one more forward pass"},
        ),
    ] = "after"
    denominator: Annotated[
        str | None,
        Setting(
            "tokens of the mean",
            choices={"answer": "all", "branching": "those with several continuations"},
            null="is answer, and branching where the temperature is adaptive",
        ),
    ] = None
    times_tau: Annotated[
        bool | None, Setting("multiply the loss by the temperature", null="does where it is adaptive")
    ] = None

    name: ClassVar[str] = "msl"
    reads_legal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapts_before and not self.adapts:
            raise InputError(
                "msl_tau_update",
                "before is about msl_temperature: adaptive (got fixed); set it, or leave msl_tau_update out",
                kind="conflict",
            )

    def facts(self) -> dict[str, Any]:
        """See :class:`TokenObjective`; defaults that depend on the temperature are resolved."""
        own = {"objective": self.name, "tau": self.start_tau, "temperature": self.temperature}
        own |= {"denominator": self._denominator, "times_tau": self._times_tau}
        own |= {"eta": self.eta, "tau_momentum": self.tau_momentum} if self.adapts else {}
        return own | ({"tau_update": self.tau_update} if self.adapts_before else {})

    @property
    def adapts(self) -> bool:
        """See :class:`TokenObjective`."""
        return self.temperature == "adaptive"

    @property
    def adapts_before(self) -> bool:
        """See :class:`TokenObjective`."""
        return self.tau_update == "before"

    @property
    def start_tau(self) -> float:
        """See :class:`TokenObjective`."""
        return self.tau if self.tau is not None else (1.5 if self.adapts else 1.0)

    @property
    def _denominator(self) -> Literal["answer", "branching"]:
        found = self.denominator or ("branching" if self.adapts else "answer")
        return cast(Literal["answer", "branching"], found)

    @property
    def _times_tau(self) -> bool:
        return self.adapts if self.times_tau is None else self.times_tau

    def terms(self, tokens: AnswerTokens) -> tuple[Tensor, Tensor]:
        """See :class:`TokenObjective`."""
        from recbole_llm.objective.msl import msl_terms

        return msl_terms(legal_of(tokens), self._denominator, self._times_tau)

    def known_weights(self, lengths: np.ndarray, branching: np.ndarray) -> np.ndarray | None:
        """See :class:`TokenObjective`."""
        return lengths if self._denominator == "answer" else branching

    def next_tau(self, statistics: FirstTokens, tau: float) -> float:
        """See :class:`TokenObjective`."""
        import torch

        from recbole_llm.objective.msl import adaptive_temperature

        if not self.adapts or not statistics.counts:
            return tau
        right, legal = (torch.tensor(values, dtype=torch.float64) for values in (statistics.right, statistics.legal))
        n_root = sum(statistics.counts) / len(statistics.counts)
        return float(adaptive_temperature(right, legal, n_root, tau, self.eta, self.tau_momentum))


@dataclass(frozen=True, repr=False)
class BEARObjective(TokenObjective):
    """MSL with tokens weighted by the threshold of a beam search: :func:`recbole_llm.objective.bear_loss`.

    Attributes:
        tau: temperature.
        k: beams whose threshold counts; the run's own by default.
        xi: width of the sigmoid of the margin.
        weight: lambda_B; 0 is MSL's mean over branching tokens.
        form: ``weights``, as in the authors' code; or ``margin``.
    """

    tau: Annotated[float, Setting("temperature of the logits", above=0)] = 1.0
    k: Annotated[
        int | None, Setting("beams of the search whose threshold counts", low=1, high=1024, null="is num_beams")
    ] = None
    xi: Annotated[float, Setting("width of the sigmoid of the margin, in log-probability", above=0)] = 1.0
    weight: Annotated[float, Setting("weight of the margin", low=0, note="0 is msl's mean over branching tokens")] = 1.0
    form: Annotated[
        str,
        Setting(
            "effect of the margin",
            choices={
                "weights": "tokens above the threshold count more, the authors' code",
                "margin": "tokens below it cost more, ours",
            },
        ),
    ] = "weights"

    name: ClassVar[str] = "bear"
    reads_legal: ClassVar[bool] = True

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> BEARObjective:
        """The objective of a run's settings; the number of beams is the search's."""
        found = super().from_settings(settings)
        return found if found.k is not None else replace(found, k=settings["num_beams"])

    @property
    def start_tau(self) -> float:
        """See :class:`TokenObjective`."""
        return self.tau

    def terms(self, tokens: AnswerTokens) -> tuple[Tensor, Tensor]:
        """See :class:`TokenObjective`."""
        from recbole_llm.objective.bear import Form, bear_terms

        if self.k is None:
            raise ValueError("k is not set: from_settings takes the run's num_beams")
        return bear_terms(legal_of(tokens), self.k, self.xi, self.weight, cast(Form, self.form))

    def known_weights(self, lengths: np.ndarray, branching: np.ndarray) -> np.ndarray | None:
        """See :class:`TokenObjective`."""
        return branching if self.form == "margin" or self.weight == 0 else None


@dataclass(frozen=True, repr=False)
class CFTObjective(TokenObjective):
    """What the history adds to the logits must predict the answer too: :func:`recbole_llm.objective.cft_loss`.

    Attributes:
        beta: weight of an answer's last token; the first has 1.
        weight: lambda_C, of the second term; 0 scores nothing without a history.
    """

    beta: Annotated[float, Setting("weight of an answer's last token; the first has 1", low=0, high=1)] = 0.25
    weight: Annotated[float, Setting("weight of the loss of the history's effect on the logits", low=0)] = 0.1

    name: ClassVar[str] = "cft"

    @property
    def reads_effects(self) -> bool:
        """See :class:`TokenObjective`."""
        return self.weight > 0

    def terms(self, tokens: AnswerTokens) -> tuple[Tensor, Tensor]:
        """See :class:`TokenObjective`."""
        from recbole_llm.objective.cft import position_weights

        if tokens.log_probs is None:
            raise ValueError("the log-probabilities of the answers were not read")
        losses = -tokens.log_probs
        if tokens.effects is not None:
            losses = losses - self.weight * tokens.effects
        return losses, position_weights(tokens.numbers(), self.beta).to(losses)

    def known_weights(self, lengths: np.ndarray, branching: np.ndarray) -> np.ndarray | None:
        """See :class:`TokenObjective`; an evenly falling sequence sums to its length times its mean."""
        return np.where(lengths > 1, lengths * (1 + self.beta) / 2, lengths)

    @classmethod
    def check(cls, settings: Settings) -> None:
        """See :class:`TokenObjective`."""
        if settings["candidates"]:
            raise InputError(
                "objective",
                "cft scores answers after a prompt without a history, one for all rows, and candidates differ from row "
                "to row; leave candidates out, or set --objective=nll",
                kind="conflict",
            )
        if settings["prompt_style"] in ("list", "lines"):
            raise InputError(
                "prompt_style",
                f"{settings['prompt_style']} shows a history and no question, and objective=cft asks without a "
                "history; choose plain",
                kind="conflict",
            )
