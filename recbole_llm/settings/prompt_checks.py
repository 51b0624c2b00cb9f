"""Checks of which items of a history prompts show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_llm.errors import InputError
from recbole_llm.prompt.settings import SIMILAR, PromptSettings
from recbole_llm.settings.models import ModelFacts


def check_prompt_items(model: str, facts: ModelFacts, task: str, settings: Mapping[str, Any]) -> None:
    """Refuse a choice among the items of a history that prompts cannot make, or that something else makes.

    Args:
        model: its name.
        facts: facts of its class.
        task: ``"next-item"`` or ``"click"``.
        settings: settings of the run, resolved.

    Raises:
        InputError: which setting.
    """
    own = PromptSettings.from_settings(settings)
    if own.prompt_items_by == SIMILAR:
        obstacle = None
        if task != "click":
            obstacle = f"prompts of {model} ask about no item that others could be similar to; leave it out"
        elif own.prompt_items is None:
            obstacle = "it chooses prompt_items of a history, and that is ~, all of them; give prompt_items a number"
        if obstacle:
            raise InputError("prompt_items_by", f"{SIMILAR}: {obstacle}", kind="conflict")
    if own.prompt_items is None:
        return
    if facts.reads_items and not facts.reads_histories:
        raise InputError("prompt_items", f"{model}'s LLM reads items and no histories; leave it out", kind="conflict")
    if settings["history_policy"] != "fixed":
        raise InputError(
            "prompt_items",
            f"history_policy: {settings['history_policy']} chooses how many items prompts show; leave one of them out",
            kind="conflict",
        )
