"""Parameter groups of the optimiser."""

from __future__ import annotations

from typing import Any

import torch

from recbole_llm.model.base import LLMRecommender
from recbole_llm.settings.config import Config


def group_options(config: Config, model: LLMRecommender) -> dict[str, dict[str, float]]:
    """What the optimiser does otherwise for weights beside the LLM (iLoRA, arXiv 2408.10159, in its code).

    Args:
        config: the resolved config.
        model: its adapter says which groups of weights there are.

    Returns:
        Options by group, of the groups that the adapter has.
    """
    decay = config["side_weight_decay"]
    gate_rate = config["gate_lr_ratio"] * config["learning_rate"]
    options = {"gate": {"lr": gate_rate, "weight_decay": decay}, "modules": {"weight_decay": decay}}
    groups = model.adapter.trainable_groups(model.llm)
    return {group: own for group, own in options.items() if group in groups}


def parameter_groups(config: Config, model: LLMRecommender) -> list[dict[str, Any]]:
    """The adapter's weights as the optimiser takes them."""
    options = group_options(config, model)
    weights = model.adapter.trainable_groups(model.llm)
    return [{"params": own, **options.get(group, {})} for group, own in weights.items()]


def at_rate(optimizer: torch.optim.Optimizer, ratio: float) -> torch.optim.Optimizer:
    """The optimiser with every learning rate times ``ratio``; it has not made a step yet."""
    for group in optimizer.param_groups:
        group["lr"] *= ratio
    return optimizer
