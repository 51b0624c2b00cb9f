"""TTDS's second tuning: the LLM alone, on the codes that the first one ended with (arXiv 2409.09253)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recbole_llm.model.base import TokenPair
from recbole_llm.prompt.trunk import Trunks
from recbole_llm.semantic_ids.settings import TwinSettings
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.trainer.finetune import MakeLoss
from recbole_llm.trainer.optimizer import at_rate, group_options
from recbole_llm.trainer.passes import Passes
from recbole_llm.trainer.step_loss import MeanNll
from recbole_llm.trainer.tuning import FineTuneStage, Tuning, TuningResult, load_adapter


class FixedCodesStage(FineTuneStage):
    """Answers alone, at a rate of its own, from the weights and codes of the first tuning's best epoch.

    Codes no longer follow the LLM, and nothing draws its states of codes to those of texts.

    Args:
        tuning: model, config and evaluation.
        start: the first tuning.
    """

    name = "fine-tune-fixed"
    group = "Fixed codes/"

    def __init__(self, tuning: Tuning, start: TuningResult) -> None:
        super().__init__(tuning)
        self._start, self._twin = start, TwinSettings.from_settings(tuning.config.final_config_dict)

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        own = {**self.settings.facts(), **group_options(self.tuning.config, self.tuning.model)}
        return {**super().facts(), "from": self._start.folder.name, "settings": own}

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the weights are trained from those of the start."""
        load_adapter(self.tuning.model, self._start.folder / "adapter")
        super().compute(folder)

    def examples(self) -> tuple[list[TokenPair], list[list[int]], Trunks | None]:
        """See :class:`FineTuneStage`; with the codes as they are now."""
        _, histories, trunks = super().examples()
        return self.renewed(), histories, trunks

    @property
    def settings(self) -> FineTuneSettings:
        """See :class:`FineTuneStage`."""
        own = super().settings
        rate = self._twin.fixed_learning_rate or own.learning_rate / 10
        return replace(own, epochs=self._twin.fixed_epochs, learning_rate=rate)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """See :class:`FineTuneStage`."""
        return at_rate(self.tuning.make_optimizer(), self.settings.learning_rate / super().settings.learning_rate)

    def make_loss(self) -> MakeLoss:
        """See :class:`FineTuneStage`; nothing stands beside the answers' loss."""

        def make(passes: Passes, trainable: Sequence[torch.nn.Parameter]) -> MeanNll:
            return MeanNll(passes)

        return make

    @property
    def follows(self) -> bool:
        """See :class:`FineTuneStage`."""
        return False
