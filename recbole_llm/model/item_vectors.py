"""Item vectors by an LLM tuned on views of items, as two stages that all runs share (LLMEmb, arXiv 2409.19925)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from recbole_llm.adapter import Adapter, LoraAdapter
from recbole_llm.data.item_texts import Attribute, read_attributes
from recbole_llm.disk import write_json
from recbole_llm.distributed import process
from recbole_llm.hashing import hash_json
from recbole_llm.llm.backbone import Backbone
from recbole_llm.llm.budget import TokenBudget
from recbole_llm.llm.item_tuning import ContrastiveTuning, ItemReader, reduce_by_pca
from recbole_llm.llm.vector_settings import ItemVectorSettings
from recbole_llm.model.backbones import load_llm, weight_facts
from recbole_llm.prompt import Wording
from recbole_llm.registry import find_choice
from recbole_llm.settings.config import Config
from recbole_llm.stages import Stage, StageStore, stage_seed

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

    from recbole_llm.model.base import LLMRecommender

VECTORS, FACTS, LOSSES, ADAPTER = "vectors.npy", "facts.json", "losses.json", "adapter"
log = logging.getLogger(__name__)


class ItemVectors:
    """Vectors of the items of a data set: text of their attributes, contrastive tuning, encoding, PCA.

    The LLM is loaded where a stage has to be computed, apart from a run's own: tuning changes it.

    Args:
        config: the resolved config.
        dataset: a RecBole data set with the item columns loaded.
        stages: where results are kept.
        load: loads the untuned LLM.
        fingerprint: gives that of the untuned LLM.

    Attributes:
        dataset: as given.
        attributes: attributes of every item, by internal id; none for the padding.
        settings: settings of tuning and encoding.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        stages: StageStore,
        load: Callable[[], Backbone],
        fingerprint: Callable[[], str],
    ) -> None:
        self.config, self.dataset, self.stages, self.load = config, dataset, stages, load
        self.llm_fingerprint = fingerprint
        self.settings = ItemVectorSettings.from_settings(config.final_config_dict)
        self.attributes = attributes_of(config, dataset, self.settings)
        self.instruction = f"The {Wording.of_domain(config['domain']).item} has these attributes:"

    @classmethod
    def beside(cls, model: LLMRecommender, dataset: Dataset) -> ItemVectors:
        """Vectors by the LLM of a recommender that answers prompts with another copy of it.

        Args:
            model: the recommender.
            dataset: a RecBole data set with the item columns loaded.
        """
        load = partial(load_llm, model.config, model.device, model.stages, model.build_tiny)
        fingerprint = model.backbone.fingerprint
        return cls(model.config, dataset, model.stages, load, lambda: fingerprint)

    @cached_property
    def tuning(self) -> TuneOnItems:
        """The contrastive tuning, a stage."""
        return TuneOnItems(self)

    @cached_property
    def encoding(self) -> EncodeItems:
        """The vectors, a stage."""
        return EncodeItems(self)

    @cached_property
    def table(self) -> np.ndarray:
        """Vectors of all items, computed once. Returns: float32 [items, p]; zeros for the padding item."""
        return self.stages.run(self.encoding)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything the vectors depend on."""
        return hash_json(self.encoding.facts())

    @cached_property
    def opened(self) -> tuple[Backbone, Adapter, torch.nn.Module]:
        """The LLM with a fresh adapter, loaded."""
        backbone, adapter = self.load(), self.fresh_adapter()
        return backbone, adapter, adapter.attach(backbone.model)

    def fresh_adapter(self) -> Adapter:
        """The run's adapter; LoRA where that reads histories, which items do not have."""
        kind = cast(type[Adapter], find_choice("adapter", self.config["adapter"]))
        kind = LoraAdapter if kind.reads_states(self.config.final_config_dict) else kind
        return kind.from_settings(self.config.final_config_dict)

    def close(self) -> None:
        """Let the LLM go."""
        self.__dict__.pop("opened", None)

    def reader(self) -> ItemReader:
        """The LLM as a reader of items."""
        backbone, _, llm = self.opened
        name = "generation_batch_tokens"
        budget = TokenBudget.of_setting(name, self.config[name], llm)
        return ItemReader(llm, backbone.tokenizer, self.instruction, self.settings, budget)


def attributes_of(config: Config, dataset: Dataset, settings: ItemVectorSettings) -> list[list[Attribute]]:
    """The attributes of every item: its title, what tells titles apart, and ``item_text_fields``."""
    named = [config["title_field"], config["title_with"], *(config["item_text_fields"] or ())]
    fields = list(dict.fromkeys(field for field in named if field))
    return read_attributes(dataset, fields, [config["category_field"]], settings.field_max_chars)


class TuneOnItems(Stage[Path]):
    """The adapter of the LLM, tuned on views of items; its result is the folder it lies in.

    Args:
        items: catalogue and settings of the vectors.
    """

    name = "contrastive-tuning"
    is_resumable = True

    def __init__(self, items: ItemVectors) -> None:
        self._items = items

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        items, config = self._items, self._items.config
        later = ("pca_dim",)
        return {
            "llm": items.llm_fingerprint(),
            **weight_facts(config),
            "adapter": items.fresh_adapter().facts(),
            "instruction": items.instruction,
            "items": hash_json(items.attributes),
            "settings": {key: value for key, value in asdict(items.settings).items() if key not in later},
            "seed": config["seed"],
        }

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`."""
        items = self._items
        known = [attributes for attributes in items.attributes if attributes]
        if single := sum(len(attributes) == 1 for attributes in known):
            log.info("%d of %d items have one attribute: their views leave out words of it.", single, len(known))
        _, adapter, llm = items.opened
        seed = stage_seed(items.config["seed"], "contrast")
        tuning = ContrastiveTuning(items.reader(), adapter, known, seed, bool(items.config["show_progress"]))
        losses = tuning.run(folder)
        adapter.save(llm, folder / ADAPTER, items.llm_fingerprint())
        tau = float(tuning.log_tau.detach().exp())
        write_json(folder / LOSSES, {"losses": losses, "tau": tau})
        log.info("contrastive loss: %.4g at first, %.4g at last; tau %.3g", losses[0], losses[-1], tau)

    def load(self, folder: Path) -> Path:
        """See :class:`Stage`."""
        return folder


class EncodeItems(Stage[np.ndarray]):
    """Vectors of all items by the tuned LLM, their principal components.

    Args:
        items: catalogue and settings of the vectors.
    """

    name = "item-vectors"
    is_joint = True

    def __init__(self, items: ItemVectors) -> None:
        self._items = items

    def facts(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {"tuned": self._items.tuning.facts(), "pca_dim": self._items.settings.pca_dim}

    def compute(self, folder: Path) -> None:
        """See :class:`Stage`; the LLM is tuned first, unless ``scft_steps`` is 0."""
        items = self._items
        if items.settings.steps:
            tuned = items.stages.run(items.tuning)
            _, adapter, llm = items.opened
            adapter.load(llm, tuned / ADAPTER, items.llm_fingerprint())
        found = items.reader().vectors(items.attributes[1:], bool(items.config["show_progress"]))
        items.close()
        if not process().is_main:
            return
        reduced, share = reduce_by_pca(found, items.settings.pca_dim)
        np.save(folder / VECTORS, np.concatenate([np.zeros_like(reduced[:1]), reduced]))
        write_json(folder / FACTS, {"width": found.shape[1], "kept": reduced.shape[1], "variance": share})

    def load(self, folder: Path) -> np.ndarray:
        """See :class:`Stage`. Returns: float32 [items, p]."""
        known = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        log.info("item vectors: %d of %d components, %.1f %% of the variance", *_shown(known))
        table: np.ndarray = np.load(folder / VECTORS)
        return table


def _shown(known: dict[str, Any]) -> tuple[int, int, float]:
    return known["kept"], known["width"], 100 * known["variance"]
