"""What a launcher asks for against what the training of a model can do, found before anything is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recbole_llm.distributed import asks_for_shards, launched, needs_whole_llm

if TYPE_CHECKING:
    from recbole_llm.settings.resolve import Resolution

SHARDED_ADAPTERS = ("lora", "full")


def check_shards(one: Resolution) -> None:
    """Refuse a training that FSDP cannot deal out; without it, without a training and in one process nothing is.

    Args:
        one: the settings of a model.

    Raises:
        InputError: the setting that needs whole weights.
    """
    facts = one.facts
    if not (asks_for_shards() and launched().count > 1) or not facts.is_llm or facts.reads_items:
        return
    if not one["epochs"]:
        return
    if one["preference"] != "none":
        raise needs_whole_llm("preference", one["preference"])
    if one["quant"]:
        raise needs_whole_llm("quant", "a quantised LLM")
    if one["adapter"] not in SHARDED_ADAPTERS:
        raise needs_whole_llm("adapter", one["adapter"])
    if one["objective"] != "nll":
        raise needs_whole_llm("objective", one["objective"])
    if facts.reads_vectors:
        raise needs_whole_llm("model", "vectors of items in prompts")
    if facts.names_codes:
        raise needs_whole_llm("model", "training of tokens that stand for codes")
