"""Prompts in which items are codes: a history of codes, a code and its title."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from recbole_llm.prompt.encoder import PromptEncoder
from recbole_llm.prompt.example import Example
from recbole_llm.prompt.layout import Layout, quote
from recbole_llm.prompt.wording import Wording

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class CodePromptEncoder(PromptEncoder):
    """The codes of a history, joined without blanks; the answer is one code.

    An item without a code is not shown. The prompt does not depend on the target. Of a history that is too long the
    newest code stays.

    Args:
        *args: Those of :class:`PromptEncoder`.
        codes: Token ids of each item's code, None where it has none; read at every call, so that codes may change.
        code_names: How each of these tokens is written, by its id.
        **options: Those of :class:`PromptEncoder`.

    Example:
        >>> words, letters = Wording("movie", "movies", "watched"), lambda text: [ord(letter) for letter in text]
        >>> codes, names = [None, [900, 902], [901, 902]], {900: "<a_0>", 901: "<a_1>", 902: "<b_0>"}
        >>> titles = [None, "Babe", "Heat"]
        >>> encoder = CodePromptEncoder(words, letters, titles, codes=codes, code_names=names, eos_token_id=0)
        >>> example = Example(history=[1, 2], target=1)
        >>> print(encoder.text(example).splitlines()[-3])
        So far this user has watched: <a_0><b_0><a_1><b_0>
        >>> encoder.response(example)
        [900, 902, 0]
    """

    cut_slot: ClassVar[str] = ""  # nothing is cut: a code is shown whole or not at all
    least_history: ClassVar[int] = 1
    may_list_candidates: ClassVar[bool] = False
    sentence: ClassVar[str] = "code_input"
    """The sentence of the wording that holds the slots."""

    def __init__(
        self,
        *args: Any,
        codes: Sequence[Sequence[int] | None],
        code_names: Mapping[int, str],
        **options: Any,
    ) -> None:
        self.codes, self.code_names = codes, code_names
        super().__init__(*args, **options)

    @classmethod
    def _make_layout(
        cls, wording: Wording, style: str, tokenizer: PreTrainedTokenizerBase | None, candidates: bool
    ) -> Layout:
        return wording.of_codes(cls.sentence, style, tokenizer)

    def has_prompt(self, example: Example) -> bool:
        """Whether an item of the history has a code."""
        return any(self.codes[item] is not None for item in example.history)

    def has_response(self, example: Example) -> bool:
        """Whether the target has a code."""
        return self.codes[example.target] is not None

    def response(self, example: Example) -> list[int]:
        """The target's code, EOS included. See :class:`PromptEncoder`."""
        return self.item_response(example.target)

    def item_response(self, item: int) -> list[int]:
        """Token ids of the answer that names this item, EOS included.

        Raises:
            ValueError: The item has no code.
        """
        return [*self._code(item), self.eos_token_id]

    def text(self, example: Example) -> str:
        """See :class:`PromptEncoder`."""
        filled = self._filled(self._shown(example))
        parts = zip(self.layout.texts, [*self.layout.slots, None], strict=True)
        return "".join(text + (self._slot_text(slot, filled[slot]) if slot else "") for text, slot in parts)

    def facts(self) -> dict[str, Any]:
        """See :class:`PromptEncoder`."""
        return {**super().facts(), "items": "codes"}

    def _shown(self, example: Example) -> Example:
        """The example without items that have no code, or that are not among those to show."""
        kept = self._kept(example, [self.codes[item] is not None for item in example.history])
        shown = replace(example, history=[example.history[index] for index in kept])
        if not self.has_prompt(shown):
            raise ValueError("there is no code to show")
        return shown

    def _filled(self, shown: Example) -> Mapping[str, Sequence[int]]:
        return {"history": shown.history}

    def _slot(self, slot: str, items: Sequence[int], cut: int | None = None) -> list[int]:
        """What fills a slot and the fixed text after it."""
        return [*self._slot_tokens(slot, items), *self._pieces.behind(slot)]

    def _slot_tokens(self, slot: str, items: Sequence[int]) -> list[int]:
        return [token for item in items for token in self._code(item)]

    def _slot_text(self, slot: str, items: Sequence[int]) -> str:
        return "".join(self.code_names[token] for token in self._slot_tokens(slot, items))

    def _code(self, item: int) -> Sequence[int]:
        code = self.codes[item]
        if code is None:
            name = item if self.outside_ids is None else self.outside_ids[item]
            raise ValueError(f"item {str(name)!r} has no code")
        return code

    def _least_tokens(self) -> int:
        """A prompt with the longest code."""
        longest = max((len(code) for code in self.codes if code is not None), default=1)
        return sum(map(len, self._pieces.fixed)) + longest


class OneItemPrompts(CodePromptEncoder):
    """Prompts about the target alone."""

    least_history: ClassVar[int] = 0

    def has_prompt(self, example: Example) -> bool:
        """Whether the target has a code and a title."""
        return self.codes[example.target] is not None and self.titles[example.target] is not None

    def has_response(self, example: Example) -> bool:
        """Whether the target has a code and a title, as a prompt needs them too."""
        return self.has_prompt(example)

    def _shown(self, example: Example) -> Example:
        if not self.has_prompt(example):
            raise ValueError("there is no code or no title to show")
        return replace(example, history=())

    def _filled(self, shown: Example) -> Mapping[str, Sequence[int]]:
        return dict.fromkeys(self.layout.slots, [shown.target])


class CodeToTitlePrompts(OneItemPrompts):
    """A code; the answer is the quoted title."""

    sentence: ClassVar[str] = "code_to_title"

    def item_response(self, item: int) -> list[int]:
        """The quoted title, EOS included."""
        return [*self._pieces.of(quote(self._title(item, "be an answer"))), self.eos_token_id]


class TitleToCodePrompts(OneItemPrompts):
    """A quoted title; the answer is the code."""

    sentence: ClassVar[str] = "title_to_code"

    def prompt(self, example: Example) -> list[int]:
        """See :class:`PromptEncoder`; of a title that is too long the end is cut."""
        token_ids, limit = self._compose(self._shown(example)), self.max_prompt_tokens
        if limit is None or len(token_ids) <= limit:
            return token_ids
        title = self._slot_tokens("title", [example.target])
        kept = title[: max(len(title) - (len(token_ids) - limit), 0)]
        return [*self.common_prefix, *kept, *self._pieces.behind("title")]

    def _slot_tokens(self, slot: str, items: Sequence[int]) -> list[int]:
        return self._pieces.of(self._slot_text(slot, items))

    def _slot_text(self, slot: str, items: Sequence[int]) -> str:
        (item,) = items
        return self._pieces.blank(slot) + quote(self._title(item))


class UserCodePrompts(CodePromptEncoder):
    """A user's code and the codes of the history; the answer is one code."""

    sentence: ClassVar[str] = "user_input"

    def _filled(self, shown: Example) -> Mapping[str, Sequence[int]]:
        return {"user": shown.user, "history": shown.history}

    def _slot_tokens(self, slot: str, items: Sequence[int]) -> list[int]:
        return list(items) if slot == "user" else super()._slot_tokens(slot, items)

    def _least_tokens(self) -> int:
        """With a user's code, which is as long as an item's without its counter."""
        longest = max((len(code) for code in self.codes if code is not None), default=1)
        return super()._least_tokens() + max(longest - 1, 0)


class UserSearchPrompts(UserCodePrompts):
    """The target's code and the codes of users who took it; the answer, another such user, is no part of it."""

    sentence: ClassVar[str] = "user_search"
    least_history: ClassVar[int] = 0

    def has_prompt(self, example: Example) -> bool:
        """Whether the target has a code, and users are named."""
        return self.codes[example.target] is not None and bool(example.user)

    def user_response(self, tokens: Sequence[int]) -> list[int]:
        """Token ids of the answer that names a user, EOS included."""
        return [*tokens, self.eos_token_id]

    def _filled(self, shown: Example) -> Mapping[str, Sequence[int]]:
        return {"code": [shown.target], "user": shown.user}

    def _history_slots(self, shown: Example) -> Sequence[str]:
        return ()


TASKS: Mapping[str, type[OneItemPrompts]] = {"item2text": CodeToTitlePrompts, "text2item": TitleToCodePrompts}
"""What an LLM can learn of an item's code beside its use in histories."""
