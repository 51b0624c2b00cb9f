"""Eval mode of a module, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule has its own previous mode again."""
    modes = [(module, module.training) for module in model.modules()]
    if any(mode for _, mode in modes):  # most are in it already; to set an attribute of a module takes a while
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            if module.training != mode:
                module.training = mode
