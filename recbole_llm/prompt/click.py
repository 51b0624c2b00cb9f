"""Prompts of the yes/no task: liked and disliked titles, one more title, and a question that takes Yes or No."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from recbole_llm.errors import InputError
from recbole_llm.prompt.encoder import PromptEncoder
from recbole_llm.prompt.example import Example
from recbole_llm.prompt.layout import NONE, Layout
from recbole_llm.prompt.wording import Wording

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWERS = ("No", "Yes")  # by label
_END = "."


class ClickPromptEncoder(PromptEncoder):
    """Titles of a history apart by whether the user liked them, and the question whether the user likes the target.

    The prompt depends on the target, and not on whether the user liked it. Of a prompt that is too long all titles of
    the history may go, liked or not; then the end of the target's title is cut.

    Attributes:
        answer_token_ids: The single tokens of No and Yes, by label.
    """

    cut_slot: ClassVar[str] = "target"
    least_history: ClassVar[int] = 0
    may_list_candidates: ClassVar[bool] = False

    def __init__(self, *args: Any, **options: Any) -> None:
        """See :class:`PromptEncoder`.

        Raises:
            InputError: Besides the reasons of every encoder: an answer that is not a single token.
        """
        super().__init__(*args, **options)
        self.answer_token_ids = self._answer_tokens()

    @classmethod
    def _make_layout(
        cls, wording: Wording, style: str, tokenizer: PreTrainedTokenizerBase | None, candidates: bool
    ) -> Layout:
        return wording.click(style, tokenizer)

    def has_prompt(self, example: Example) -> bool:
        """Whether the target has a title."""
        return self.titles[example.target] is not None

    def has_response(self, example: Example) -> bool:
        """Whether it is known if the user liked the target."""
        return example.liked is not None

    def response(self, example: Example) -> list[int]:
        """Token ids of the answer: the answer's own token, a full stop, EOS. See :class:`PromptEncoder`."""
        if example.liked is None:
            raise ValueError("whether the user liked the target is not known")
        return [self.answer_token_ids[bool(example.liked)], *self._pieces.of(_END), self.eos_token_id]

    def facts(self) -> dict[str, Any]:
        """See :class:`PromptEncoder`."""
        return {**super().facts(), "answers": ANSWERS, "end": _END, "none": NONE}

    def _shown(self, example: Example) -> Example:
        self._title(example.target, "be asked about")
        if len(example.likes or ()) != len(example.history):
            raise ValueError("a yes/no question needs to know which items of its history the user liked")
        return super()._shown(example)

    def _filled(self, shown: Example) -> Mapping[str, Sequence[int]]:
        rows = list(zip(shown.history, shown.likes or (), strict=True))
        liked, disliked = ([item for item, own in rows if bool(own) is like] for like in (True, False))
        return {"liked": liked, "disliked": disliked, "target": [shown.target]}

    def _history_slots(self, shown: Example) -> Sequence[str]:
        return ["liked" if like else "disliked" for like in shown.likes or ()]

    def _least_tokens(self) -> int:
        """One token of the target, no history."""
        empty = sum(len(self._pieces.of(self._pieces.blank(slot) + NONE)) for slot in ("liked", "disliked"))
        return super()._least_tokens() + empty

    def _answer_tokens(self) -> tuple[int, int]:
        """The tokens that stand for the answers, as they follow the prompt."""
        found = [self._encode(answer) for answer in ANSWERS]
        if any(len(token_ids) != 1 for token_ids in found) or found[0] == found[1]:
            parts = " and ".join(f"'{answer}' {len(ids)}" for answer, ids in zip(ANSWERS, found, strict=True))
            raise InputError(
                "llm_path: its tokenizer needs single tokens for Yes and No, which a click is predicted by, and "
                f"splits them ({parts}); choose another LLM",
                kind="conflict",
            )
        return found[0][0], found[1][0]
