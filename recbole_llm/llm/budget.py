"""Tokens per forward pass: as many as memory takes, fewer after memory has run out.

A budget decides memory and speed, never the result. ``auto`` looks at the device: on a GPU at its free memory and the
LLM's sizes, on a CPU at the usual number, where more tokens save no time, and at the memory that is available. It is an
estimate, so what does not fit after all is computed again in halves, and the run continues with the smaller budget.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recbole_llm.distributed import process
from recbole_llm.llm.parts import checkpoints_gradients, device_of, text_config
from recbole_llm.llm.rows import PASS_TOKENS, Order, length_batches
from recbole_llm.llm.settings import AUTO

GENERATION_TOKENS, TRAINING_TOKENS = 8192, 4096  # on a CPU, and where nothing is known of the device
MOST_TOKENS = 2**18  # beyond which a pass gains nothing
SHARE = 0.7  # of the free memory that is used
ANSWERS = 4  # of so many tokens of a pass one is an answer's, about, and has logits
MIB = 2**20
log = logging.getLogger(__name__)


class TokenBudget:
    """Tokens of a forward pass, padding included.

    Args:
        tokens: tokens per pass, at first.
        name: name of the setting, for the log.

    Attributes:
        tokens: tokens per pass at present.

    Example:
        >>> budget = TokenBudget(100)
        >>> def run(batch):
        ...     if len(batch) > 3:
        ...         raise torch.OutOfMemoryError("too much")
        ...     print(batch)
        >>> dealt = run_batches([10] * 6, budget, run)
        [0, 1, 2]
        [3, 4, 5]
        >>> budget.tokens
        30
    """

    def __init__(self, tokens: int, name: str = "max_batch_tokens") -> None:
        self.tokens, self.name = tokens, name
        self._said = False

    @classmethod
    def of(cls, tokens: int | TokenBudget) -> TokenBudget:
        """A budget as it is, or a new one of so many tokens."""
        return tokens if isinstance(tokens, TokenBudget) else cls(tokens)

    @classmethod
    def of_setting(cls, name: str, value: int | str, model: nn.Module, training: bool = False) -> TokenBudget:
        """The budget of a setting.

        Args:
            name: name of the setting.
            value: a number of tokens, or ``auto``.
            model: the model whose passes are cut, on its device.
            training: whether they have a gradient.
        """
        if value != AUTO:
            return cls(int(value), name)
        tokens = tokens_that_fit(model, training)
        if device_of(model).type != "cpu" or tokens < (TRAINING_TOKENS if training else GENERATION_TOKENS):
            log.info("%s: auto is %s tokens on this device.", name, f"{tokens:,}")
        return cls(tokens, name)

    def agree(self) -> None:
        """Take the smallest budget of all processes: they cut the same rows."""
        self.tokens = min(process().gather(self.tokens))

    def attempt(self, run: Callable[[], object], n_tokens: int, divisible: bool) -> bool:
        """Run something that may take more memory than there is.

        Args:
            run: what is run.
            n_tokens: number of tokens of its forward passes, at most.
            divisible: whether fewer tokens could be run.

        Returns:
            Whether it was; if not, the budget is smaller now. Other errors are raised, and this one if it would only
            come again.
        """
        try:
            run()
            return True
        except (RuntimeError, MemoryError) as error:
            if not divisible or not is_out_of_memory(error):
                raise
        # Out of the handler: until then the error's frames hold the tensors that did not fit.
        before, self.tokens = min(n_tokens, self.tokens), max(1, min(n_tokens, self.tokens) // 2)
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()
        self._say(before)
        return False

    def attempt_together(self, run: Callable[[], object], n_tokens: int, divisible: bool) -> bool:
        """Run something that all processes run a part of; where one runs out of memory, all have the smaller budget.

        Args:
            run: what is run; it may ask the other processes, if all ask in the same order.
            n_tokens: see :meth:`attempt`.
            divisible: see :meth:`attempt`.

        Returns:
            Whether all could run it; if not, all have to run it anew.
        """
        if process().all_do(lambda: self.attempt(run, n_tokens, divisible)):
            return True
        before = self.tokens
        self.agree()
        if self.tokens < before:  # another's memory
            self._say(before)
        return False

    def _say(self, before: int) -> None:
        level = logging.DEBUG if self._said else logging.WARNING
        log.log(
            level,
            "%s: memory ran out at %s tokens of a pass: going on with %s; the result is the same.",
            self.name,
            f"{before:,}",
            f"{self.tokens:,}",
        )
        self._said = True


def run_batches(
    costs: Sequence[int] | Callable[[int], Sequence[int]],
    budget: TokenBudget,
    run: Callable[[list[int]], object],
    order: Order = "longest first",
    together: bool = False,
    overhead: int = PASS_TOKENS,
) -> list[list[int]]:
    """Run all rows in batches of at most a budget; where memory runs out, what is left in smaller ones.

    Args:
        costs: costs of each row in tokens, or a function that gives them at a budget of so many.
        budget: budget of a batch.
        run: runs the rows of a batch; it is run again with parts of them if memory ran out in it.
        order: in which order rows are taken.
        together: whether several processes share the batches; then all of them must be here.
        overhead: what a batch costs besides its rows, in tokens.

    Returns:
        The rows of each batch, those of other processes too, as they were divided.
    """
    if together:
        budget.agree()

    def cut(rows: Sequence[int]) -> list[list[int]]:
        whole = costs(budget.tokens) if callable(costs) else costs
        own = [whole[row] for row in rows]
        return [[rows[index] for index in batch] for batch in length_batches(own, budget.tokens, order, overhead)]

    n_rows = len(costs(budget.tokens) if callable(costs) else costs)
    dealt, tokens = cut(range(n_rows)), budget.tokens
    waiting = list(reversed(process().own(dealt) if together else dealt))
    while waiting:
        rows = waiting.pop()
        if tokens != budget.tokens and len(parts := cut(rows)) > 1:
            waiting += reversed(parts)
            continue
        whole = costs(budget.tokens) if callable(costs) else costs
        n_tokens = len(rows) * max(whole[row] for row in rows)
        if not budget.attempt(lambda rows=rows: run(rows), n_tokens, divisible=len(rows) > 1):  # type: ignore[misc]
            waiting.append(rows)
    return dealt


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: of a GPU, or of a CPU, of which PyTorch says so in words alone.

    Example:
        >>> is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."))
        True
    """
    words = ("not enough memory", "can't allocate memory", "CUDA out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def tokens_that_fit(model: nn.Module, training: bool = False) -> int:
    """Tokens of a forward pass for which the device has memory, by estimate.

    Args:
        model: a causal LM on its device.
        training: whether the pass has a gradient, and its weights an optimiser to come.
    """
    device, usual = device_of(model), TRAINING_TOKENS if training else GENERATION_TOKENS
    free = free_memory(device)
    if free is None:
        return usual
    if training:  # gradient and two moments of what learns, in float32
        free -= 12 * sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    found = int(max(0, free) * SHARE) // bytes_per_token(model, training)
    return max(1, min(found, usual if device.type == "cpu" else MOST_TOKENS))


def bytes_per_token(model: nn.Module, training: bool = False) -> int:
    """Memory that a token of a forward pass takes, by estimate from the model's sizes.

    Without a gradient: keys and values of all layers, once more while beams move, one layer's states, and logits of
    the tokens that have some. With one: the states of all layers, or with gradient checkpointing one of each layer.

    Args:
        model: a causal LM.
        training: whether there is a gradient.
    """
    config = text_config(model)
    size = _bytes_of_number(model)
    width, layers = int(config.hidden_size), int(config.num_hidden_layers)
    inner = int(getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width)
    inner *= int(getattr(config, "num_experts_per_tok", None) or 1)
    heads = int(getattr(config, "num_attention_heads", None) or 1)  # state-space families have none
    key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head = int(getattr(config, "head_dim", None) or width // heads)
    of_layer = (12 * width + 4 * inner) * size
    logits = 10 * int(config.vocab_size) // ANSWERS  # in the model's type and in float32, with a gradient twice
    if not training:
        return 4 * layers * key_heads * head * size + of_layer + logits
    if checkpoints_gradients(model):
        return layers * width * size + 2 * of_layer + logits
    return layers * of_layer + logits


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None if unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return _free_main_memory() if device.type == "cpu" else None


def _free_main_memory(root: Path = Path("/")) -> int | None:
    """Bytes of main memory that are available, by Linux, to the container as well; None elsewhere."""
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit, used = ((root / f"sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        return min(free, int(limit) - int(used))  # ValueError where there is no limit
    except (OSError, ValueError):
        return free


def _bytes_of_number(model: Any) -> int:
    """Of the states: those of floating-point weights, or of what quantised ones are computed in."""
    sizes = [weight.element_size() for weight in model.parameters() if weight.is_floating_point()]
    return min(sizes, default=4)
