"""The base class of all LLM recommenders: histories become prompts, answers become a loss or text."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_llm.adapter import Adapter
from recbole_llm.adapter.dropout import draw_by_token
from recbole_llm.adapter.ranks import Spectra
from recbole_llm.classic.auxiliary import AuxiliaryRecommender
from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.data.rows import load_rows, row_pairs
from recbole_llm.errors import InputError
from recbole_llm.grounding.ranking import Ranking, rank_scores
from recbole_llm.hashing import hash_tensors
from recbole_llm.kept import Facts, KeptRows
from recbole_llm.llm.budget import TokenBudget
from recbole_llm.llm.capabilities import FastPath
from recbole_llm.llm.encoder import TextEncoder
from recbole_llm.llm.probe import probe_llm
from recbole_llm.llm.settings import GenerationSettings
from recbole_llm.llm.trunks import TrunkScorer
from recbole_llm.model.backbones import load_llm, number_facts, positions_of, prompt_limit
from recbole_llm.model.free_answers import FreeAnswers
from recbole_llm.model.passes import LLMPasses
from recbole_llm.model.rows import TokenPair
from recbole_llm.model.spectra import SpectraStage
from recbole_llm.model.tiny_llm import Inventor, TinyLLMStage, invent_titles
from recbole_llm.model.title_embeddings import TitleEmbeddingsStage, encoder_facts
from recbole_llm.model.training_hooks import TrainingHooks
from recbole_llm.objective.preference_settings import compares_histories
from recbole_llm.prompt import PromptEncoder, Wording
from recbole_llm.prompt.settings import RECENT, PromptSettings, most_shown
from recbole_llm.prompt.shown import ShownItems
from recbole_llm.registry import find_choice
from recbole_llm.settings.config import Config
from recbole_llm.settings.training import is_tuned
from recbole_llm.stages import StageStore, stage_seed

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

__all__ = ["LLMRecommender", "TokenPair"]
log = logging.getLogger(__name__)


class LLMRecommender(LLMPasses, TrainingHooks, SequentialRecommender):
    """A causal language model that reads a history as text and answers with an item.

    A subclass says how an answer becomes scores (:meth:`full_sort_predict`) and, where they differ, which prompts it
    has (:attr:`prompt_encoder`) and what they show of a row (:meth:`examples`). How a row becomes a prompt is
    :class:`RowReader`'s, what the LLM makes of it is :class:`LLMPasses`'; what a training asks of it is
    :class:`TrainingHooks`'; what differs between rows besides their prompts is the adapter's.

    Args:
        config: the resolved config of the run.
        dataset: a RecBole data set with the item columns loaded; its interactions are not read.

    Attributes:
        catalog: item id to title and back.
        prompts: examples to token ids.
        backbone: the untuned LLM, its tokenizer and special token ids.
        adapter: which weights learn.
        llm: the LLM with the adapter attached; what is trained and what generates.
        draws: what its dropout is drawn from in training.
        free_answers: what the LLM answers, whatever items there are.
        candidates: what the prompts of the run's rows list, once drawn; None where they list nothing.
    """

    input_type = InputType.POINTWISE
    inventor: ClassVar[Inventor] = staticmethod(invent_titles)
    """Makes the examples that the tiny LLM reads."""
    answers_by: ClassVar[type[FreeAnswers]] = FreeAnswers
    """How free answers are searched for."""
    reads_items: ClassVar[bool] = False
    """Whether the LLM makes vectors and answers no prompts: then the recommender loads it where it needs it."""
    reads_histories: ClassVar[bool] = False
    """Whether such an LLM reads histories as well as items, and serves."""
    trainer: ClassVar[str] = "recbole_llm.trainer.llm_trainer:LLMTrainer"
    """What trains it, as ``"module:Class"``."""

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.config = config
        self._budgets: dict[tuple[str, int | str], TokenBudget] = {}
        self._digests: dict[bool, str] | None = None  # of the weights, by whether they are the untuned ones
        self.free_answers = self.answers_by(self)
        self.show_progress = bool(config["show_progress"])
        self.stages = StageStore(Path(config["checkpoint_dir"]) / "stages")
        settings = PromptSettings.from_settings(config.final_config_dict)
        self.catalog = ItemCatalog.from_dataset(
            dataset, config["title_field"], config["title_with"], tuple(settings.item_text_fields or ())
        )
        self.wording, self._prompt_style = Wording.of_domain(settings.domain), settings.prompt_style
        if not self.reads_items:
            self._load_llm(config, settings)

    def _load_llm(self, config: Config, settings: PromptSettings) -> None:
        self.backbone = load_llm(config, self.device, self.stages, self.build_tiny)
        wanted = settings.max_prompt_tokens
        self.shown_items = self._choose_shown(settings)
        self.prompts = self._make_prompts(wanted)  # a grounding may ask for them to tell the longest answer
        free_answer = self.generation.max_new_tokens
        if (limit := prompt_limit(self.backbone, wanted, self._longest_answer(), free_answer)) < wanted:
            self.prompts = self._shorter_prompts(limit)
        self.adapter = self._make_adapter()
        self.llm = self.adapter.attach(self.backbone.model)
        self.draws = draw_by_token(self.llm)
        alike = not self.adapter.needs_states
        self.scorer = TrunkScorer(self.llm, self.backbone.pad_token_id, self.draws, shares_heads=alike)

    def _shorter_prompts(self, limit: int) -> PromptEncoder:
        """Prompts of as many tokens as the LLM's positions leave."""
        try:
            return self._make_prompts(limit)
        except InputError as error:
            if error.key != "max_prompt_tokens":
                raise
            message = (
                f"its {positions_of(self.backbone):,} positions leave {limit} tokens for a prompt, too few for the "
                "prompt template; give an LLM with more, a smaller max_new_tokens or a shorter prompt_style"
            )
            raise InputError("llm_path", message, kind="conflict") from error

    def _choose_shown(self, settings: PromptSettings) -> ShownItems | None:
        """Which items of a history prompts show; None where they show all."""
        if (count := most_shown(self.config)) is None:
            return None
        if settings.prompt_items_by == RECENT:
            return ShownItems(count)
        return ShownItems(count, lambda: self.title_states, "titles, last state")

    @classmethod
    def check(cls, config: Config) -> None:  # noqa: B027
        """Refuse settings that do not go together, before anything is loaded.

        Raises:
            InputError: which ones.
        """

    @classmethod
    def keeps_items(cls, config: Config) -> bool:
        """Whether what a run leaves has an entry for each item, so that items which come later are unknown to it."""
        orders = config["rerank"] != "none" or config["history_policy"] != "fixed"
        return cls.reads_items or cls.borrows(config) or orders

    @classmethod
    def borrows(cls, config: Config) -> bool:
        """Whether a trained model goes on to read another recommender, which only these interactions make again."""
        if cls.reads_items and not cls.reads_histories:  # what serves has all it needs
            return False
        return cls.item_slots or cls.reads_histories or _adapter_kind(config).reads_states(config.final_config_dict)

    @property
    def generation(self) -> GenerationSettings:
        """How answers are searched for."""
        return GenerationSettings.from_settings(self.config.final_config_dict)

    @property
    def generation_budget(self) -> TokenBudget:
        """Tokens of a forward pass that generates or embeds; smaller once memory has run out."""
        return self._budget("generation_batch_tokens", training=False)

    @property
    def training_budget(self) -> TokenBudget:
        """Tokens of a forward pass with a gradient."""
        return self._budget("micro_batch_tokens", training=True)

    def _budget(self, name: str, training: bool) -> TokenBudget:
        value = self.config[name]
        if (name, value) not in self._budgets:
            self._budgets[name, value] = TokenBudget.of_setting(name, value, self.backbone.model, training)
        return self._budgets[name, value]

    @property
    def n_answers(self) -> int:
        """Different answers that a prompt can have: the candidates that it lists, or the catalogue's titles."""
        return self.n_candidates or len(np.unique(self.catalog.representative[self.catalog.has_title]))

    # ---- the LLM

    def build_tiny(self) -> Path:
        """The folder of the tiny LLM of these items and prompts."""
        kind, inventor = self.prompt_kind, type(self).inventor
        stage = TinyLLMStage(self.config, self.catalog, kind, inventor, self.max_seq_length, self.device)
        return self.stages.run(stage)

    def _longest_answer(self) -> int:
        """Tokens reserved after the prompt for the answer."""
        return self.generation.max_new_tokens

    def _longest_target(self) -> int:
        """Tokens of the longest answer to learn, as far as the LLM has positions for it."""
        return 0

    def _make_adapter(self) -> Adapter:
        adapter = _adapter_kind(self.config).from_settings(self.config.final_config_dict)
        if adapter.needs_states:
            adapter = adapter.with_states(self.auxiliary.sequence_states, self.auxiliary.state_width)

        def spectra(names: Sequence[str], compute: Callable[[], Spectra]) -> Spectra:
            return self.stages.run(SpectraStage(self.backbone, self.config, names, compute))

        return adapter.with_spectra(spectra) if adapter.needs_spectra else adapter

    @cached_property
    def auxiliary(self) -> AuxiliaryRecommender:
        """The auxiliary recommender (key ``recommender``), trained on first use."""
        config = self.config
        states = _adapter_kind(config).reads_states(config) or compares_histories(config)
        return AuxiliaryRecommender(config, config["recommender"], self.stages, needs_states=states)

    @cached_property
    def pairs_before_split(self) -> np.ndarray:
        """User and item of the interactions before the split, int64 [interactions, 2], read on first use."""
        return row_pairs(load_rows(self.config.for_auxiliary("Pop"), few_shot=False).train)

    def write_report(self, folder: Path) -> None:  # noqa: B027
        """Write what there is to tell of this model alone into the folder of its run."""

    @property
    def adapter_owner(self) -> str:
        """What trained weights are of use with: the LLM, and the recommender whose vectors or states they read."""
        reads = self.item_slots or self.adapter.needs_states
        return self.backbone.fingerprint + (f" with {self.auxiliary.fingerprint}" if reads else "")

    def keep(self, name: str, facts: Facts) -> KeptRows:
        """What finished rows of a computation by the weights as they stand are kept in, while a run is not finished.

        Args:
            name: name of the computation.
            facts: what the rows depend on besides the model and its weights, as plain data.
        """

        def all_facts() -> dict[str, Any]:
            model = {"model": self.facts(), "class": type(self).__name__, "weights": self._weights_digest()}
            return {**model, "untuned": self._is_untuned, **facts()}

        return self.stages.keep(name, all_facts)

    @contextmanager
    def weights_stay(self) -> Iterator[None]:
        """A context in which the weights must not change, so that :meth:`keep` hashes them once."""
        before, self._digests = self._digests, {}
        try:
            yield
        finally:
            self._digests = before

    def _weights_digest(self) -> str:
        known = {} if self._digests is None else self._digests
        if self._is_untuned not in known:
            known[self._is_untuned] = hash_tensors(self.adapter.trainable_state(self.llm))
        return known[self._is_untuned]

    def facts(self) -> dict[str, Any]:
        """What every prompt and every answer of this model depends on, before any tuning."""
        return {
            "llm": self.backbone.fingerprint,
            **number_facts(self.config),
            "catalog": self.catalog.fingerprint(),
            "prompt": self.prompts.fingerprint(),
            "adapter": self.adapter.facts(),
            **({"candidates": self.n_candidates} if self.n_candidates else {}),
            **({"auxiliary": self.auxiliary.fingerprint} if "auxiliary" in self.__dict__ else {}),
        }

    # ---- texts as vectors

    def text_encoder(self, llm: torch.nn.Module, **options: Any) -> TextEncoder:
        """What makes vectors of texts by this LLM, tuned or not.

        Args:
            llm: the LLM.
            **options: ``pooling``, ``max_tokens`` and ``truncation_side`` of :class:`TextEncoder`, where not its own.
        """
        return TextEncoder(llm, self.backbone.tokenizer, max_batch_tokens=self.generation_budget, **options)

    def embed(self, texts: Sequence[str], progress: bool = False, **options: Any) -> np.ndarray:
        """Vectors of texts by the untuned LLM; options as of :meth:`text_encoder`. Returns: float32 [texts, d]."""
        with self.untuned() as llm, self.autocast():
            return self.text_encoder(llm, **options).encode(texts, progress=progress)

    @cached_property
    def title_states(self) -> np.ndarray:
        """Vectors of the titles by the untuned LLM, the states of their last tokens, shared by all runs of this LLM.

        Returns:
            float32 [items, d], zeros where an item has no title.
        """
        facts = encoder_facts(self, self.text_encoder(self.llm))
        return self.stages.run(
            TitleEmbeddingsStage(self.catalog, facts, partial(self.embed, progress=self.show_progress))
        )

    # ---- answering

    def fast_paths(self) -> set[FastPath]:
        """Ways of saving forward passes that this run may take; each is compared with plain passes before training."""
        paths = {FastPath.ROWS, FastPath.PREFIX, FastPath.BEAMS}
        config = self.config
        if config["curriculum"] != "none" or config["objective"] == "cft" or config["preference"] != "none":
            paths |= {FastPath.BRANCHES, FastPath.HEADS}
        if self.config["train_unit"] == "user":
            paths.add(FastPath.TRUNKS)
        if self.config["coreset"] != "none":
            paths.add(FastPath.PREFILL)
        return paths

    def prepare(self) -> None:
        """Compute what answering needs besides the weights: called before training, so that mistakes show first."""
        n_tokens = (self.prompts.max_prompt_tokens or 0) + max(self._longest_answer(), self._longest_target())
        with self.untuned():  # outside any instance: the compared rows are nobody's
            probe_llm(self.llm, self.fast_paths(), n_tokens, f"LLM {self.backbone.name}")
        if self.shown_items is not None and self.shown_items.vectors is not None:
            self.shown_items.vectors()

    def generate_text(self, interaction: Interaction) -> list[str]:
        """The top beam's text of each row, raw; an empty string where the history has no title."""
        return self.free_answers.best(self.row_prompts(interaction), self.histories(interaction))

    def answers_kept(self) -> AbstractContextManager[None]:
        """A context that answers each row once, and in which the weights must not change."""
        return self.free_answers.kept()

    def generate_beams(self, interaction: Interaction) -> list[list[str]]:
        """The texts of all beams of each row, raw, the best first; an empty string where the history has no title."""
        return self.free_answers.beams(self.row_prompts(interaction), self.histories(interaction))

    def searching(self, num_beams: int | None) -> AbstractContextManager[None]:
        """A context that searches for free answers with another number of beams.

        Args:
            num_beams: number of beams of the search; None is the run's own number.
        """
        return self.free_answers.with_beams(num_beams)

    def restore(self, folder: Path) -> None:
        """Take what a run left in its folder: the adapter, of which an untuned LLM has none.

        Raises:
            InputError: the run was trained and its adapter is not there, so that the untuned LLM would answer for it.
        """
        if is_tuned(self.config) and not (folder / "adapter").is_dir():
            raise InputError(f"{folder}: the folder 'adapter' is missing; copy the whole run folder again", kind="file")
        if (folder / "adapter").is_dir():
            self.adapter.load(self.llm, folder / "adapter", self.adapter_owner)

    @abstractmethod
    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Raw scores of all items, larger is better. Returns: [rows, items]; -inf where an item cannot be ranked."""

    def rank(self, interaction: Interaction, k: int, targets: torch.Tensor | None = None) -> Ranking:
        """Ranks the items for each row.

        Args:
            interaction: rows to rank for.
            k: length of the lists of best items.
            targets: item ids int64 [rows]; by default those of the interaction, and none where it has no items.
        """
        return rank_scores(self.full_sort_predict(interaction), self._targets(interaction, targets), k)

    def _targets(self, interaction: Interaction, targets: torch.Tensor | None) -> torch.Tensor | None:
        """The targets of :meth:`rank`."""
        return interaction[self.ITEM_ID] if targets is None and self.ITEM_ID in interaction else targets

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of the given (row, item) pairs; a user's rows of one history are answered once. Returns: [rows]."""
        keys = self._row_keys(interaction)
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        rows = sorted(first.values())
        answer_of = {keys[row]: index for index, row in enumerate(rows)}
        scores = self.full_sort_predict(interaction[torch.tensor(rows)])
        answers = torch.tensor([answer_of[key] for key in keys], device=scores.device)
        # RecBole's sampled evaluation puts the scores into a float32 table.
        return scores[answers, interaction[self.ITEM_ID].to(scores.device)].float()

    def _row_keys(self, interaction: Interaction) -> list[tuple[int, ...]]:
        """What scores may depend on: user, where it is known, and whole history, which a recommender may read."""
        lengths = interaction[self.ITEM_SEQ_LEN].tolist()
        users = interaction[self.USER_ID].tolist() if self.USER_ID in interaction else [0] * len(lengths)
        histories = interaction[self.ITEM_SEQ].tolist()
        return [(user, *own[:n]) for user, own, n in zip(users, histories, lengths, strict=True)]

    def stage_seed(self, *names: str | int) -> int:
        """Seed of a stage's own generator."""
        return stage_seed(self.config["seed"], *names)


def _adapter_kind(config: Config) -> type[Adapter]:
    return cast(type[Adapter], find_choice("adapter", config["adapter"]))
