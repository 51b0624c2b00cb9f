"""Squared norms of rows' gradients, collected from linear layers during a backward pass."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recbole_llm.arrays import widened


class Recorder:
    """Collects squared norms while a backward pass goes by.

    A weight that is used more than once in a forward pass has its tokens joined before the norm is taken.
    """

    def __init__(self, weights: set[nn.Parameter]) -> None:
        self._weights = weights
        self._uses: Counter[nn.Parameter] = Counter()
        self._tokens: dict[nn.Parameter, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._not_rows: set[nn.Parameter] = set()
        self._parts: dict[nn.Parameter, Tensor] = {}
        self.n_rows, self.total = 0, torch.zeros(0)
        self.flat = False  # whether a layer saw [rows, q]

    def watch(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of a linear layer: asks for the gradient of its output, though all weights are frozen."""
        if not output.requires_grad:
            output = output.requires_grad_().clone()  # a clone may be changed in place, the leaf may not
        self._uses.update(self._of(layer))
        inputs = args[0].detach()
        output.register_hook(lambda gradient: self._add(layer, inputs, gradient))
        return output

    def start(self, losses: Tensor) -> None:
        """The losses ``[rows]`` whose backward pass follows."""
        self.n_rows, self.total = len(losses), losses.new_zeros(len(losses), dtype=torch.float64)

    def squares(self) -> dict[nn.Parameter, Tensor]:
        """Squared gradient norms float64 ``[rows]`` of each weight that has a part in the losses and sees the rows."""
        for weight in [*self._tokens]:  # some of whose uses not affect the losses
            self._reduce(weight)
        return {weight: part for weight, part in self._parts.items() if weight not in self._not_rows}

    def unseen(self) -> set[nn.Parameter]:
        """Weights whose layer was not called, or not with as many inputs as there are rows."""
        return (self._weights - set(self._uses)) | self._not_rows

    def _of(self, layer: nn.Module) -> list[nn.Parameter]:
        return [weight for weight in layer.parameters(recurse=False) if weight in self._weights]

    def _add(self, layer: nn.Module, inputs: Tensor, gradient: Tensor) -> None:
        if inputs.ndim < 2 or len(inputs) != self.n_rows:
            self._not_rows.update(self._of(layer))
            return
        self.flat |= inputs.ndim == 2
        inputs = widened(inputs.reshape(self.n_rows, -1, inputs.shape[-1]))
        gradient = widened(gradient.reshape(self.n_rows, -1, gradient.shape[-1]))
        for weight in self._of(layer):
            self._tokens[weight].append((inputs, gradient))
            if len(self._tokens[weight]) == self._uses[weight]:
                self._reduce(weight)

    def _reduce(self, weight: nn.Parameter) -> None:
        """The squared norms of one weight, whose tokens need not be kept after that."""
        inputs, gradients = zip(*self._tokens.pop(weight), strict=True)
        if weight.ndim == 1:
            self._parts[weight] = row_squares(sum(gradient.sum(dim=1) for gradient in gradients))
        else:
            self._parts[weight] = linear_square_norms(_joined(inputs), _joined(gradients))


def linear_square_norms(inputs: Tensor, output_gradients: Tensor) -> Tensor:
    """``||sum_t gradient_t input_t'||^2`` of every row, by whichever of two equal forms costs less.

    Args:
        inputs: ``[rows, tokens, q]``.
        output_gradients: ``[rows, tokens, p]``.

    Returns:
        float64 ``[rows]``.
    """
    _, length, q = inputs.shape
    p = output_gradients.shape[2]
    if length * (p + q) < p * q:  # sum over pairs of tokens, without the [p, q] gradient
        pairs = (inputs @ inputs.mT) * (output_gradients @ output_gradients.mT)
        return pairs.double().sum(dim=(1, 2)).clamp(min=0)
    return row_squares(output_gradients.mT @ inputs)


def row_squares(gradients: Tensor) -> Tensor:
    """Sum of squares of each row's entries, ``[rows, ...]``. Returns: float64 ``[rows]``."""
    return gradients.flatten(1).double().square().sum(dim=1)


def linear_layers(model: nn.Module, weights: set[nn.Parameter]) -> list[nn.Module]:
    """Linear layers with a weight to look at; not those that share it with a layer of another kind."""
    kinds = _linear_kinds()
    linear, elsewhere = [], set()
    for module in model.modules():
        own = set(module.parameters(recurse=False))
        if type(module) not in kinds:
            elsewhere |= own
        elif own & weights:
            linear.append(module)
    return [layer for layer in linear if not elsewhere & set(layer.parameters(recurse=False))]


def _linear_kinds() -> tuple[type[nn.Module], ...]:
    """Torch's linear map and, where transformers is loaded, its transposed one. A subclass may compute otherwise."""
    utils = sys.modules.get("transformers.pytorch_utils")
    return (nn.Linear, utils.Conv1D) if utils else (nn.Linear,)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([*parts], dim=1)
