"""Pre-training of the tiny LLM: batches of documents, steps that can be gone on with, and the loss afterwards."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from recbole_llm.errors import InputError
from recbole_llm.llm.rows import length_batches, pad_batch
from recbole_llm.llm.settings import TinyLLMConfig
from recbole_llm.llm.tiny_corpus import Document
from recbole_llm.progress import Bar
from recbole_llm.training_state import OPTIMIZER, load_training, pack_optimizer, save_training, unpack_optimizer

log = logging.getLogger(__name__)
WARMUP_SHARE = 0.05
FINAL_RATE_SHARE = 0.05


def training_batches(
    rounds: Iterator[list[Document]], pad_token_id: int, config: TinyLLMConfig, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and labels, both [documents, tokens], of at most ``batch_tokens`` tokens; like lengths together."""
    for documents in rounds:
        documents.sort(key=lambda document: len(document[0]))
        longest = len(documents[-1][0])
        if longest > config.context_length:
            raise InputError(
                "tiny_context_length",
                f"{config.context_length} is too short for a prompt of {longest} tokens; raise it or shorten histories",
                kind="conflict",
            )
        batches = length_batches([len(token_ids) for token_ids, _ in documents], config.batch_tokens, "as given")
        for chosen in torch.randperm(len(batches), generator=generator).tolist():
            yield _pad([documents[place] for place in batches[chosen]], pad_token_id)


def _pad(batch: list[Document], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded on the right, and labels: -100 at given tokens and padding."""
    padded, _ = pad_batch([token_ids for token_ids, _ in batch], pad_token_id, "cpu", left=False)
    n_given = torch.tensor([given for _, given in batch])[:, None]
    return padded, padded.masked_fill((padded == pad_token_id) | (torch.arange(padded.shape[1]) < n_given), -100)


@dataclass
class _SoFar:
    """What a pre-training has gathered besides weights.

    Attributes:
        step: steps done.
        n_tokens: tokens read so far.
        running: moving mean of the loss; 0 before the first step.
        seconds: wall time so far, that of earlier processes included.
    """

    step: int = 0
    n_tokens: int = 0
    running: float = 0.0
    seconds: float = 0.0

    def add(self, loss: float, n_tokens: int, seconds: float) -> None:
        """Count a step."""
        self.running = 0.95 * self.running + 0.05 * loss if self.step else loss
        self.step, self.n_tokens, self.seconds = self.step + 1, self.n_tokens + n_tokens, seconds


def pretrain(
    model: LlamaForCausalLM,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    config: TinyLLMConfig,
    *,
    progress: bool = False,
    states: Path | None = None,
    minutes: float | None = None,
) -> None:
    """Trains ``model`` in place on ``config.steps`` batches of token ids and labels, both [documents, tokens].

    Padding is on the right, so under causal attention no mask is needed. AdamW, linear warm-up, cosine decay, gradients
    clipped at norm 1. Where ``states`` holds a state, training continues from it, behind the batches that it has read.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    scales = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": scales, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))
    so_far = _resumed(model, optimizer, states)
    for _ in islice(batches, so_far.step):
        pass
    model.train()
    started, saved = time.perf_counter() - so_far.seconds, time.monotonic()
    with Bar(total=config.steps, desc="tiny LLM", unit="step", initial=so_far.step, disable=not progress) as bar:
        for step, (token_ids, labels) in zip(range(so_far.step, config.steps), batches, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _rate(step, config.steps)
            loss = _next_token_loss(model, token_ids.to(model.device), labels.to(model.device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            so_far.add(loss.item(), token_ids.numel(), time.perf_counter() - started)
            speed = so_far.n_tokens / so_far.seconds
            bar.set_postfix_str(f"loss {so_far.running:.3f}, {speed:,.0f} tokens/s", refresh=False)
            bar.update()
            is_due = minutes is not None and time.monotonic() - saved >= 60 * minutes
            if states is not None and is_due and step + 1 < config.steps:
                save_training(states, {**model.state_dict(), **pack_optimizer(optimizer, OPTIMIZER)}, asdict(so_far))
                saved = time.monotonic()
    model.eval()
    told = so_far.running, f"{so_far.n_tokens:,}", so_far.seconds
    log.info("Tiny LLM: loss %.3f after %s tokens, %.0f s.", *told)


def _resumed(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, states: Path | None) -> _SoFar:
    """Give model and optimiser the last state, if there is one. Returns: what had been gathered until then."""
    found = None if states is None else load_training(states)
    if found is None:
        return _SoFar()
    tensors, told = found
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    unpack_optimizer(optimizer, tensors, OPTIMIZER)
    log.info("Going on after step %d of the tiny LLM's pre-training.", told["step"])
    return _SoFar(**told)


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, documents: list[Document], pad_token_id: int, batch_tokens: int) -> float:
    """Mean loss of the tokens of documents that are not given, each given the tokens before it."""
    total, n_tokens = 0.0, 0
    for chosen in length_batches([len(token_ids) for token_ids, _ in documents], batch_tokens):
        token_ids, labels = _pad([documents[place] for place in chosen], pad_token_id)
        learned = int((labels[:, 1:] != -100).sum())
        total += learned * float(_next_token_loss(model, token_ids.to(model.device), labels.to(model.device)))
        n_tokens += learned
    return total / n_tokens


def _next_token_loss(model: LlamaForCausalLM, token_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the labels [documents, tokens] that are not -100, each given the tokens before it."""
    states = model.model(input_ids=token_ids[:, :-1], use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    learned = targets != -100
    return F.cross_entropy(model.lm_head(states[learned]), targets[learned])


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate at ``step``."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    return FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * cosine
