"""Prompts of the yes/no task: liked and disliked titles, one more title, and a question that takes Yes or No.

Like `prompt.py`, a prompt is put together from token-id pieces, so training and scoring see the same tokens and the
answer's first token is one position: the one after the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_json
from recbole_llm.prompt.encoder import SEPARATOR, Encode, PromptPieces, PromptTemplate, quote
from recbole_llm.prompt.titles import Titled

ANSWERS = ("No", "Yes")  # by label
NONE = "none"  # in place of an empty list of titles
_END = "."

Shown = list[tuple[str, bool]]  # title and whether it was liked, oldest first


class ClickPromptBuilder(PromptPieces):
    """Prompts and responses of the yes/no task as token ids, from item ids.

    Attributes:
        answer_token_ids: The single tokens of No and Yes, by label.
    """

    def __init__(
        self,
        template: PromptTemplate,
        encode: Encode,
        catalog: Titled,
        *,
        style: str = "alpaca",
        chat_template: Any = None,
        **options: Any,
    ) -> None:
        """Join wording, tokenizer and catalogue.

        Args:
            template: The wording.
            encode: Text to token ids, without special tokens (see `prompt.text_encoder`).
            catalog: The items.
            style: See :class:`PromptPieces`, as for the next.
            chat_template: The Hugging Face tokenizer.
            **options: Further arguments of :class:`PromptPieces`.

        Raises:
            InputError: Unknown style, no usable chat template, an answer that is not a single token, or a limit that is
                too short for the template.
        """
        self.catalog, self.style = catalog, style
        self._texts, self._slots = template.pieces("click_input", style, chat_template)
        super().__init__(self._texts, encode, style=style, chat_template=chat_template, **options)
        self.answer_token_ids = self._answer_tokens()
        self._check_limit(len(self._compose([], [0])))

    def prompt(self, history: Sequence[int], likes: Sequence[bool], target: int) -> list[int]:
        """Token ids of the question whether a user likes an item.

        A prompt over the limit loses its oldest titles, liked or not; if it is still too long without any, the end of
        the target's title is cut.

        Args:
            history: Item ids, oldest first; padding and untitled items are skipped.
            likes: Whether the user liked each of them.
            target: The item asked about.

        Raises:
            ValueError: The target has no title.
        """
        shown, title = self._titles(history, likes, target)
        self.n_prompts += 1
        quoted = self._piece(self._blank_of("target") + quote(title))
        token_ids, limit = self._compose(shown, quoted), self.max_prompt_tokens
        if limit is None or len(token_ids) <= limit:
            return token_ids
        self.n_shortened += 1
        while shown and len(token_ids) > limit:
            shown = shown[1:]
            token_ids = self._compose(shown, quoted)
        excess = max(len(token_ids) - limit, 0)
        return self._compose(shown, quoted[: len(quoted) - excess])

    def response(self, liked: bool) -> list[int]:
        """Token ids of the answer, EOS included: the answer's own token, a full stop, EOS."""
        return [self.answer_token_ids[bool(liked)], *self._piece(_END), self.eos_token_id]

    def text(self, history: Sequence[int], likes: Sequence[bool], target: int) -> str:
        """The whole prompt as text, for people to read: BOS not shown, not shortened."""
        shown, title = self._titles(history, likes, target)
        filled = {"target": quote(title)}
        for slot, liked in (("liked", True), ("disliked", False)):
            filled[slot] = f"{SEPARATOR} ".join(quote(own) for own, like in shown if like == liked) or NONE
        parts = zip([*self._slots, None], self._texts, strict=True)
        return "".join(text + (filled[slot] if slot else "") for slot, text in parts)

    def fingerprint(self) -> str:
        """SHA-256 of wording, style and limit; catalogue and LLM have their own."""
        return hash_json(self.facts())

    def facts(self) -> dict[str, Any]:
        """What decides a prompt besides tokenizer and catalogue."""
        fixed = {"texts": self._texts, "slots": self._slots, "style": self.style, "answers": ANSWERS, "end": _END}
        return {**fixed, "none": NONE, "separator": SEPARATOR, "max_prompt_tokens": self.max_prompt_tokens}

    # ---- pieces

    def _titles(self, history: Sequence[int], likes: Sequence[bool], target: int) -> tuple[Shown, str]:
        titles = self.catalog.titles
        if (title := titles[target]) is None:
            raise ValueError(f"item {self.catalog.tokens[target]!r} has no title and cannot be asked about")
        rows = zip(history, likes, strict=True)
        return [(own, bool(like)) for item, like in rows if (own := titles[item]) is not None], title

    def _compose(self, shown: Shown, target: list[int]) -> list[int]:
        filled = {"target": target}
        for slot, liked in (("liked", True), ("disliked", False)):
            titles, blank = [title for title, like in shown if like == liked], self._blank_of(slot)
            filled[slot] = self._quoted(titles, blank) if titles else self._piece(blank + NONE)
        token_ids = list(self.common_prefix)
        for slot, fixed in zip(self._slots, self._fixed[1:], strict=True):
            token_ids += filled[slot] + fixed
        return token_ids

    def _blank_of(self, slot: str) -> str:
        return self._blanks[self._slots.index(slot)]

    def _answer_tokens(self) -> tuple[int, int]:
        """The tokens that stand for the answers, as they follow the prompt."""
        found = [self._encode(answer) for answer in ANSWERS]
        if any(len(token_ids) != 1 for token_ids in found) or found[0] == found[1]:
            parts = " and ".join(f"'{answer}' {len(ids)}" for answer, ids in zip(ANSWERS, found, strict=True))
            raise InputError(
                f"llm_path: its tokenizer has no single token for each of Yes and No ({parts}), and clicks are told by "
                "comparing two tokens; choose another LLM"
            )
        return found[0][0], found[1][0]
