"""What an LLM can do besides plain forward passes, found by comparison with them.

Several paths of this package compute less than one full pass per sequence: rows padded into one batch, beams that go on
from a cache, answers under a mask of their own. Attention variants differ in what they make of padding, masks and
caches, and class names do not tell: a local window is lost under a ready mask, ALiBi counts padding as distance, a
recurrent state cannot be taken apart. So each path scores a few short answers to a long and a short prompt, and what it
finds is compared to one unpadded pass per sequence, without cache. Windows show only at the lengths
that a run reaches, hence ``n_tokens``. An exception inside the comparison counts as "no".

What was found is remembered for as long as the model object lives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig

from recbole_llm.adapter.gates import OtherRowsError, UnknownRowsError
from recbole_llm.errors import first_line
from recbole_llm.llm.parts import device_of, text_config
from recbole_llm.llm.sample import MIN_TOKENS, Sample
from recbole_llm.modes import evaluating

KERNEL = "attn_implementation"  # the setting


class FastPath(Enum):
    """A way to compute several sequences at less cost than one pass each; its value says it in the log."""

    ROWS = "batches of rows"
    PREFIX = "a shared beginning of prompts"
    BEAMS = "beams from a cache"
    BRANCHES = "answers as branches"
    HEADS = "the same behind a shared beginning"
    TRUNKS = "rows of a user as branches"
    PREFILL = "prompts before answers"
    TREE = "titles as a tree"


@dataclass(frozen=True)
class Finding:
    """Whether a path computes what plain passes compute.

    Attributes:
        works: the answer.
        n_tokens: tokens of the longest sequence compared.
        kind: why it does not: ``layers`` (the config names layers for which it cannot work), ``error``, ``differs``.
        reason: why it does not, in words.
        deviation: largest difference of an answer's log-probability; NaN where none was computed.

    Example:
        >>> Finding(works=True, n_tokens=128).holds_for(64)
        True
    """

    works: bool
    n_tokens: int
    kind: Literal["", "layers", "error", "differs"] = ""
    reason: str = ""
    deviation: float = math.nan

    def holds_for(self, n_tokens: int) -> bool:
        """Whether it answers the question for sequences of this length."""
        return n_tokens <= self.n_tokens if self.works else n_tokens >= self.n_tokens


Scores = Callable[[nn.Module, Sample], Tensor]
"""How a path scores a sample: float [prompts, the first answers]."""
Obstacle = Callable[[Any, int], "str | None"]
"""What the text config says against a path at this many tokens, in words; None where nothing is known."""

_FOUND: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], list[Finding]]] = WeakKeyDictionary()


def find(
    model: nn.Module,
    path: FastPath,
    n_tokens: int,
    scores: Scores,
    obstacle: Obstacle | None = None,
    row_inputs: Mapping[str, Tensor] | None = None,
) -> Finding:
    """Find out whether a path works for sequences of up to `n_tokens`, or remember it.

    The forward hooks of the model itself do not see these passes.

    Args:
        model: a causal LM, bare or wrapped.
        path: the fast path in question.
        n_tokens: number of tokens of the longest sequence it is asked for.
        scores: how it scores a sample.
        obstacle: what the config says against it.
        row_inputs: further inputs of the model's forward, [rows, ...]; the first row is taken.
    """
    n_tokens = at_most(model, n_tokens)
    if known := recall(model, path, n_tokens):
        return known
    inputs = {name: values[:1] for name, values in (row_inputs or {}).items()}
    quiet = cast(nn.Module, _WithoutHooks(model))
    # A power of two, so that ever longer prompts are not compared ever again.
    rounded = at_most(model, 1 << max(n_tokens - 1, MIN_TOKENS - 1).bit_length())
    finding = Finding(False, rounded)
    for length in sorted({rounded, n_tokens}, reverse=True):  # what fails there may still work here
        finding = examine(quiet, path, length, scores, obstacle, inputs)
        if finding.works:
            break
    remember(model, path, finding)
    return finding


def examine(
    model: nn.Module,
    path: FastPath,
    n_tokens: int,
    scores: Scores,
    obstacle: Obstacle | None = None,
    row_inputs: Mapping[str, Tensor] | None = None,
    sample: Sample | None = None,
) -> Finding:
    """Compare a path with plain passes; nothing is remembered.

    Args:
        model: see :func:`find`, as for the next four.
        path: the fast path in question.
        n_tokens: number of tokens of the longest sequence.
        scores: how it scores a sample.
        obstacle: what the config says against it.
        row_inputs: further inputs of the model's forward, [1, ...].
        sample: to compare on; by default one of `n_tokens` is drawn.
    """
    if obstacle and (reason := obstacle(text_config(model), n_tokens)):
        return Finding(False, n_tokens, "layers", reason)
    # Under autocast, rounding would exceed what the weights' own number type allows.
    with evaluating(model), torch.no_grad(), torch.autocast(device_of(model).type, enabled=False):
        try:
            drawn = sample or Sample.draw(model, n_tokens, row_inputs)
            is_finite = bool(drawn.plain.isfinite().all())
        except torch.OutOfMemoryError:
            raise
        except (OtherRowsError, UnknownRowsError):  # of the run's rows; its own passes tell, where they are others too
            return Finding(True, 0)
        except Exception as error:  # plain passes do not run either
            # Of rows that share a batch nothing is known; the run's own passes will say why.
            return Finding(path is FastPath.ROWS, 0, "error", f"a plain pass fails: {first_line(error)}")
        if not is_finite:  # broken weights: the run's own passes will say so
            return Finding(True, 0)
        try:
            found = scores(model, drawn)
            accepted = drawn.accepts_rows(found) if path is FastPath.ROWS else drawn.accepts(found)
        except (torch.OutOfMemoryError, UnknownRowsError):
            raise
        except Exception as error:  # attention variants fail in any way they like
            return Finding(False, n_tokens, "error", first_line(error))
    deviation = drawn.deviation(found)
    if accepted:
        return Finding(True, n_tokens, deviation=deviation)
    reason = f"log-probabilities differ by up to {deviation:.2g} from those of one pass per sequence"
    return Finding(False, n_tokens, "differs", reason, deviation)


def recall(model: nn.Module, path: FastPath, n_tokens: int) -> Finding | None:
    """What is known already of a path for sequences of up to `n_tokens`."""
    n_tokens = at_most(model, n_tokens)
    known = _FOUND.get(model, {}).get(_key(model, path), [])
    return next((finding for finding in known if finding.holds_for(n_tokens)), None)


def remember(model: nn.Module, path: FastPath, finding: Finding) -> None:
    """Keep a finding; one without comparison (``n_tokens`` 0) is not kept."""
    if finding.n_tokens:
        _FOUND.setdefault(model, {}).setdefault(_key(model, path), []).insert(0, finding)


def share_findings(model: nn.Module, copy: nn.Module) -> None:
    """Let what is known of a model be known of a copy of it."""
    _FOUND[copy] = {key: list(found) for key, found in _FOUND.get(model, {}).items()}


def at_most(model: nn.Module, n_tokens: int) -> int:
    """`n_tokens`, or as many as the model has positions for."""
    limit = n_positions(model)
    return n_tokens if limit is None else min(n_tokens, limit)


def n_positions(model: nn.Module) -> int | None:
    """Tokens that a model was made for; None where its config does not tell."""
    config = text_config(model)
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))  # the second: MPT's
    return next((limit for limit in found if isinstance(limit, int) and limit > 0), None)


def narrow_layers(config: PretrainedConfig, n_tokens: int) -> str | None:
    """Layers that do not attend to all of `n_tokens`, in words; None where the config names none."""
    layers = DynamicCache(config=config).layers
    windows = [layer.get_max_length() for layer in layers if getattr(layer, "is_sliding", False)]
    if _has_states(layers) or min(windows, default=n_tokens) < n_tokens:
        return f"it has layers that do not attend to all of {n_tokens} tokens"
    return None


def masks_of_pairs(config: PretrainedConfig, n_tokens: int) -> str | None:
    """What stands against a mask per pair of tokens, in words: flash attention's kernels, or narrow layers."""
    kernel = getattr(config, "_attn_implementation", None) or ""
    if "flash" in kernel:
        return f"{KERNEL} {kernel} takes no mask per pair of tokens"
    return narrow_layers(config, n_tokens)


def slot_counting_layers(config: PretrainedConfig, n_tokens: int) -> str | None:
    """Layers that count cache slots instead of reading the mask, in words; None where the config names none."""
    layers = DynamicCache(config=config).layers
    if _has_states(layers) or any(layer.is_sliding for layer in layers):
        return "it has layers that count padding as distance"
    return None


def _has_states(layers: Iterable[Any]) -> bool:
    """Whether some layers keep a state instead of keys and values."""
    return any(not hasattr(layer, "is_sliding") or getattr(layer, "is_linear", False) for layer in layers)


class _WithoutHooks:
    """A model whose own forward hooks stay out: what they count or change are the passes of a run."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self._model.forward(*args, **kwargs)


def _key(model: nn.Module, path: FastPath) -> tuple[Any, ...]:
    weight = next(model.parameters())
    return path, getattr(text_config(model), "_attn_implementation", None), weight.dtype, weight.device.type
