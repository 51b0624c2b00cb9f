"""Prompts for the next item: a history of titles, answered with a title."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from recbole_llm.prompt.encoder import PromptEncoder
from recbole_llm.prompt.example import Example
from recbole_llm.prompt.layout import Layout
from recbole_llm.prompt.wording import Wording

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TitlePromptEncoder(PromptEncoder):
    """The quoted titles of a history, where asked those of candidates; the answer is one quoted title.

    The prompt does not depend on the target. Of a history that is too long the newest title stays, cut at its end if
    need be; its item's slot stays whole.

    Example:
        >>> from recbole_llm.prompt import Example, Wording
        >>> words, letters = Wording("movie", "movies", "watched"), lambda text: [ord(letter) for letter in text]
        >>> encoder = TitlePromptEncoder(words, letters, [None, "Toy Story", "Babe", "Heat"], eos_token_id=0)
        >>> example = Example(history=[1, 2], target=3)
        >>> print(encoder.text(example).splitlines()[-3])
        So far this user has watched these movies: "Toy Story", "Babe"
        >>> encoder.prompt(example) == letters(encoder.text(example))
        True
        >>> encoder.response(example) == [*letters('"Heat"'), 0]
        True
    """

    cut_slot: ClassVar[str] = "history"
    least_history: ClassVar[int] = 1

    @classmethod
    def _make_layout(
        cls, wording: Wording, style: str, tokenizer: PreTrainedTokenizerBase | None, candidates: bool
    ) -> Layout:
        return wording.next_item(style, tokenizer, candidates=candidates)

    def has_prompt(self, example: Example) -> bool:
        """Whether an item of the history has a title and, where candidates are listed, one of them has."""
        listed = not self.lists_candidates or any(self._titled(example.candidates))
        return listed and any(self.titles[item] is not None for item in example.history)

    def has_response(self, example: Example) -> bool:
        """Whether the target has a title."""
        return self.titles[example.target] is not None

    def response(self, example: Example) -> list[int]:
        """Token ids of the target's title, EOS included. See :class:`PromptEncoder`."""
        return self.item_response(example.target)

    def item_response(self, item: int) -> list[int]:
        """Token ids of the answer that names this item, EOS included.

        Raises:
            ValueError: The item has no title.
        """
        return self.title_response(self._title(item, "be an answer"))

    def title_response(self, title: str) -> list[int]:
        """Token ids of an answer that names any title, EOS included."""
        return [*self._pieces.of(self.layout.before_answer + self.layout.show(title)), self.eos_token_id]

    def response_from_text(self, text: str) -> list[int]:
        """Token ids of any answer text as it stands, then EOS: generated answers serve as targets without grounding."""
        before = self.layout.before_answer
        return [*self._encode(text if text.startswith(before) else before + text), self.eos_token_id]

    def _shown(self, example: Example) -> Example:
        shown = super()._shown(example)
        if not shown.history:
            raise ValueError("a prompt needs at least one title of history")
        return shown

    def _filled(self, shown: Example) -> Mapping[str, Sequence[int]]:
        return {"history": shown.history, "candidates": shown.candidates}
