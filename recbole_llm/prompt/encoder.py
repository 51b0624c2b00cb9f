"""Examples become token ids: prompts that end where the answer begins, and responses.

Training, distillation, generation and scoring all call the same functions, so the boundary between prompt and response
is one token boundary everywhere. Which kind of prompt it is, no caller needs to know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_json
from recbole_llm.prompt.example import Example
from recbole_llm.prompt.layout import NONE, Layout
from recbole_llm.prompt.pieces import Pieces
from recbole_llm.prompt.shown import ShownItems
from recbole_llm.prompt.tokens import Encode, inside_encoder
from recbole_llm.prompt.wording import Wording

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptEncoder(ABC):
    """Prompts and responses of examples as token ids.

    A prompt is put together from :class:`recbole_llm.prompt.pieces.Pieces`, so the beginning is the same token sequence
    in every prompt, and the whole has the tokens of its text, in which ``",`` or ``)"`` and a line break may be one.

    A prompt over the limit loses its oldest titles; if it is still too long, the end of one title is cut
    (:attr:`cut_slot`). Fixed texts and candidates always stay.

    Attributes:
        layout: The fixed texts and the slots between them.
        titles: Title per item id, None where the item has none.
        eos_token_id: Ends every response.
        max_prompt_tokens: Longest prompt allowed, BOS included; None for no limit.
        item_slots: Whether every title is followed by its item's slot.
        shown_items: Which items of a history are shown; None for all that can be.
        n_prompts: Prompts encoded so far.
        n_shortened: How many of them exceeded `max_prompt_tokens` and lost titles or a part of one.
    """

    cut_slot: ClassVar[str]
    """The slot whose last title is cut where dropping titles is not enough."""
    least_history: ClassVar[int]
    """Titles of the history that are never dropped."""
    may_list_candidates: ClassVar[bool] = True
    """Whether these prompts can list titles to choose from."""

    def __init__(
        self,
        wording: Wording,
        encode: Encode,
        titles: Sequence[str | None],
        *,
        eos_token_id: int,
        bos_token_id: int | None = None,
        style: str = "alpaca",
        chat_template: PreTrainedTokenizerBase | None = None,
        max_prompt_tokens: int | None = None,
        candidates: bool = False,
        item_slots: bool = False,
        shown_items: ShownItems | None = None,
        outside_ids: Sequence[str] | None = None,
    ) -> None:
        """Join wording, tokenizer and titles.

        Args:
            wording: The words and sentences.
            encode: Text to token ids, without special tokens (see `text_encoder`).
            titles: Title per item id, on one line and without outer blanks as a catalogue has them; None where an item
                has none, as for 0, the padding. Kept as it is, not copied.
            eos_token_id: Ends every response.
            bos_token_id: Starts every prompt, if the tokenizer has one; a chat template brings its own.
            style: `alpaca`, `plain`, `list`, `lines` or `chat` (see :meth:`Layout.of_blocks`). A chat template spells
                special tokens, BOS among them, which titles must not: they are encoded as such in the fixed texts only.
            chat_template: The Hugging Face tokenizer whose chat template is used, for style `chat` only.
            max_prompt_tokens: Longest prompt allowed, BOS included; no limit by default.
            candidates: Whether prompts list the titles to choose from.
            item_slots: Whether every title is followed by its item's slot: the negative item id, a "token" that no
                tokenizer knows and no text can contain.
            shown_items: Which items of a history are shown, of those that have a title; all by default.
            outside_ids: What messages call each item; the item ids by default.

        Raises:
            InputError: Unknown style, no usable chat template, or a limit that is too short for the wording.
        """
        self.layout = self.make_layout(wording, style, chat_template, candidates)
        self.titles, self.outside_ids, self.item_slots = titles, outside_ids, item_slots
        self.eos_token_id, self.max_prompt_tokens = eos_token_id, max_prompt_tokens
        self.shown_items = shown_items
        self.n_prompts = self.n_shortened = 0
        self._encode = inside_encoder(encode)
        self._pieces = Pieces(self.layout, encode, bos_token_id, chat_template)
        self._check_limit(self._least_tokens(), "the prompt template", "shorten the template")

    @classmethod
    def make_layout(
        cls, wording: Wording, style: str, tokenizer: PreTrainedTokenizerBase | None = None, candidates: bool = False
    ) -> Layout:
        """The layout of these prompts in a wording; arguments and errors as for :meth:`Wording.next_item`.

        Raises:
            ValueError: Candidates are asked for, and these prompts list none.
        """
        if candidates and not cls.may_list_candidates:
            raise ValueError(f"{cls.__name__} lists no candidates")
        return cls._make_layout(wording, style, tokenizer, candidates)

    @classmethod
    @abstractmethod
    def _make_layout(
        cls, wording: Wording, style: str, tokenizer: PreTrainedTokenizerBase | None, candidates: bool
    ) -> Layout:
        """See :meth:`make_layout`; candidates are asked for only where the prompts may list some."""

    # ---- what is asked of every kind of prompt

    @property
    def common_prefix(self) -> list[int]:
        """Token ids every prompt starts with, BOS included."""
        return self._pieces.fixed[0]

    @property
    def lists_candidates(self) -> bool:
        """Whether prompts list the titles to choose from."""
        return "candidates" in self.layout.slots

    @abstractmethod
    def has_prompt(self, example: Example) -> bool:
        """Whether there is a prompt for this example: whether the titles that it needs are there."""

    @abstractmethod
    def has_response(self, example: Example) -> bool:
        """Whether the true answer is known and can be written."""

    def prompt(self, example: Example) -> list[int]:
        """Token ids of the prompt; slots, if any, as negative item ids.

        Padding and items without a title are skipped, repeated items are kept.

        Raises:
            InputError: The candidates leave no room for a single token of history.
            ValueError: There is no prompt for this example (:meth:`has_prompt`), or candidates are given without a
                slot for them or the other way round.
        """
        shown, limit = self._shown(example), self.max_prompt_tokens
        self.n_prompts += 1
        token_ids = self._compose(shown)
        if limit is None or len(token_ids) <= limit:
            return token_ids
        self.check_candidates(shown.candidates)
        self.n_shortened += 1
        n_dropped = self._n_dropped(shown, len(token_ids) - limit)
        shown = replace(shown, history=shown.history[n_dropped:], likes=shown.likes and shown.likes[n_dropped:])
        token_ids = self._compose(shown)
        if len(token_ids) <= limit:
            return token_ids
        return self._compose(shown, cut=max(len(self._compose(shown, cut=0)) - limit, 0))

    def fits(self, example: Example) -> bool:
        """Whether the prompt of this example keeps within ``max_prompt_tokens`` without losing anything."""
        limit = self.max_prompt_tokens
        return limit is None or len(self._compose(self._shown(example))) <= limit

    @abstractmethod
    def response(self, example: Example) -> list[int]:
        """Token ids of the true answer, EOS included.

        Raises:
            ValueError: There is none (:meth:`has_response`).
        """

    def shown(self, example: Example) -> Example:
        """The example with the items that its prompt shows, unless that is too long, and no others.

        Raises:
            ValueError: See :meth:`prompt`.
        """
        return self._shown(example)

    def text(self, example: Example) -> str:
        """The whole prompt as text, for people to read: BOS and slots of items not shown, not shortened."""
        filled = self._filled(self._shown(example))
        return self.layout.fill({slot: [self._title(item) for item in items] for slot, items in filled.items()})

    def check_candidates(self, candidates: Sequence[int]) -> None:
        """Refuse candidates, given by item ids, beside which no token of a history has room.

        Raises:
            InputError: There is no room.
        """
        listed = self._titled(candidates)
        least = self._least_tokens()
        if listed:
            least += len(self._slot("candidates", listed)) - len(self._pieces.behind("candidates"))
        self._check_limit(least, "a prompt with its candidates", "list fewer candidates")

    def fingerprint(self) -> str:
        """SHA-256 of wording, style and limit; titles and tokenizer have their own."""
        return hash_json(self.facts())

    def facts(self) -> dict[str, Any]:
        """What decides a prompt besides tokenizer and titles, as JSON values."""
        facts = {**self.layout.facts(), "separator": self.layout.separator, "max_prompt_tokens": self.max_prompt_tokens}
        facts["pieces"] = "up to a blank"
        shown = {"shown": self.shown_items.facts()} if self.shown_items is not None else {}
        return {**facts, "item_slots": self.item_slots, **shown}

    # ---- pieces

    @abstractmethod
    def _filled(self, shown: Example) -> Mapping[str, Sequence[int]]:
        """The items of every slot, of an example whose items all have titles."""

    def _history_slots(self, shown: Example) -> Sequence[str]:
        """The slot of each item of the history; empty where no slot shows it."""
        return ["history"] * len(shown.history)

    def _shown(self, example: Example) -> Example:
        """The example without items that have no title, or that are not among those to show."""
        kept = self._kept(example, [self.titles[item] is not None for item in example.history])
        candidates = self._titled(example.candidates)
        if bool(candidates) != self.lists_candidates:
            raise ValueError("candidates are listed where the layout has a slot for them, and only there")
        return replace(
            example,
            history=[example.history[index] for index in kept],
            likes=None if example.likes is None else [example.likes[index] for index in kept],
            candidates=candidates,
        )

    def _kept(self, example: Example, can_show: Sequence[bool]) -> list[int]:
        """Indices of the items of a history that are shown, of those that can be."""
        kept = [index for index, can in enumerate(can_show) if can]
        if self.shown_items is None:
            return kept
        found = self.shown_items.positions([example.history[index] for index in kept], example.target)
        return [kept[index] for index in found]

    def _titled(self, items: Sequence[int]) -> list[int]:
        return [item for item in items if self.titles[item] is not None]

    def _title(self, item: int, use: str = "be shown") -> str:
        title = self.titles[item]
        if title is None:
            name = item if self.outside_ids is None else self.outside_ids[item]
            raise ValueError(f"item {str(name)!r} has no title and cannot {use}")
        return title

    def _compose(self, shown: Example, cut: int | None = None) -> list[int]:
        """Fixed texts and titles in turn.

        Args:
            shown: What is shown.
            cut: Tokens that are missing at the end of the last title of the cut slot, which then stands apart from what
                follows; None cuts nothing.
        """
        filled, token_ids = self._filled(shown), list(self.common_prefix)
        for slot in self.layout.slots:
            token_ids += self._slot(slot, filled[slot], cut if slot == self.cut_slot else None)
        return token_ids

    def _n_dropped(self, shown: Example, surplus: int) -> int:
        """The fewest of the oldest titles whose loss makes up for a surplus of tokens, or as many as may go.

        One title less can mean more tokens: an empty slot says so in words, and merges differ at a slot's beginning. So
        the tokens are counted title by title.
        """
        filled, slots, most = self._filled(shown), self._history_slots(shown), len(shown.history) - self.least_history
        lengths = {slot: pairwise(self._lengths(slot, filled[slot])) for slot in set(slots)}
        for number, slot in enumerate(slots[:most], start=1):
            before, after = next(lengths[slot])
            surplus -= before - after
            if surplus <= 0:
                return number
        return max(most, 0)

    def _lengths(self, slot: str, items: Sequence[int]) -> Iterator[int]:
        """Tokens of a slot and the fixed text after it: of all items, without the first, the first two, and so on.

        What a slot loses with its first item depends on this one, the next and whether another follows.
        """
        length = len(self._slot(slot, items))
        yield length
        for start in range(len(items)):
            few = items[start:] if len(items) - start <= 3 else [*items[start : start + 2], items[-1]]
            length -= len(self._slot(slot, few)) - len(self._slot(slot, few[1:]))
            yield length

    def _slot(self, slot: str, items: Sequence[int], cut: int | None = None) -> list[int]:
        """What fills a slot, titles with separators between them, and the fixed text after it."""
        blank = self._pieces.blank(slot)
        if not items:
            return [*self._pieces.of(blank + NONE), *self._pieces.behind(slot)]
        shown, separator = [self.layout.show(self._title(item)) for item in items], self.layout.separator
        titles = [blank + shown[0], *(self.layout.before_title + title for title in shown[1:])]
        if self.item_slots:
            return self._with_item_slots(titles, items, cut or 0) + self._pieces.behind(slot)
        token_ids: list[int] = []
        for title in titles[:-1]:
            token_ids += self._pieces.of(title + separator)
        if cut is None:
            return token_ids + self._pieces.ending(slot, titles[-1])
        last = self._pieces.of(titles[-1])
        return token_ids + last[: max(len(last) - cut, 0)] + self._pieces.behind(slot)

    def _with_item_slots(self, titles: Sequence[str], items: Sequence[int], cut: int) -> list[int]:
        """Titles with their items' slots behind them, which part them from the separators."""
        token_ids: list[int] = []
        for number, (title, item) in enumerate(zip(titles, items, strict=True), start=1):
            piece = self._pieces.of(title)
            token_ids += self._pieces.of(self.layout.separator) if number > 1 else []
            token_ids += piece[: max(len(piece) - cut, 0)] if number == len(items) else piece
            token_ids.append(-item)
        return token_ids

    def _least_tokens(self) -> int:
        """Tokens of the shortest prompt without candidates: one token in the cut slot."""
        return sum(map(len, self._pieces.fixed)) + 1

    def _check_limit(self, least: int, what: str, instead: str) -> None:
        """Refuses a limit under which not even the shortest prompt has room."""
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < least:
            raise InputError(
                f"max_prompt_tokens: {self.max_prompt_tokens} is too short for {what}, which needs at least {least}; "
                f"raise it, or {instead}"
            )
