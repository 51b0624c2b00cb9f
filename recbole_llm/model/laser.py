"""Laser: a frozen LLM whose state after a prompt is the vector of a user or an item (arXiv 2409.01605)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor
from torch.nn.functional import normalize

from recbole_llm.adapter import Adapter, AdapterWithModules, FrozenAdapter
from recbole_llm.distributed import process
from recbole_llm.errors import InputError
from recbole_llm.grounding.index import ItemIndex
from recbole_llm.grounding.ranking import Ranking
from recbole_llm.hashing import hash_json
from recbole_llm.llm.bi_tuning import BiTuning, ItemTable
from recbole_llm.llm.budget import run_batches
from recbole_llm.llm.laser_settings import LaserSettings
from recbole_llm.llm.parts import input_embedding
from recbole_llm.model.base import LLMRecommender
from recbole_llm.modes import evaluating
from recbole_llm.progress import Bar
from recbole_llm.prompt import Example, PromptEncoder
from recbole_llm.prompt.settings import PromptSettings
from recbole_llm.prompt.summary import SummaryPromptEncoder
from recbole_llm.settings.config import Config

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

Row = tuple[list[int], tuple[int, ...]]
"""Token ids of a prompt, and the history that it shows."""


class Laser(LLMRecommender):
    """Users and items as states of a frozen LLM after their prompts; the catalogue is ranked by cosine.

    Vectors that learn stand before and after every prompt; those before it are made of what the auxiliary recommender
    knows of the history's items. An item is a history of one item. The catalogue's vectors are kept with the weights,
    and searched by FAISS.

    Attributes:
        settings: settings of the vectors that learn.
        bi_tuning: what learns.
        table: the catalogue's vectors, zeros before training.
    """

    reads_items: ClassVar[bool] = True
    reads_histories: ClassVar[bool] = True
    prompt_encoder: ClassVar[type[PromptEncoder]] = SummaryPromptEncoder
    trainer: ClassVar[str] = "recbole_llm.trainer.laser_trainer:LaserTrainer"

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.settings = LaserSettings.from_settings(config.final_config_dict)
        self._indexed: ItemIndex | None = None
        self._load_llm(config, PromptSettings.from_settings(config.final_config_dict))

    # ---- what learns, and what is read

    def _longest_answer(self) -> int:
        """The vectors before and after a prompt take positions as well."""
        return self.settings.prefix_len + 1

    def _make_prompts(self, max_prompt_tokens: int) -> PromptEncoder:
        """See :class:`LLMRecommender`; behind an item's title stands what else is known of it."""
        described, titles = copy.copy(self.catalog), self.catalog.titles
        described.titles = [
            title and ", ".join([title, *own]) for title, own in zip(titles, self.catalog.attributes, strict=True)
        ]
        backbone = self.backbone
        return self.prompt_kind.encode_with(
            backbone.tokenizer,
            described,
            bos_token_id=backbone.bos_token_id,
            eos_token_id=backbone.eos_token_id,
            max_prompt_tokens=max_prompt_tokens,
            shown_items=self.shown_items,
        )

    def _make_adapter(self) -> Adapter:
        llm = self.backbone.model
        width = self.auxiliary.item_states([[]])[0].shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.stage_seed("bi-tuning"))
            self.bi_tuning = BiTuning(llm, width, self.settings).to(self.device)
        self.table = ItemTable(self.catalog.n_items, input_embedding(llm).embedding_dim).to(self.device)
        return AdapterWithModules(FrozenAdapter(), {"bi_tuning": self.bi_tuning, "items": self.table})

    @property
    def adapter_owner(self) -> str:
        """See :class:`LLMRecommender`."""
        return f"{self.backbone.fingerprint} with {self.auxiliary.fingerprint}"

    def facts(self) -> dict[str, Any]:
        """See :class:`LLMRecommender`."""
        later = ("tau", "balance", "fixed_epochs")
        sizes = {key: value for key, value in asdict(self.settings).items() if key not in later}
        return {**super().facts(), "attributes": hash_json(self.catalog.attributes), "laser": sizes}

    def prepare(self) -> None:
        """Nothing: rows are encoded by plain passes."""

    # ---- vectors

    @cached_property
    def titled(self) -> np.ndarray:
        """Items that have a prompt, int64, ascending."""
        return np.flatnonzero(self.catalog.has_title)

    def item_states(self, histories: Sequence[Sequence[int]]) -> list[Tensor]:
        """States of each history's items by the auxiliary recommender, float32 [known items, d]."""
        return [torch.from_numpy(own).to(self.device) for own in self.auxiliary.item_states(histories)]

    def encode(self, prompts: Sequence[Sequence[int]], states: Sequence[Tensor]) -> Tensor:
        """Vectors of rows, one forward pass, with a gradient. Returns: float32 [rows, d]."""
        found: Tensor = self.bi_tuning(self.llm, prompts, states)
        return found

    @torch.no_grad()
    def vectors(self, rows: Sequence[Row], progress: bool = False) -> np.ndarray:
        """Vectors of rows in batches, every history once. Returns: float32 [rows, d], of length 1.

        Several processes share the batches.

        Raises:
            InputError: a vector is not finite.
        """
        distinct = list({history: prompt for prompt, history in rows}.items())
        found = np.empty((len(distinct), self.table.vectors.shape[1]), dtype=np.float32)
        lengths = [len(prompt) + self._longest_answer() for _, prompt in distinct]
        share = -(-len(distinct) // process().count)
        bar = Bar(total=share, desc="encode", unit="row", disable=not progress)
        with bar, evaluating(self.llm), evaluating(self.bi_tuning):

            def run(batch: list[int]) -> None:
                histories, prompts = zip(*(distinct[row] for row in batch), strict=True)
                with self.autocast():
                    encoded = self.encode(prompts, self.item_states(histories))
                found[batch] = normalize(encoded, dim=1).cpu().numpy()
                bar.update(len(batch))

            batches = run_batches(lengths, self.generation_budget, run, together=True)
        process().complete(found, batches)
        if not np.isfinite(found).all():
            history = distinct[int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])][0]
            names = [self.catalog.tokens[item] for item in history]
            raise InputError(
                f"the vector of the history {names} is not finite; set a lower learning_rate", kind="numeric"
            )
        row_of = {history: row for row, (history, _) in enumerate(distinct)}
        picked: np.ndarray = found[[row_of[history] for _, history in rows]]
        return picked

    def refresh_items(self) -> None:
        """Compute the catalogue's vectors with the weights as they are now."""
        rows = [(self.prompts.prompt(Example([item], 0)), (item,)) for item in self.titled.tolist()]
        vectors = self.vectors(rows, progress=self.show_progress)
        self.table.vectors.data[torch.from_numpy(self.titled)] = torch.from_numpy(vectors).to(self.device)

    @property
    def item_embeddings(self) -> np.ndarray:
        """The catalogue's vectors, of length 1. Returns: float32 [items, d]; zeros for an item without text."""
        vectors: np.ndarray = self.table.vectors.detach().cpu().numpy()
        return vectors

    @property
    def index(self) -> ItemIndex:
        """The catalogue's vectors as what is searched: among vectors of length 1 the nearest has the largest cosine.

        Raises:
            ValueError: there are none before training.
        """
        vectors = self.item_embeddings
        if not vectors.any():
            raise ValueError("Laser has no item vectors before it is trained or loaded")
        if self._indexed is None or not np.array_equal(self._indexed.embeddings, vectors):
            config = self.config
            self._indexed = ItemIndex(
                vectors.copy(),
                rankable=self.catalog.has_title,
                factory=config["faiss_index"],
                search_parameters=config["faiss_search"] or "",
                device=str(self.device),
            )
        return self._indexed

    # ---- ranking

    def rank(self, interaction: Interaction, k: int, targets: Tensor | None = None) -> Ranking:
        """See :class:`LLMRecommender`; scores are minus the distances of vectors of length 1."""
        rows, asked = self._rows(interaction)
        targets = self._targets(interaction, targets)
        if not len(asked):
            return Ranking.nothing(len(interaction), k)
        wanted = None if targets is None else targets.cpu().numpy()[asked]
        return self.index.rank(self.vectors(rows), wanted, k).spread(asked, len(interaction))

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Minus the distance of every item. Returns: float64 [rows, items]; -inf where an item cannot be ranked."""
        rows, asked = self._rows(interaction)
        scores = np.full((len(interaction), self.catalog.n_items), -np.inf)
        if len(asked):
            scores[asked] = -self.index.distances(self.vectors(rows))
        return torch.from_numpy(scores).to(self.device)

    def _rows(self, interaction: Interaction) -> tuple[list[Row], np.ndarray]:
        """The rows that have a prompt, and which these are."""
        histories = self.histories(interaction)
        asked = self.readable_rows(histories)
        prompts = [cast(list[int], self._prompt(Example(histories[row], 0))) for row in asked]
        rows = [(prompt, tuple(histories[row])) for prompt, row in zip(prompts, asked, strict=True)]
        return rows, np.array(asked, dtype=np.int64)
