"""TTDS's second tuning: the LLM alone, on the codes that the first one ended with (arXiv 2409.09253)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from recbole_llm.model.base import TokenPair
from recbole_llm.prompt.trunk import Trunks
from recbole_llm.semantic_ids.settings import TwinSettings
from recbole_llm.trainer.passes import Passes
from recbole_llm.trainer.step_loss import MeanNll
from recbole_llm.trainer.tuning import Tuning, TuningResult
from recbole_llm.trainer.tuning_stages import ContinuedStage, Start


class FixedCodesStage(ContinuedStage):
    """Answers alone, at a rate of its own, from the weights and codes of the first tuning's best epoch.

    Codes no longer follow the LLM, and nothing draws its states of codes to those of texts.

    Args:
        tuning: model, config and evaluation.
        start: the first tuning.
    """

    name = "fine-tune-fixed"
    group = "Fixed codes/"

    def __init__(self, tuning: Tuning, start: TuningResult) -> None:
        twin = TwinSettings.from_settings(tuning.config.final_config_dict)
        super().__init__(tuning, Start.of(tuning, start), twin.fixed_epochs, twin.fixed_learning_rate)

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {**super().facts(), "from": self.start.name}

    def examples(self) -> tuple[list[TokenPair], list[list[int]], Trunks | None]:
        """See :class:`FineTuneStage`; with the codes as they are now."""
        _, histories, trunks = super().examples()
        return self.renewed(), histories, trunks

    def make_loss(self, passes: Passes, trainable: Sequence[torch.nn.Parameter]) -> MeanNll:
        """See :class:`FineTuneStage`; nothing stands beside the answers' loss."""
        return MeanNll(passes)

    @property
    def follows(self) -> bool:
        """See :class:`FineTuneStage`."""
        return False
