"""The offline default LLM: a small tokenizer and Llama made from a catalogue's own text and the prompt template.

It replaces a downloaded LLM, so that everything can be tried without one; it supports no claim of quality. Its
corpus is item text and the template's words (``tiny_corpus.py``): it never sees an interaction. What pre-training gives
it is what a large LLM brings along: the titles, what they are about (the last state of a bare title predicts the item's
attributes), the habit of reading a history (an answer shares something with its newest titles), and the form of an
answer (a quoted title, then EOS).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from recbole_llm.errors import InputError
from recbole_llm.llm.settings import TinyLLMConfig
from recbole_llm.llm.tiny_corpus import PromptMaker, document_rounds, reading_prompts
from recbole_llm.llm.tiny_training import mean_loss, pretrain, training_batches

__all__ = ["TinyLLMConfig", "build_tiny_llm", "init_model", "mean_loss", "pretrain", "train_tokenizer"]
logger = logging.getLogger(__name__)
SINGLE_TOKENS = ("Yes", "No", " Yes", " No")
READING_PROMPTS = 128  # prompts that ask, after pre-training, whether the model reads its history
TEMPLATE_REPEATS = 100  # counts of the template's words when merges are learned: every prompt contains them
INITIAL_SCALE = 0.06  # standard deviation of fresh weights; so narrow a model learns faster than from the usual 0.02


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
    _check_items(titles, attributes)
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
    batches = training_batches(rounds, tokenizer.pad_token_id, config, generator)
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


def _check_items(titles: Sequence[str], attributes: Sequence[Sequence[str]]) -> None:
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
