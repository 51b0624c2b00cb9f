"""Rows of RecBole as an LLM reads them: histories, examples, and token ids of prompts and responses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from recbole.data.interaction import Interaction
from transformers import PreTrainedTokenizerBase

from recbole_llm.data.candidates import Candidates
from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.evaluation import protocol_of
from recbole_llm.llm.backbone import Backbone
from recbole_llm.model.backbones import positions_of
from recbole_llm.prompt import Example, PromptEncoder, TitlePromptEncoder, Wording, text_encoder
from recbole_llm.prompt.layout import Layout
from recbole_llm.prompt.pieces import Pieces
from recbole_llm.prompt.shown import ShownItems
from recbole_llm.settings.config import Config

TokenPair = tuple[list[int], list[int]]
"""Token ids of a prompt and of its response."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptKind:
    """The prompts of a recommender before there is a tokenizer.

    Attributes:
        encoder: how examples become token ids.
        wording: the words and sentences.
        style: ``alpaca``, ``plain`` or ``chat``.
        n_candidates: titles that a prompt lists to choose from; 0 where it lists none.
    """

    encoder: type[PromptEncoder]
    wording: Wording
    style: str
    n_candidates: int

    @property
    def layout(self) -> Layout:
        """Fixed texts and the slots between them, without a chat template."""
        return self.encoder.make_layout(self.wording, self.style, candidates=self.n_candidates > 0)

    def encode_with(
        self,
        tokenizer: PreTrainedTokenizerBase,
        catalog: ItemCatalog,
        encoder: type[PromptEncoder] | None = None,
        **options: Any,
    ) -> PromptEncoder:
        """The prompts in the tokens of a tokenizer.

        Args:
            tokenizer: Hugging Face's.
            catalog: the items.
            encoder: another one in the same words and style.
            **options: those of the encoder.
        """
        return (encoder or self.encoder)(
            self.wording,
            text_encoder(tokenizer),
            catalog.titles,
            style=self.style,
            chat_template=tokenizer,
            candidates=self.n_candidates > 0,
            outside_ids=catalog.tokens,
            **options,
        )

    def without_history(self, tokenizer: PreTrainedTokenizerBase, bos_token_id: int | None) -> list[int]:
        """Token ids of a prompt for the next item that shows no history: the same for every row."""
        layout = self.wording.without_history(self.style, tokenizer)
        return Pieces(layout, text_encoder(tokenizer), bos_token_id, tokenizer).fixed[0]


class RowReader:
    """The part of a recommender that turns rows into prompts and responses.

    Attributes:
        catalog: item id to title and back.
        prompts: examples to token ids.
        candidates: what the prompts of the run's rows list, once drawn; None where they list nothing.
        shown_items: which items of a history prompts show (``prompt_items``); None where they show all.
        history_cut: chooses how much of each history is shown (``history_policy``); None shows all.
        n_cut: responses read so far that lost their end for want of positions.
    """

    # Names of the columns, by RecBole.
    ITEM_ID: str
    ITEM_SEQ: str
    ITEM_SEQ_LEN: str
    config: Config
    catalog: ItemCatalog
    wording: Wording
    _prompt_style: str
    backbone: Backbone
    prompts: PromptEncoder
    candidates: Candidates | None = None
    shown_items: ShownItems | None = None
    history_cut: Callable[[list[list[int]]], list[list[int]]] | None = None
    n_cut = 0
    item_slots: ClassVar[bool] = False
    """Whether a slot for the item's vector follows each title of a prompt."""
    prompt_encoder: ClassVar[type[PromptEncoder]] = TitlePromptEncoder
    """How examples become token ids."""

    @property
    def n_candidates(self) -> int:
        """Titles that a prompt lists to choose from; 0 where it lists none."""
        return protocol_of(self.config).n_candidates

    @property
    def prompt_kind(self) -> PromptKind:
        """The prompts of this model before there is a tokenizer."""
        return PromptKind(self.prompt_encoder, self.wording, self._prompt_style, self.n_candidates)

    def _make_prompts(self, max_prompt_tokens: int) -> PromptEncoder:
        backbone = self.backbone
        return self.prompt_kind.encode_with(
            backbone.tokenizer,
            self.catalog,
            bos_token_id=backbone.bos_token_id,
            eos_token_id=backbone.eos_token_id,
            max_prompt_tokens=max_prompt_tokens,
            item_slots=self.item_slots,
            shown_items=self.shown_items,
        )

    def histories(self, interaction: Interaction) -> list[list[int]]:
        """Item ids of each row's history, oldest first, without padding: as much as is read, once that is chosen.

        A prompt may show fewer of them (``prompt_items``).
        """
        lengths = interaction[self.ITEM_SEQ_LEN].tolist()
        whole = [items[:n] for items, n in zip(interaction[self.ITEM_SEQ].tolist(), lengths, strict=True)]
        return whole if self.history_cut is None else self.history_cut(whole)

    def readable_rows(self, histories: Sequence[Sequence[int]]) -> list[int]:
        """The rows that can be answered; the log says how many cannot."""
        has_title = self.catalog.has_title
        rows = [row for row, history in enumerate(histories) if has_title[list(history)].any()]
        if unreadable := len(histories) - len(rows):
            log.warning("%d rows have no titled item in their history; they count as misses.", unreadable)
        return rows

    def set_candidates(self, candidates: Candidates) -> None:
        """Let the prompts of these rows list their candidates.

        Raises:
            InputError: a list leaves no room in ``max_prompt_tokens`` for a history.
        """
        for listed in candidates.items[candidates.items.any(axis=1)].tolist():
            self.prompts.check_candidates(listed)
        self.candidates = candidates

    def examples(self, interaction: Interaction) -> list[Example]:
        """What prompts and responses may show of each row; of its history prompts choose themselves.

        Raises:
            ValueError: the prompts list candidates, and none were drawn.
        """
        histories = self.histories(interaction)
        targets = interaction[self.ITEM_ID].tolist() if self.ITEM_ID in interaction else [0] * len(histories)
        listed: list[list[int]] = [[]] * len(histories)
        if self.prompts.lists_candidates:
            if self.candidates is None:
                raise ValueError("prompts list candidates, and none were drawn: call set_candidates first")
            listed = self.candidates.of(interaction).tolist()
        rows = zip(histories, targets, listed, strict=True)
        return [Example(history, target, candidates=own) for history, target, own in rows]

    def row_prompts(self, interaction: Interaction) -> list[list[int] | None]:
        """Prompt token ids of each row; None where the titles that a prompt needs are missing."""
        return [self._prompt(example) for example in self.examples(interaction)]

    def token_pairs(self, interaction: Interaction) -> list[TokenPair | None]:
        """Prompt and response token ids of each row; None where there is no prompt or no response.

        A title that the LLM has no positions for behind its prompt loses its end; :attr:`n_cut` counts these.
        """
        pairs: list[TokenPair | None] = []
        for example in self.examples(interaction):
            prompt = self._prompt(example)
            if prompt is None or not self.prompts.has_response(example):
                pairs.append(None)
                continue
            whole = self.prompts.response(example)
            response = self.fitted(prompt, whole)
            self.n_cut += len(response) < len(whole)
            pairs.append((prompt, response))
        return pairs

    def fitted(self, prompt: Sequence[int], answer: list[int]) -> list[int]:
        """Token ids of an answer, EOS at the end, as far as the LLM has positions for them behind a prompt.

        Room is kept for ``max_new_tokens``. A title may have more of them, and so may the texts that an LLM generates
        as targets.
        """
        positions = positions_of(self.backbone)
        # The last token is only ever predicted, so it takes no position.
        if positions is None or len(prompt) + len(answer) - 1 <= positions:
            return answer
        return [*answer[: positions - len(prompt)], answer[-1]]

    def _prompt(self, example: Example) -> list[int] | None:
        return self.prompts.prompt(example) if self.prompts.has_prompt(example) else None
