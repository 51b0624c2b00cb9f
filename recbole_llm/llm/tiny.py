"""The offline default LLM: a small tokenizer and Llama made from a catalogue's own text and the prompt template.

It replaces a downloaded LLM, so that everything can be tried without one; it supports no claim of quality. Its
corpus is item text and the template's words (``tiny_corpus.py``): it never sees an interaction. What pre-training gives
it is what a large LLM brings along: the titles, what they are about (the last state of a bare title predicts the item's
attributes), the habit of reading a history (an answer shares something with its newest titles), and the form of an
answer (a quoted title, then EOS).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from recbole_llm.errors import InputError
from recbole_llm.llm.rows import length_batches, pad_batch
from recbole_llm.llm.settings import TinyLLMConfig
from recbole_llm.llm.tiny_corpus import Document, PromptMaker, document_rounds, reading_prompts
from recbole_llm.progress import Bar
from recbole_llm.training_state import load_optimizer, load_training, optimizer_tensors, save_training

logger = logging.getLogger(__name__)

SINGLE_TOKENS = ("Yes", "No", " Yes", " No")
READING_PROMPTS = 128  # prompts that ask, after pre-training, whether the model reads its history
TEMPLATE_REPEATS = 100  # counts of the template's words when merges are learned: every prompt contains them
INITIAL_SCALE = 0.06  # standard deviation of fresh weights; so narrow a model learns faster than from the usual 0.02
WARMUP_SHARE = 0.05
FINAL_RATE_SHARE = 0.05


def build_tiny_llm(
    folder: str | Path,
    *,
    titles: Sequence[str],
    attributes: Sequence[Sequence[str]],
    template_texts: Sequence[str],
    compose: Callable[[PreTrainedTokenizerBase], PromptMaker],
    history_length: int = 10,
    config: TinyLLMConfig | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
    states: Path | None = None,
    minutes: float | None = None,
) -> Path:
    """Builds tokenizer and model, pre-trains the model and writes both as a Hugging Face folder.

    The same arguments give the same files on one machine (and number of threads), bit for bit; no global random state
    is read or changed.

    Args:
        folder: where to write; created if missing. Loads with ``AutoModelForCausalLM`` and ``AutoTokenizer``.
        titles: one title per item; an empty one (padding, missing title) is never used.
        attributes: per item its other values as strings, such as ``["Animation", "Comedy", "1995"]``; may be empty.
        template_texts: the texts of the prompt template, for the tokenizer's merges.
        compose: given the new tokenizer, returns the function that puts a prompt and a response together.
        history_length: longest history in a prompt, in items.
        config: sizes and pre-training; the defaults if None.
        device: where to train.
        progress: show a progress bar with loss, tokens per second and time left.
        states: folder for states of the pre-training, from the last of which it goes on; None for none.
        minutes: between two of them; None for none.

    Returns:
        The folder.

    Raises:
        InputError: if no item has a title, or a prompt exceeds ``tiny_context_length``.
    """
    config = config or TinyLLMConfig()
    if len(titles) != len(attributes):
        raise InputError(
            f"The tiny LLM got {len(titles)} titles but attributes of {len(attributes)} items; give one each."
        )
    if not any(title.strip() for title in titles):
        raise InputError(
            "title_field",
            "the tiny LLM needs item titles, and all are empty; name the column that holds them",
            kind="data",
        )
    values = [f" {value}" for row in attributes for value in row]  # with the blank that precedes them in documents
    tokenizer = train_tokenizer([*titles, *values], template_texts, config)
    model = init_model(tokenizer, config).to(device)
    logger.info(
        "Pre-training a tiny LLM (%s parameters, %s tokens) on item text: for trying out, not for quality claims.",
        f"{model.num_parameters():,}",
        f"{len(tokenizer):,}",
    )
    generator = torch.Generator().manual_seed(config.seed)
    make_prompt = compose(tokenizer)
    rounds = document_rounds(titles, attributes, tokenizer, make_prompt, history_length, generator)
    batches = _batches(rounds, tokenizer.pad_token_id, config, generator)
    pretrain(model, batches, config, progress=progress, states=states, minutes=minutes)
    own, other = (
        mean_loss(model, documents, tokenizer.pad_token_id, config.batch_tokens)
        for documents in reading_prompts(titles, attributes, make_prompt, history_length, READING_PROMPTS, generator)
    )
    logger.info("Tiny LLM: an answer's loss is %.3f after its own history, %.3f after that of another.", own, other)
    folder = Path(folder)
    model.cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train_tokenizer(
    item_texts: Iterable[str], template_texts: Iterable[str], config: TinyLLMConfig
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every text round-trips, and "Yes" and "No" are single tokens.

    A double quote (with the blank before it, if any) is split off first, so a title has the same tokens bare and
    quoted. Text never turns into a special token.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(' ?"'), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    texts = [*item_texts, *(text for text in template_texts for _ in range(TEMPLATE_REPEATS))]
    # A merge of count c removes c/2 tokens or more, so fewer than 150 merges come before one whose count is 2 % of all
    # characters; the smallest vocabulary has room for 250.
    repeats = 1 + sum(map(len, texts)) // 50
    raw.train_from_iterator(
        [*texts, *(word for word in SINGLE_TOKENS for _ in range(repeats))],
        trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            show_progress=False,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    bos = [("<s>", raw.token_to_id("<s>"))]
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=bos)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        model_max_length=config.context_length,
    )


def init_model(tokenizer: PreTrainedTokenizerBase, config: TinyLLMConfig) -> LlamaForCausalLM:
    """A randomly initialised fp32 Llama; leaves the global random state as it was."""
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=3 * config.hidden_size,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_heads,
        max_position_embeddings=config.context_length,
        initializer_range=INITIAL_SCALE,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would reseed the accelerators, too
        return LlamaForCausalLM(shape)


def _batches(
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
        n_tokens: that it has read.
        running: moving mean of the loss; 0 before the first step.
        seconds: that it took, those of earlier processes included.
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
                save_training(states, {**model.state_dict(), **optimizer_tensors(optimizer)}, asdict(so_far))
                saved = time.monotonic()
    model.eval()
    told = so_far.running, f"{so_far.n_tokens:,}", so_far.seconds
    logger.info("Tiny LLM: loss %.3f after %s tokens, %.0f s.", *told)


def _resumed(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, states: Path | None) -> _SoFar:
    """Give model and optimiser the last state, if there is one. Returns: what had been gathered until then."""
    found = None if states is None else load_training(states)
    if found is None:
        return _SoFar()
    tensors, told = found
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    load_optimizer(optimizer, tensors)
    logger.info("Going on after step %d of the tiny LLM's pre-training.", told["step"])
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
