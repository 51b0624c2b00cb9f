"""The token-id pieces of prompts: fixed texts, titles, and titles with the text after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recbole_llm.prompt.layout import Layout
from recbole_llm.prompt.tokens import Encode, inside_encoder, special_encoder, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Pieces:
    """Token ids of the texts of a layout and of whatever stands between them, each tokenised once and kept.

    Pieces end where byte-level tokenizers (GPT-2's, Llama 3's, Qwen's) split any text, before a blank. So a blank
    before a slot goes to what fills it, a title goes together with the separator after it, and the last title of a
    slot with the text behind the slot (:meth:`ending`); put together they are the tokens of the whole text.

    Args:
        layout: The fixed texts and the slots between them.
        encode: Text to token ids, without special tokens.
        bos_token_id: Starts every prompt, if the tokenizer has one; a chat template brings its own.
        chat_template: The tokenizer whose chat template the layout is in, for style `chat` only.

    Attributes:
        fixed: Token ids of the fixed texts, without the blanks that belong to slots; BOS before the first.
    """

    def __init__(
        self,
        layout: Layout,
        encode: Encode,
        bos_token_id: int | None = None,
        chat_template: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self._layout, self._encode = layout, inside_encoder(encode)
        self._known: dict[str, list[int]] = {}
        self._endings: dict[tuple[str, str], tuple[list[int], int]] = {}
        wording: Encode = encode
        self._special: tuple[str, ...] = ()
        if layout.style == "chat" and chat_template is not None:
            wording, self._special = special_encoder(chat_template), special_tokens(chat_template)
        self._wording = inside_encoder(wording)
        bos = [] if bos_token_id is None or layout.style == "chat" else [bos_token_id]
        first, *others = [*(text.removesuffix(" ") for text in layout.texts[:-1]), layout.texts[-1]]
        self.fixed = [bos + wording(first), *map(self._wording, others)]

    def of(self, text: str) -> list[int]:
        """Token ids of a text inside a prompt."""
        if text not in self._known:
            self._known[text] = self._encode(text)
        return self._known[text]

    def blank(self, slot: str) -> str:
        """The blank before a slot, which belongs to the first title in it."""
        return " " if self._layout.texts[self._index(slot)].endswith(" ") else ""

    def behind(self, slot: str) -> list[int]:
        """Token ids of the fixed text behind a slot, without the blank of the next one."""
        return self.fixed[self._index(slot) + 1]

    def ending(self, slot: str, title: str) -> list[int]:
        """Token ids of the last title of a slot together with the text behind the slot.

        What differs from the fixed text alone is kept for each title, and how many tokens of that text follow.
        """
        fixed = self.behind(slot)
        if (slot, title) not in self._endings:
            together = self._joined(title, slot)
            n_fixed = _common_end(fixed, together)
            self._endings[slot, title] = together[: len(together) - n_fixed], n_fixed
        head, n_fixed = self._endings[slot, title]
        return head + fixed[len(fixed) - n_fixed :]

    def _joined(self, title: str, slot: str) -> list[int]:
        """Title and text after it as one text, up to the first special token of a chat template."""
        index = self._index(slot)
        is_last = index + 1 == len(self._layout.slots)
        text = self._layout.texts[index + 1].removesuffix("" if is_last else " ")
        starts = [start for token in self._special if (start := text.find(token)) >= 0]
        plain, rest = (text[: min(starts)], text[min(starts) :]) if starts else (text, "")
        return [*self._encode(title + plain), *(self._wording(rest) if rest else [])]

    def _index(self, slot: str) -> int:
        return self._layout.slots.index(slot)


def _common_end(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences end in alike."""
    common = 0
    while common < min(len(one), len(other)) and one[-1 - common] == other[-1 - common]:
        common += 1
    return common
