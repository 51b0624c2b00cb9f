"""Semantic classes of items for SOLID: categories, or clusters of vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recbole_llm.classic.kept_vectors import VECTORS, read_item_vectors
from recbole_llm.data.catalog import ItemCatalog, read_categories
from recbole_llm.data.general import told_interactions
from recbole_llm.errors import InputError
from recbole_llm.evaluation.categories import drop_common
from recbole_llm.rerank import interaction_vectors
from recbole_llm.semantic_ids.heads import classes_of_sets, classes_of_vectors
from recbole_llm.semantic_ids.solid_settings import SolidSettings
from recbole_llm.stages import stage_seed

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

    from recbole_llm.settings.config import Config


def item_classes(config: Config, settings: SolidSettings, train: Dataset, most: int) -> np.ndarray:
    """The semantic class of every item.

    Args:
        config: the resolved config.
        settings: settings of the model.
        train: the training rows, with the item columns that are needed.
        most: classes, at most.

    Returns:
        int64 [items], from 1 on; 0 for padding.

    Raises:
        InputError: the field is not loaded, or the encoder cannot be read.
    """
    seed = stage_seed(config["seed"], "solid", "classes")
    if settings.semantic_source == "field":
        found = read_categories(train, config["category_field"])
        if found is None:
            raise InputError("category_field", "load_col does not load it; add it to load_col", kind="data")
        return classes_of_sets(drop_common(found), most, seed)
    if settings.semantic_source == "kmeans_llm":
        return classes_of_vectors(_llm_vectors(config, settings, train), most, seed)
    pairs = told_interactions(train)[:, :2]
    return classes_of_vectors(interaction_vectors(pairs, train.user_num, train.item_num), most, seed)


def _llm_vectors(config: Config, settings: SolidSettings, train: Dataset) -> np.ndarray:
    """Vectors by an LLM: those of a run of LLMEmb, or of titles by a text encoder; zeros for an item without any."""
    folder = Path(settings.semantic_encoder).expanduser()
    if (folder / VECTORS).is_file():
        return read_item_vectors(folder, train.field2id_token[train.iid_field], "semantic_encoder")
    return _title_vectors(config, settings, train)


def _title_vectors(config: Config, settings: SolidSettings, train: Dataset) -> np.ndarray:
    """A text encoder's vectors of titles, zeros for an item without one."""
    from recbole_llm.llm.text_encoders import find_text_encoder, load_text_encoder

    catalog = ItemCatalog.from_dataset(train, config["title_field"], config["title_with"])
    recipe = find_text_encoder(settings.semantic_encoder, key="semantic_encoder")
    encoder = load_text_encoder(recipe, device=str(config["device"]), key="semantic_encoder")
    titled = np.flatnonzero(catalog.has_title)
    vectors = encoder.encode([catalog.titles[item] for item in titled])
    table = np.zeros((catalog.n_items, vectors.shape[1]), dtype=np.float32)
    table[titled] = vectors
    return table
