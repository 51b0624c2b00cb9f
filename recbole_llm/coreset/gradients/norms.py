"""Norms of each row's gradient, for all rows of a batch from one backward pass.

The gradient of a linear map's weight for one row is the sum over the row's tokens of (gradient of the output) times
(input). Both are available in a backward pass of the summed loss, so that the norm of that sum can be taken row by row
(Goodfellow 2015, arXiv 1510.01799; per-token sums as in Li et al. 2022, arXiv 2110.05679). A low-rank adapter is two
linear maps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from recbole_llm.coreset.checks import check_losses
from recbole_llm.coreset.gradients.recorder import Recorder, linear_layers
from recbole_llm.errors import InputError
from recbole_llm.modes import evaluating

log = logging.getLogger(__name__)

_CHECKED_BATCHES = 1
_CHECKED_IF_FLAT = 3  # where inputs are [rows, q]: a router may send as many tokens as there are rows by chance
_DEVIATION = 1e-2  # relative, of numbers that are equal but for the order of summation


class GradientNorms:
    """Norms of per-row gradients of some of a model's weights.

    Weights of linear maps (``nn.Linear``, transformers' ``Conv1D``; so those of peft's LoRA) cost one backward pass per
    batch. Any others are done by one forward and backward pass per row, which the log says once. So are linear maps
    whose inputs are not the rows in their order, such as an expert's that a router sends tokens to: a second pass over
    the first batch or batches, with a factor on every row's loss, tells them by gradients that have another row's.

    Args:
        model: its weights are left alone, gradients included.
        parameters: names as in ``model.named_parameters()``; by default those that are trainable. Layers below the
            lowest one are run without a graph, so that few weights near the output cost little more than a forward
            pass.

    Raises:
        InputError: no weight is named, or the model has none of such a name.

    Example:
        >>> model, rows = nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> GradientNorms(model, ["weight"])(lambda: model(rows).squeeze(1)).tolist()
        [5.0, 1.0]
    """

    def __init__(self, model: nn.Module, parameters: Iterable[str] | None = None) -> None:
        self.model = model
        own = dict(model.named_parameters())
        names = [name for name, weight in own.items() if weight.requires_grad] if parameters is None else [*parameters]
        if not names:
            raise InputError(
                "gradient norms: no weight is trainable; attach an adapter, or name the weights", kind="missing"
            )
        if unknown := [name for name in names if name not in own]:
            raise InputError(
                f"gradient norms: the model has no weight {unknown[0]!r}; see named_parameters()", kind="unknown"
            )
        self._names = {own[name]: name for name in names}
        self._layers = linear_layers(model, set(self._names))
        linear = {weight for layer in self._layers for weight in layer.parameters(recurse=False)}
        self._others: list[nn.Parameter] = []
        self._checked_batches = 0
        self._leave_to_rows([weight for weight in self._names if weight not in linear])

    def __call__(self, row_losses: Callable[[], Tensor], alone: Sequence[Callable[[], Tensor]] = ()) -> Tensor:
        """Gradient norms of the rows of one batch.

        Args:
            row_losses: runs the model and gives the losses ``[rows]``; rows are the first dimension of the inputs of
                the layers. Each loss depends on its own row alone. It may be called more than once. The model is in
                eval mode meanwhile, so that dropout does not make the norms random.
            alone: for each row, runs the model on it without the others and gives its loss ``[1]``. Without these,
                weights that are done row by row cost a pass over the whole batch for every row.

        Returns:
            float64 ``[rows]``.

        Raises:
            InputError: a loss or a norm is not finite.
        """
        with evaluating(self.model), torch.enable_grad():
            parts = [self._of_linear_maps(row_losses)] if self._layers else []
            if self._others:
                parts.append(self._row_by_row(row_losses, alone))
        squares = torch.stack(parts).sum(dim=0)
        if not squares.isfinite().all():
            raise InputError(
                "gradient norms: the gradients of a batch hold NaN or infinity; use dtype float32 or bfloat16",
                kind="numeric",
            )
        return squares.sqrt()

    def _of_linear_maps(self, row_losses: Callable[[], Tensor]) -> Tensor:
        """Squared norms over the weights of linear maps."""
        found = self._recorded(row_losses)
        strange = found.unseen()
        squares = found.squares()
        if found.n_rows > 1 and self._checked_batches < (_CHECKED_IF_FLAT if found.flat else _CHECKED_BATCHES):
            self._checked_batches += 1
            again = self._recorded(row_losses, scaled=True).squares()
            scales = _row_scales(found.n_rows).to(found.total).square()
            strange |= squares.keys() - again.keys()
            strange |= {
                weight for weight in again if weight in squares and _differ(again[weight], scales * squares[weight])
            }
        self._leave_to_rows([weight for weight in self._names if weight in strange])
        left = set(self._names) - set(self._others)
        self._layers = [layer for layer in self._layers if left & set(layer.parameters(recurse=False))]
        return sum((square for weight, square in squares.items() if weight not in strange), found.total)

    def _recorded(self, row_losses: Callable[[], Tensor], scaled: bool = False) -> Recorder:
        """What a backward pass of the summed losses shows, or of their sum with :func:`_row_scales` as factors."""
        recorder = Recorder(set(self._names) - set(self._others))
        with ExitStack() as stack:
            stack.enter_context(_only_trainable(self.model, []))
            for layer in self._layers:
                stack.callback(layer.register_forward_hook(recorder.watch).remove)
            losses = _checked(row_losses())
            recorder.start(losses)
            if losses.requires_grad:
                (losses * _row_scales(len(losses)).to(losses) if scaled else losses).sum().backward()
        return recorder

    def _row_by_row(self, row_losses: Callable[[], Tensor], alone: Sequence[Callable[[], Tensor]]) -> Tensor:
        """Squared norms over the other weights."""
        with _only_trainable(self.model, self._others):
            if alone:
                return torch.stack([self._square(_checked(losses())[0]) for losses in alone])
            losses = _checked(row_losses())
            squares = losses.new_zeros(len(losses), dtype=torch.float64)
            for row in range(len(losses)):
                if row:  # a fresh graph: operations that save memory give theirs away in the backward pass
                    losses = row_losses()
                squares[row] = self._square(losses[row])
        return squares

    def _square(self, loss: Tensor) -> Tensor:
        """Squared norm of one loss's gradient by the other weights, float64."""
        if not loss.requires_grad:
            return torch.zeros_like(loss, dtype=torch.float64)
        gradients = torch.autograd.grad(loss, self._others, allow_unused=True, materialize_grads=True)
        return torch.stack([gradient.double().square().sum() for gradient in gradients]).sum()

    def _leave_to_rows(self, weights: Sequence[nn.Parameter]) -> None:
        self._others += weights
        if weights:
            log.info(
                "Gradient norms: %d parameters are not per-row linear layers; using one backward pass per row "
                "(first: %s)",
                *(len(weights), self._names[weights[0]]),
            )


def _checked(losses: Tensor) -> Tensor:
    return check_losses(losses, "gradient norms", "use dtype float32 or bfloat16")


def _row_scales(n_rows: int) -> Tensor:
    """Factors ``[rows]`` that differ between neighbours, and by which rounding commutes."""
    return 2.0 ** (torch.arange(n_rows) % 8)


def _differ(found: Tensor, expected: Tensor) -> bool:
    """Whether squares ``[rows]`` differ by more than rounding, which the largest has a part in for the smallest."""
    return bool(((found - expected).abs() > _DEVIATION * expected + _DEVIATION**3 * expected.max()).any())


@contextmanager
def _only_trainable(model: nn.Module, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, these weights require gradients and no others do."""
    before = {weight: weight.requires_grad for weight in model.parameters()}
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_()
        yield
    finally:
        for weight, required in before.items():
            weight.requires_grad_(required)
