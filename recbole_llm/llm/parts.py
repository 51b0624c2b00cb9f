"""Casts of transformers' and peft's untyped modules, in one place."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn


def unwrapped(model: nn.Module) -> Any:
    """The model inside a wrapper such as DistributedDataParallel, or the model itself."""
    return getattr(model, "module", model)


def input_embedding(model: nn.Module) -> nn.Embedding:
    """Token ids to vectors."""
    return cast(nn.Embedding, unwrapped(model).get_input_embeddings())


def output_embedding(model: nn.Module) -> nn.Module:
    """Hidden states to logits."""
    return cast(nn.Module, unwrapped(model).get_output_embeddings())


def text_config(model: nn.Module) -> Any:
    """The config of a model's language part."""
    return unwrapped(model).config.get_text_config()


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first weights are."""
    return next(model.parameters()).device


def checkpoints_gradients(model: nn.Module) -> bool:
    """Whether activations are computed again in the backward pass of a model in training mode."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
