"""Losses of rows as a function of some of a model's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm.errors import InputError

Losses = Callable[[Tensor, Any], Tensor]
"""``losses(params, batch) -> [rows]``, the loss of each row of a batch as a function of one tensor of weights."""


def parameter_losses(
    model: nn.Module, names: Iterable[str], losses: Callable[[nn.Module, Any], Tensor]
) -> tuple[Tensor, Losses]:
    """Some of a model's weights as one vector, and the losses, or whatever else of it, as a function of that.

    Args:
        model: in eval mode.
        names: names of the weights, as in ``model.named_parameters()``.
        losses: ``losses(model, batch) -> [rows]``.

    Returns:
        The weights ``[m]`` (a copy), and ``losses(params, batch)``, which leaves the model unchanged.

    Raises:
        InputError: the model has no weight of such a name.
        ValueError: the model is in training mode, in which dropout makes every call another function.

    Example:
        >>> model = nn.Linear(2, 1, bias=False).eval()
        >>> params, losses = parameter_losses(model, ["weight"], lambda module, batch: module(batch).squeeze(1))
        >>> losses(torch.tensor([1.0, 10.0]), torch.tensor([[1.0, 1.0], [0.0, 2.0]])).tolist()
        [11.0, 20.0]
    """
    if model.training:
        raise ValueError("influence needs a model in eval mode: dropout makes every call another function")
    own = dict(model.named_parameters())
    names = list(names)
    if unknown := [name for name in names if name not in own]:
        raise InputError(
            f"{type(model).__name__} has no weight {unknown[0]!r}; it has {', '.join(own)}", kind="unknown"
        )
    shapes = [own[name].shape for name in names]
    sizes = [own[name].numel() for name in names]
    called = _Call(model, losses)

    def at(params: Tensor, batch: Any) -> Tensor:
        parts = params.reshape(-1).split(sizes)
        weights = {f"model.{name}": part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        with differentiable_recurrence(model):
            found: Tensor = torch.func.functional_call(called, weights, (batch,))
        return found

    return torch.cat([own[name].detach().reshape(-1) for name in names]), at


def differentiable_recurrence(model: nn.Module) -> AbstractContextManager[None]:
    """A context for forward passes of a model whose losses are differentiated, once or twice.

    cuDNN's recurrent layers have no second derivatives, and in eval mode no first ones either; PyTorch's own have both.
    Which of the two computes the derivatives is decided by the forward pass.
    """
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=False)


@contextmanager
def frozen(weights: Iterable[Tensor]) -> Iterator[None]:
    """Inside, these weights ask for no gradient: no graph is kept for them."""
    thawed = [weight for weight in weights if weight.requires_grad]
    for weight in thawed:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in thawed:
            weight.requires_grad_()


class _Call(nn.Module):
    """Any function of a model as a module's forward pass, whose weights can be replaced for the time of a call."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, batch: Any) -> Tensor:
        return self.function(self.model, batch)
