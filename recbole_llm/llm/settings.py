"""Settings of the LLM, of its generation, and of the tiny LLM that is made on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar

from recbole_llm.declare import Declared, Setting
from recbole_llm.errors import InputError

AUTO = "auto"  # value of what goes by the device
TINY = "tiny"  # value of llm_path: an LLM that is made on the spot
SMOLLM2 = "smollm2"  # value of llm_path: SmolLM2-135M-Instruct, from a package
MINILM = "minilm"  # value of coreset_encoder: all-MiniLM-L6-v2, from a package
OWN_LLM = "llm"  # value of coreset_encoder: the run's own LLM
NAMED = frozenset((TINY, SMOLLM2, MINILM, OWN_LLM))  # these are never paths, whatever folder of such a name there is


@dataclass(frozen=True)
class BackboneSettings(Declared):
    """Which LLM, and how it is loaded."""

    llm_path: Annotated[
        str,
        Setting(
            "hub name, folder or .gguf file of a causal LM",
            note="tiny builds a small one from the item text, offline; smollm2 is SmolLM2-135M-Instruct from a package",
        ),
    ] = "tiny"
    llm_revision: Annotated[str | None, Setting("branch, tag or commit on the hub", null="is the newest")] = None
    llm_dtype: Annotated[
        str,
        Setting(
            "precision of the weights",
            choices={
                AUTO: "bfloat16 on a GPU that has it, else float32",
                "float32": "",
                "bfloat16": "",
                "float16": "",
                "saved": "as in the files",
            },
        ),
    ] = AUTO
    quant: Annotated[
        str | None, Setting("weights in fewer bits, on a GPU", choices=("8bit", "4bit"), null="is off")
    ] = None
    attn_implementation: Annotated[
        str | None,
        Setting(
            "attention of transformers: eager, sdpa, flash_attention_2 and others it knows", null="is its own choice"
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool, Setting("recompute activations in the backward pass: less memory, about a third more time")
    ] = False
    trust_remote_code: Annotated[
        bool,
        Setting("run model code that comes with the LLM", note="it can do anything: only for sources you trust"),
    ] = False

    def options(self) -> dict[str, Any]:
        """Arguments of :func:`recbole_llm.llm.load_backbone` besides path and device."""
        return {
            "dtype": self.llm_dtype,
            "quant": self.quant,
            "gradient_checkpointing": self.gradient_checkpointing,
            "attn_implementation": self.attn_implementation,
            "trust_remote_code": self.trust_remote_code,
            "revision": self.llm_revision,
        }


@dataclass(frozen=True)
class GenerationSettings(Declared):
    """How the LLM's answers are searched for."""

    num_beams: Annotated[int, Setting("beams of the search", low=1, high=1024)] = 4
    max_new_tokens: Annotated[int, Setting("longest answer in tokens", low=1, high=1_048_576)] = 64
    length_penalty: Annotated[
        float,
        Setting("a beam's score is its log-probability divided by its length to this power", low=-100, high=100),
    ] = 1.0
    first_line: Annotated[bool, Setting("keep only the first line of an answer")] = False
    generation_batch_tokens: Annotated[
        int | str,
        Setting(
            "tokens per generation and embedding batch",
            low=1,
            pattern=AUTO,
            like="an integer >= 1, or auto",
            note="auto goes by free memory, on a CPU 8192 at most; decides memory, not the result",
        ),
    ] = AUTO


@dataclass(frozen=True)
class TinyLLMConfig(Declared):
    """Sizes and pre-training of the tiny LLM; the configuration key of a field is ``tiny_<field>``.

    Attributes:
        vocab_size: upper bound on the number of tokens, bytes and special tokens included.
        hidden_size: width of the states; a multiple of ``2 * n_heads``.
        n_layers: number of decoder layers.
        n_heads: number of attention heads.
        context_length: longest sequence, in tokens.
        steps: number of optimiser steps.
        batch_tokens: tokens per optimiser step, padding included.
        learning_rate: peak learning rate of AdamW (linear warm-up, cosine decay).
        weight_decay: weight decay of AdamW, on matrices only.
        seed: seed of the weights and the corpus.

    Raises:
        InputError: if a value has the wrong type or is out of range.

    Example:
        >>> TinyLLMConfig.from_settings({"tiny_steps": 100}).steps
        100
        >>> TinyLLMConfig(hidden_size=64, n_heads=3)
        Traceback (most recent call last):
        ...
        recbole_llm.errors.InputError: tiny_hidden_size: ...
    """

    vocab_size: Annotated[
        int, Setting("largest number of tokens, bytes and special tokens included", low=512, high=65536)
    ] = 4096
    hidden_size: Annotated[
        int, Setting("width of the states", low=8, high=4096, note="a multiple of 2 * tiny_n_heads")
    ] = 192
    n_layers: Annotated[
        int,
        Setting("decoder layers", low=1, high=64, note="at a given cost, wide and shallow learns titles fastest"),
    ] = 2
    n_heads: Annotated[int, Setting("attention heads", low=1, high=64)] = 4
    context_length: Annotated[int, Setting("longest prompt and answer together, in tokens", low=64, high=65536)] = 1024
    steps: Annotated[int, Setting("optimiser steps of pre-training", low=1, high=10_000_000)] = 4000
    batch_tokens: Annotated[
        int, Setting("tokens per step of pre-training, padding included", low=64, high=10_000_000)
    ] = 512
    learning_rate: Annotated[
        float, Setting("largest learning rate of pre-training (AdamW, warm-up, cosine)", low=1e-8, high=1)
    ] = 0.003
    weight_decay: Annotated[float, Setting("weight decay of pre-training", low=0, high=1)] = 0.01
    seed: Annotated[
        int,
        Setting(
            "seed of weights and corpus", low=0, high=2**63 - 1, note="apart from seed, so that all seeds tune one LLM"
        ),
    ] = 2020

    prefix: ClassVar[str] = "tiny_"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % (2 * self.n_heads):
            raise InputError(
                "tiny_hidden_size",
                f"{self.hidden_size} is no multiple of twice tiny_n_heads, {self.n_heads}; change one",
                kind="conflict",
            )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> TinyLLMConfig:
        """Reads the keys ``tiny_<field>``; a missing key or None keeps the default."""
        return super().from_settings({key: value for key, value in settings.items() if value is not None})


def check_quantisation(quant: str | None, on_cpu: bool) -> None:
    """Refuse a quantisation that cannot be trained, or whose package is not installed.

    Args:
        quant: ``8bit``, ``4bit`` or None.
        on_cpu: whether the LLM is to be on a CPU.

    Raises:
        InputError: which.
    """
    if quant == "4bit" and on_cpu:
        # bitsandbytes (seen in 0.50.2) repacks 4-bit weights at the first evaluation on a CPU with AVX512-BF16; after
        # that no gradient passes through them, and training would continue and learn nothing.
        raise InputError("quant", "4bit cannot be trained on a CPU; use quant 8bit or a GPU", kind="environment")
    if quant is not None and find_spec("bitsandbytes") is None:
        raise InputError(
            "quant",
            f"{quant} needs bitsandbytes, which is not installed; run `pip install bitsandbytes`",
            kind="environment",
        )
