"""LLaRA: prompts that hold an item's title and its vector from a conventional recommender (arXiv 2312.02445)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from recbole_llm.adapter import Adapter, AdapterWithModules
from recbole_llm.llm.item_slots import ItemProjector, ItemSlots
from recbole_llm.llm.special_tokens import find_spare_token
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.settings.config import Config

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

TWO_STAGE_SHARE = 2 / 5  # of the steps are on text alone: 2 epochs of the paper's 5


class LLaRA(BIGRec):
    """BIGRec with hybrid prompts: after each title of the history stands the item's projected vector.

    Vectors are the item embeddings of the auxiliary recommender, frozen; the projector learns with the adapter and is
    kept in its folder. Training may begin with text-only prompts (``prompt_schedule``), in which every slot holds one
    neutral token, which occurs in no text; outside training steps, where answers are generated, distilled and
    evaluated, all prompts are hybrid. Without ``candidates`` no prompt depends on the target.
    """

    item_slots: ClassVar[bool] = True

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        neutral = find_spare_token(self.backbone.tokenizer, self.backbone.model.get_input_embeddings().weight.shape[0])
        self.slots = ItemSlots(self.llm, self.projector, neutral)

    def _make_adapter(self) -> Adapter:
        vectors = torch.from_numpy(self.auxiliary.item_vectors())
        width = self.backbone.model.get_input_embeddings().weight.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.stage_seed("projector"))
            self.projector = ItemProjector(vectors, width).to(self.device)
        return AdapterWithModules(super()._make_adapter(), {"projector": self.projector})

    @contextmanager
    def training_step(self, step: int, n_steps: int) -> Iterator[None]:
        """A context in which the prompts of a training step are what was drawn: hybrid, or text alone.

        One draw per step, by the step's number alone. The share of hybrid prompts is 1 (``direct``), grows with the
        steps from 0 towards 1 (``linear``, the paper's), or is 0 and then 1 (``two_stage``).
        """
        share = hybrid_share(self.config["prompt_schedule"], step, n_steps)
        self.slots.hybrid = bool(np.random.default_rng(self.stage_seed("prompt", step)).random() < share)
        try:
            yield
        finally:
            self.slots.hybrid = True

    def facts(self) -> dict[str, Any]:
        """See :class:`LLMRecommender`."""
        neutral = {"neutral": self.slots.neutral_token_id}
        return {**super().facts(), "prompt_schedule": self.config["prompt_schedule"], **neutral}


def hybrid_share(schedule: str, step: int, n_steps: int) -> float:
    """Probability of hybrid prompts at an optimiser step, counted from 0."""
    if schedule == "direct":
        return 1.0
    return step / n_steps if schedule == "linear" else float(step >= TWO_STAGE_SHARE * n_steps)
