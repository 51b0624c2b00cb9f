"""Which linear layers of an LLM get low-rank adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recbole_llm.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Names of the query and value projections, alone or fused with the key, in the families transformers knows.
_QUERY_VALUE = (
    ("q_proj", "v_proj"),
    ("c_attn",),
    ("query_key_value",),
    ("qkv_proj",),
    ("Wqkv",),
    ("q_b_proj", "kv_b_proj"),
    ("q_proj", "kv_b_proj"),
)
# State-space families: their fused kernels read this map's weight past any adapter, so peft refuses it.
_STATE_SPACE = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
_READ_BY_KERNELS = "out_proj"


def find_target_modules(model: PreTrainedModel, wanted: str | Sequence[str]) -> list[str]:
    """Names for peft's `target_modules`.

    Args:
        model: the bare LLM.
        wanted: see :class:`LoraAdapter`.

    Raises:
        InputError: a name matches no linear map; names some that would.
    """
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    endings = {name.rpartition(".")[2] for name in linear}
    kind: str = model.config.model_type
    if wanted == "auto":
        for names in _QUERY_VALUE:
            if endings.issuperset(names):
                return list(names)
        if kind in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING and kind not in _STATE_SPACE:
            return list(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[kind])
    if wanted in ("auto", "all"):  # by name: peft's "all-linear" would take stacked experts too, which know no dropout
        head = model.get_output_embeddings()
        left = {name.rpartition(".")[2] for name, module in model.named_modules() if module is head}
        return sorted(endings - left - ({_READ_BY_KERNELS} if kind in _STATE_SPACE else set()))
    chosen = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in chosen:
        if not any(full == name or full.endswith(f".{name}") for full in linear):
            raise InputError(
                "lora_target_modules",
                f"{name!r} is not a linear layer of the LLM; choose from {', '.join(sorted(endings))}",
                kind="unknown",
            )
    return chosen
