"""What a launcher asks for against what the training of a model can do, found before anything is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recbole_llm.distributed import asks_for_shards, launched, needs_whole_llm
from recbole_llm.settings.training import is_tuned

if TYPE_CHECKING:
    from recbole_llm.settings.resolve import Resolution

SHARDED_ADAPTERS = ("lora", "full")


def check_sharded_llm(quant: Any, adapter: str, reads_vectors: bool) -> None:
    """Refuse an LLM that FSDP cannot deal out.

    Args:
        quant: how its weights are quantised, if they are.
        adapter: name of its adapter.
        reads_vectors: whether its prompts hold vectors of items.

    Raises:
        InputError: what needs whole weights.
    """
    if quant:
        raise needs_whole_llm("quant", "a quantised LLM")
    if adapter not in SHARDED_ADAPTERS:
        raise needs_whole_llm("adapter", adapter)
    if reads_vectors:
        raise needs_whole_llm("model", "vectors of items in prompts")


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
    if not is_tuned(one):
        return
    if one["preference"] != "none":
        raise needs_whole_llm("preference", one["preference"])
    if one["objective"] != "nll":
        raise needs_whole_llm("objective", one["objective"])
    check_sharded_llm(one["quant"], one["adapter"], facts.reads_vectors)
    if facts.names_codes:
        raise needs_whole_llm("model", "training of tokens that stand for codes")
