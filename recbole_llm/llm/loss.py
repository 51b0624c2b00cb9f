"""Answer log-probabilities and loss, with logits at the answer positions only.

A prompt has hundreds of tokens, an answer a handful, and a vocabulary up to 256,000 entries: the logits [batch, tokens,
vocabulary] of an ordinary forward pass are most of its memory, and nearly all of them are thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recbole_llm.llm.parts import output_embedding

IGNORE_INDEX = -100
"""Label of a token that is not part of an answer."""
LOGSUMEXP_ROWS = 16  # at a time: torch.logsumexp makes a copy of what it is given


def positions_from_mask(attention_mask: Tensor) -> Tensor:
    """Position ids that count real tokens only: cumulative mask - 1, at least 0.

    Learned absolute positions would otherwise start on the padding.

    Args:
        attention_mask: [b, t], 1 for a token, 0 for padding.

    Returns:
        int64 [b, t].

    Example:
        >>> positions_from_mask(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])).tolist()
        [[0, 0, 0, 1], [0, 1, 2, 3]]
    """
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def answer_loss(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    """Mean negative log-likelihood of the answer tokens: what the model's own `labels=` loss is, without its logits.

    The mean is over all answer tokens of the batch; auxiliary losses of a model (expert balance) are not in it.
    Arguments and errors are those of :func:`answer_log_probs`.

    Returns:
        A scalar in float32.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).eval()
        >>> ids, labels = torch.tensor([[1, 5, 6, 2]]), torch.tensor([[-100, -100, 6, 2]])
        >>> loss = answer_loss(model, ids, torch.ones_like(ids), labels)
        >>> torch.allclose(loss, model(input_ids=ids, labels=labels).loss)
        True
    """
    log_probs, _ = answer_log_probs(model, input_ids, attention_mask, labels, position_ids)
    return -log_probs.mean()


def answer_log_probs(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, position_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of every answer token given all tokens before it.

    Args:
        model: a causal LM, bare or wrapped by peft or DistributedDataParallel.
        input_ids: int64 [b, t], padded on the left or on the right.
        attention_mask: [b, t], 1 for a token, 0 for padding; or a ready 4-D mask [b, 1, t, t], which reaches the model
            unchanged and needs `position_ids`.
        labels: int64 [b, t]; the token id where `input_ids` is an answer token, -100 elsewhere. A label in column 0 has
            nothing before it to be predicted from and does not count.
        position_ids: int64 [b, t]; by default :func:`positions_from_mask`.

    Returns:
        Log-probabilities, float32 [n], and the batch row of each, int64 [n]: one entry per answer token, row by row.

    Raises:
        ValueError: no answer token at all, or a 4-D mask without position ids.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).eval()
        >>> ids, labels = torch.tensor([[1, 5, 6, 2]]), torch.tensor([[-100, -100, 6, 2]])
        >>> values, rows = answer_log_probs(model, ids, torch.ones_like(ids), labels)
        >>> values.shape, rows.tolist()  # two answer tokens, both of row 0
        (torch.Size([2]), [0, 0])
    """
    rows, columns = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    if not len(rows):
        raise ValueError("labels hold no answer token: every entry after column 0 is -100")
    logits = logits_at(model, rows, columns, input_ids, attention_mask, position_ids)
    return token_log_probs(logits, torch.arange(len(rows), device=rows.device), labels[rows, columns + 1]), rows


def token_log_probs(logits: Tensor, queries: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities of tokens under rows of logits, in the memory of the logits.

    With a vocabulary of 128,000 the logits are the largest tensor of a training step. The backward pass writes their
    gradient into them, so there is one copy; a model that needs its logits again makes PyTorch say so.

    Args:
        logits: [q, vocabulary].
        queries: int64 [n], the row each token is looked up in; a row may be asked more than once.
        targets: int64 [n], the tokens.

    Returns:
        float32 [n].
    """
    found: Tensor = _TokenLogProbs.apply(logits.float(), queries, targets)  # type: ignore[no-untyped-call]
    return found


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, queries: Tensor, targets: Tensor) -> Tensor:
        normaliser = torch.cat([part.logsumexp(dim=1) for part in logits.split(LOGSUMEXP_ROWS)])
        ctx.save_for_backward(logits, normaliser, queries, targets)
        return logits[queries, targets] - normaliser[queries]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, normaliser, queries, targets = ctx.saved_tensors
        weights = torch.zeros_like(normaliser).index_add_(0, queries, grad)
        logits.sub_(normaliser[:, None]).exp_().mul_(-weights[:, None])
        return logits.index_put_((queries, targets), grad, accumulate=True), None, None


def logits_at(
    model: nn.Module,
    rows: Tensor,
    columns: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Tensor:
    """Next-token logits at chosen positions, exactly as the model's own forward computes them.

    The model runs its own forward, so scaling or capping of its logits, gradient checkpointing and any wrapper apply;
    only the input of its output embedding is reduced to the chosen positions. A position may be chosen more than once.

    Args:
        model: see :func:`answer_log_probs`, as for the three last arguments.
        rows: int64 [n], batch rows.
        columns: int64 [n], the positions in those rows whose next token is asked for.
        input_ids: int64 [b, t].
        attention_mask: [b, t] or [b, 1, t, t].
        position_ids: int64 [b, t] or None.
        inputs: further arguments of the model's forward, such as a cache of what stands before.

    Returns:
        [n, vocabulary] in the model's number type.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).eval()
        >>> ids, last = torch.tensor([[1, 5, 6]]), torch.tensor([2])
        >>> logits = logits_at(model, torch.tensor([0]), last, ids, torch.ones_like(ids))
        >>> torch.allclose(logits, model(ids).logits[:, 2])
        True
    """
    if position_ids is None:
        if attention_mask.ndim != 2:
            raise ValueError("a 4-D attention mask does not say where padding is: pass position_ids with it")
        position_ids = positions_from_mask(attention_mask)
    with _output_embedding_sees(output_embedding(model), rows, columns):
        output = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            **(inputs or {}),
        )
    logits: Tensor = output.logits[0]
    return logits


@contextmanager
def _output_embedding_sees(output_embedding: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Inside, the output embedding is given [1, n, d] of the hidden states [b, t, d]."""

    def select(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        return (args[0][rows, columns].unsqueeze(0), *args[1:])

    handle = output_embedding.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
