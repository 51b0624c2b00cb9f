"""Settings of prompts: item text, wording and layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from recbole_llm.declare import Declared, Setting, Settings

RECENT, SIMILAR = "recent", "similar"


@dataclass(frozen=True)
class PromptSettings(Declared):
    """Item text and the prompt."""

    item_text_fields: Annotated[
        list[str] | None, Setting("further item fields with text that describes an item", null="is none")
    ] = field(default_factory=list)
    domain: Annotated[
        str, Setting("words of the prompt: a file in properties/prompt (movie, book, game, product, ...)")
    ] = "item"
    prompt_style: Annotated[
        str,
        Setting(
            "layout of the prompt",
            choices={
                "alpaca": "",
                "plain": "",
                "list": "titles alone: the answer is the next one",
                "lines": "the same, a bare title on each line",
                "chat": "the LLM's own chat template",
            },
        ),
    ] = "alpaca"
    max_prompt_tokens: Annotated[
        int, Setting("longest prompt in tokens", low=1, high=1_048_576, note="the oldest items go first")
    ] = 512
    prompt_items: Annotated[
        int | None,
        Setting(
            "most items of a history that a prompt shows",
            low=1,
            high=65_536,
            null="shows all",
            note="an auxiliary recommender reads all of it in any case",
        ),
    ] = None
    prompt_items_by: Annotated[
        str,
        Setting(
            "which items these are",
            choices={RECENT: "the newest", SIMILAR: "those with titles most similar to that of the item asked about"},
            note="similar is for models that predict clicks",
        ),
    ] = RECENT
    prompt_schedule: Annotated[
        str,
        Setting(
            "hybrid prompts in training",
            choices={"direct": "always", "two_stage": "after 2/5", "linear": "more and more"},
            scope="LLaRA",
        ),
    ] = "direct"


@dataclass(frozen=True)
class TrunkSettings(Declared):
    """Rows of a user in one pass."""

    train_unit: Annotated[
        str | None,
        Setting(
            "what fine-tuning computes in one pass",
            choices={"row": "each row by itself", "user": "rows of a user that begin alike in one pass"},
            null="is user where the tiny LLM is tuned on all rows, else row",
        ),
    ] = None
    trunk_overlap: Annotated[
        int | float,
        Setting(
            "fewest items of a longer history that a row sees with train_unit: user",
            share=True,
            low=1,
            note="shares are of MAX_ITEM_LIST_LENGTH; 1.0 shortens no history, so that rows share less computation",
        ),
    ] = 0.5


def most_shown(settings: Settings) -> int | None:
    """Items of a history that a prompt shows at most; None where it shows all that a row has.

    Args:
        settings: settings of a run, resolved.

    Example:
        >>> most_shown({"prompt_items": 5, "MAX_ITEM_LIST_LENGTH": 10})
        5
        >>> most_shown({"prompt_items": 10, "MAX_ITEM_LIST_LENGTH": 10}) is None
        True
    """
    count: int | None = settings["prompt_items"]
    return count if count is not None and count < settings["MAX_ITEM_LIST_LENGTH"] else None
