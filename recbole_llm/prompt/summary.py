"""Prompts that summarise a user in one token: a numbered list of items (Laser, arXiv 2409.01605)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from recbole_llm.prompt.example import Example
from recbole_llm.prompt.layout import Layout
from recbole_llm.prompt.next_item import TitlePromptEncoder
from recbole_llm.prompt.wording import Wording

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SummaryPromptEncoder(TitlePromptEncoder):
    r"""The items of a history, one a line with a number before it.

    A history of one item is the prompt of that item.

    Example:
        >>> words, letters = Wording("movie", "movies", "watched"), lambda text: [ord(letter) for letter in text]
        >>> encoder = SummaryPromptEncoder(words, letters, [None, "Toy Story", "Babe"], eos_token_id=0, style="plain")
        >>> print(encoder.text(Example(history=[2, 1], target=0)).strip())
        You know movies and the people who have watched them.
        <BLANKLINE>
        Sum up in a single token what the user with this history of movies likes.
        <BLANKLINE>
        What this user has watched, oldest first:
        1. Babe
        2. Toy Story
    """

    may_list_candidates: ClassVar[bool] = False

    @classmethod
    def _make_layout(
        cls, wording: Wording, style: str, tokenizer: PreTrainedTokenizerBase | None, candidates: bool
    ) -> Layout:
        return wording.summary(style, tokenizer)

    def text(self, example: Example) -> str:
        """See :class:`PromptEncoder`."""
        before, behind = self.layout.texts
        return before + "".join(self._lines(self._shown(example).history)) + behind

    def facts(self) -> dict[str, Any]:
        """See :class:`PromptEncoder`."""
        return {**super().facts(), "items": "numbered lines"}

    def _lines(self, items: Sequence[int]) -> list[str]:
        return [f"\n{number}. {self._title(item)}" for number, item in enumerate(items, start=1)]

    def _lengths(self, slot: str, items: Sequence[int]) -> Iterator[int]:
        """See :class:`PromptEncoder`; every line is numbered anew, and a number may be one token or several."""
        for start in range(len(items)):
            lines = self._lines(items[start:])
            yield sum(len(self._pieces.of(line)) for line in lines) + len(self._pieces.behind(slot))

    def _slot(self, slot: str, items: Sequence[int], cut: int | None = None) -> list[int]:
        """The lines, each tokenised by itself, and the fixed text after them."""
        *lines, last = map(self._pieces.of, self._lines(items))
        shown = [token for line in lines for token in line]
        return [*shown, *last[: max(len(last) - (cut or 0), 0)], *self._pieces.behind(slot)]
