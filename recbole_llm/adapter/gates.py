"""Gates over low-rank experts: how much of each expert a row gets (iLoRA, arXiv 2408.10159).

The K experts of instance-wise LoRA are a partition of an ordinary LoRA of rank r: expert k owns the r / K rank indices
k r / K ... (k + 1) r / K - 1. A gate per expert and instance therefore is a factor per rank index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_llm.adapter.dropout import TokenDraws, normal_numbers
from recbole_llm.adapter.gate_kinds import GATES
from recbole_llm.arrays import computes_in_torch


@computes_in_torch("x", "A", "B", "gates")
def instance_lora(
    x: Tensor,
    A: Tensor,  # noqa: N803 - the factors' names in every paper on LoRA
    B: Tensor,  # noqa: N803
    gates: Tensor,
    scaling: float,
) -> Tensor:
    """The low-rank branch of instance-wise LoRA: scaling * sum over experts k of gates[:, k] * B_k A_k x.

    It is plain LoRA with one multiplication on the rank dimension. With uniform gates and scaling alpha / (r / k) it
    equals LoRA with alpha / r; with one expert it is LoRA.

    Args:
        x: inputs [b, t, m], tensor or array, as for all others.
        A: down projection [r, m]; expert k owns r / k consecutive rows.
        B: up projection [o, r]; expert k owns the columns of the same numbers.
        gates: [b, k], a weight per instance and expert; k divides r. Of fewer rows than `x`, each serves as many
            consecutive rows of `x` (beams).
        scaling: factor of the whole branch.

    Returns:
        [b, t, o], a tensor, or an array where all are arrays.

    Raises:
        ValueError: shapes do not fit, k does not divide r, or a gate is not finite.

    Example:
        >>> import numpy as np
        >>> x, gates = np.ones((1, 1, 2)), [[0.25, 0.75]]  # two experts of rank 1
        >>> instance_lora(x, np.ones((2, 2)), np.ones((3, 2)), gates, scaling=1.0).tolist()
        [[[2.0, 2.0, 2.0]]]
    """
    check_gates(gates)
    factors = gates_of_rows(rank_gates(gates, len(A)), x) * scaling
    return F.linear(F.linear(x, A) * factors[:, None].to(x.dtype), B)


def rank_gates(gates: Tensor, rank: int) -> Tensor:
    """Gates [b, k] as factors of the rank dimension [b, rank]: each stands rank / k times, one after the other.

    Raises:
        ValueError: k does not divide the rank.
    """
    n_rows, n_experts = gates.shape
    if rank % n_experts:
        raise ValueError(f"{n_experts} experts cannot share rank {rank} evenly")
    return gates[:, :, None].expand(-1, -1, rank // n_experts).reshape(n_rows, rank)


def gates_of_rows(gates: Tensor, x: Tensor) -> Tensor:
    """The gates of every row of an input.

    Args:
        gates: [instances, anything].
        x: [rows, tokens, d]. Rows may be a multiple of the instances: then an instance's rows follow one another, as
            beams, returned sequences and candidates do.

    Returns:
        [rows, anything].

    Raises:
        ValueError: the input is not divided into rows; :class:`OtherRowsError`: their number is no multiple of the
            instances.
    """
    if x.ndim != 3:
        raise ValueError(f"instance-wise gates need inputs [rows, tokens, d], not {tuple(x.shape)}: rows are mixed up")
    repeats, rest = divmod(len(x), len(gates))
    if rest or not repeats:
        raise OtherRowsError(
            f"{len(x)} rows cannot use the gates of {len(gates)} instances: pass those of these very rows"
        )
    return gates if repeats == 1 else gates.repeat_interleave(repeats, dim=0)


def check_gates(gates: Tensor) -> None:
    """ValueError unless gates are finite numbers [instances, experts]; names the first instance that is not."""
    _check_rows(gates, "gates [instances, experts]")


class GateNetwork(nn.Module):
    """Gates of an instance from the representation of its sequence: softmax(W h), and three alternatives.

    The softmax is at least in float32, under autocast too. A representation of zeros stands for an instance of which
    nothing is known, such as an empty history: its gates are uniform.

    Args:
        kind: ``linear``, W h; ``mlp``, two layers with a GELU between them and biases; ``topk``, W h with all but the
            `top_k` largest logits left out of the softmax; ``noisy``, W h plus Gaussian noise in training.
        representation_size: d, entries of a representation.
        num_experts: K.
        hidden_size: hidden size of ``mlp``.
        top_k: k of ``topk``, at least 2: with one expert left its gate is 1 and learns nothing.
        noise: standard deviation of the noise of ``noisy``.

    Raises:
        ValueError: a kind or number out of range.

    Example:
        >>> gates = GateNetwork("linear", representation_size=4, num_experts=2)(torch.zeros(1, 4))
        >>> gates.tolist()  # nothing is known of this row
        [[0.5, 0.5]]
    """

    def __init__(
        self,
        kind: str,
        representation_size: int,
        num_experts: int,
        hidden_size: int = 128,
        top_k: int = 2,
        noise: float = 0.1,
    ) -> None:
        super().__init__()
        if kind not in GATES:
            raise ValueError(f"there is no gate {kind!r}; choose from {', '.join(GATES)}")
        if kind == "topk" and not min(2, num_experts) <= top_k <= num_experts:
            raise ValueError(f"top_k = {top_k} must lie in 2 ... {num_experts}, the number of experts")
        self.kind, self.top_k, self.noise = kind, top_k, noise
        self.row_draws: TokenDraws | None = None
        # Parameters of this very module, not of layers inside it: peft takes the adapter's name out of a saved name
        # only where it stands directly before the parameter's.
        width = hidden_size if kind == "mlp" else representation_size
        self.weight = nn.Parameter(uniform_start(num_experts, width, fan_in=width))
        if kind == "mlp":
            self.bias = nn.Parameter(uniform_start(num_experts, fan_in=width))
            self.hidden_weight = nn.Parameter(uniform_start(width, representation_size, fan_in=representation_size))
            self.hidden_bias = nn.Parameter(uniform_start(width, fan_in=representation_size))
        self.representation_size = representation_size

    def forward(self, representations: Tensor) -> Tensor:
        """Gates of a batch.

        Args:
            representations: [b, d].

        Returns:
            [b, K], each row at least 0 and of sum 1.

        Raises:
            ValueError: another width, or a value that is not finite; names the row.
        """
        known = checked_representations(representations, self.representation_size).any(dim=1, keepdim=True)
        with torch.autocast(representations.device.type, enabled=False):
            logits = self._logits(representations.to(self.weight))
            gates = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)
        return torch.where(known, gates, 1 / gates.shape[1])

    def _logits(self, representations: Tensor) -> Tensor:
        if self.kind == "mlp":
            hidden = F.gelu(F.linear(representations, self.hidden_weight, self.hidden_bias))
            return F.linear(hidden, self.weight, self.bias)
        logits = F.linear(representations, self.weight)
        if self.kind == "topk":
            # Softmax of the kept logits, not of their probabilities as in the authors' code, which would flatten them.
            # The lower expert among equals, on every device, which torch.topk leaves open.
            best = logits.argsort(dim=1, descending=True, stable=True)[:, : self.top_k]
            kept = torch.zeros_like(logits, dtype=torch.bool).scatter(1, best, True)
            return logits.masked_fill(~kept, -math.inf)
        if self.kind == "noisy" and self.training:
            return logits + self.noise * self._noise_like(logits)
        return logits

    @property
    def is_random(self) -> bool:
        """Whether training draws something here."""
        return self.kind == "noisy" and self.noise > 0

    def _noise_like(self, logits: Tensor) -> Tensor:
        """Normal numbers, drawn by row where it is known whose they are. Returns: as ``logits`` [b, K]."""
        found = self.row_draws.of_rows("gate noise", *logits.shape) if self.row_draws is not None else None
        return torch.randn_like(logits) if found is None else normal_numbers(found).to(logits)


def checked_representations(representations: Tensor, width: int) -> Tensor:
    """The representations [b, width]; ValueError for another width, or a value that is not finite, naming the row."""
    _check_rows(representations, f"representations [instances, {width}]")
    if representations.shape[1] != width:
        raise ValueError(
            f"representations have {representations.shape[1]} entries, the gate takes {width}: set "
            "representation_size to the size of the sequence encoder"
        )
    return representations


def gate_statistics(gates: Tensor) -> dict[str, Any]:
    """How instances use the experts.

    Args:
        gates: [b, k].

    Returns:
        ``gate_usage``, the mean gate of each expert; and ``gate_entropy``, the mean entropy of an instance's gates as a
        share of the largest: 1 is plain LoRA for everybody, 0 one expert each.

    Example:
        >>> gate_statistics(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))["gate_usage"]
        [0.5, 0.5]
    """
    gates = gates.detach().double()
    most = math.log(gates.shape[1])
    entropy = torch.special.entr(gates).sum(dim=1).mean().item() / most if most else 1.0
    return {"gate_usage": gates.mean(dim=0).tolist(), "gate_entropy": entropy}


class UnknownRowsError(RuntimeError):
    """A forward pass through instance-wise weights without the gates of its rows."""


class OtherRowsError(ValueError):
    """A forward pass through instance-wise weights with the gates of other rows."""


class CurrentGates:
    """Which gates the forward pass that runs now shall use; one object shared by all layers of a model."""

    def __init__(self) -> None:
        self.factors: Tensor | None = None

    @contextmanager
    def use(self, factors: Tensor | None) -> Iterator[None]:
        """Inside, layers weight their experts by `factors` [instances, K]; None means no gates are set."""
        before, self.factors = self.factors, factors
        try:
            yield
        finally:
            self.factors = before

    @contextmanager
    def of(self, rows: Sequence[int], n_rows: int) -> Iterator[None]:
        """Inside, the gates are those of some of the rows; where none are set, it stays so.

        Args:
            rows: indices among the rows that gates are set for, in the order of the passes inside.
            n_rows: rows of the surrounding context. Its gates may be these rows repeated (with and without history:
                2 n_rows); then the same rows are taken of each repetition.
        """
        before = self.factors
        if before is not None and list(rows) != list(range(n_rows)):
            before = before.unflatten(0, (-1, n_rows))[:, list(rows)].flatten(0, 1)
        with self.use(before):
            yield

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """`context_fn` of torch's checkpoint: what is computed again uses the gates of the first time."""
        return nullcontext(), self.use(self.factors)

    def of_rows(self, x: Tensor) -> Tensor:
        """Factors [rows, K] of an input [rows, tokens, m]; UnknownRowsError where it is not set whose rows they are."""
        if self.factors is None:
            raise UnknownRowsError(
                "instance-wise LoRA does not know whose rows these are: run the forward pass, and the backward pass "
                "of gradient checkpointing, inside `with model.instances(representations):`, or pass instance_gates= "
                "to the forward pass, which one with a cache needs"
            )
        return gates_of_rows(self.factors, x)


def gates_of(model: nn.Module, rows: Sequence[int], n_rows: int) -> AbstractContextManager[None]:
    """A context whose forward passes are for some of the rows that the context around it is for.

    Args:
        model: an LLM, bare or wrapped; without gates there is nothing to do.
        rows: see :meth:`CurrentGates.of`, as for the next.
        n_rows: how many rows the context around it is for.
    """
    found = (getattr(module, "current_gates", None) for module in model.modules())
    current = next((gates for gates in found if isinstance(gates, CurrentGates)), None)
    return nullcontext() if current is None else current.of(rows, n_rows)


class Replayable(torch.autograd.Function):
    """A small function's result whose backward pass may run many times.

    Reentrant gradient checkpointing runs a backward pass of its own per decoder layer; the first would free the graph
    that the others need.
    """

    @staticmethod
    def forward(ctx: Any, function: Any, argument: Tensor, *parameters: Tensor) -> Tensor:
        """``function(argument)``, where `parameters` are what else it depends on."""
        with torch.enable_grad():
            argument = argument.detach().requires_grad_(argument.requires_grad)
            ctx.result = function(argument)
        ctx.inputs = (argument, *parameters)
        result: Tensor = ctx.result.detach()
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the argument and the parameters."""
        wanted = [tensor for tensor in ctx.inputs if tensor.requires_grad]
        found = iter(torch.autograd.grad(ctx.result, wanted, gradient, retain_graph=True))
        return None, *(next(found) if tensor.requires_grad else None for tensor in ctx.inputs)


def _check_rows(values: Tensor, what: str) -> None:
    if values.ndim != 2 or not len(values) or not values.is_floating_point():
        raise ValueError(f"{what} are needed, not {values.dtype} {tuple(values.shape)}")
    if not (finite := values.isfinite().all(dim=1)).all():
        raise ValueError(f"{what}: row {int((~finite).nonzero()[0])} is not finite")


def uniform_start(*shape: int, fan_in: int) -> Tensor:
    """What torch's linear layers start with."""
    return nn.init.uniform_(torch.empty(shape), -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
