"""Defaults: the property files of a model on a data set, RecBole's and ours, and the settings they make known."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from recbole.config import Config as RecBoleConfig
from recbole.utils import (
    ModelType,
    dataset_arguments,
    evaluation_arguments,
    general_arguments,
    training_arguments,
)

from recbole_llm.property_files import PropertyLoader, find_properties, load_yaml
from recbole_llm.settings.models import find_model, is_llm_model, presets

ARGUMENT_LISTS = (general_arguments, training_arguments, evaluation_arguments, dataset_arguments)
COMMAND_KEYS = ("model", "dataset", "config_files")


# RecBole's sequential models that can be judged by clicks as well: the first two are made for it, the others score a
# history and an item by one differentiable number.
CLICK_BY_DESIGN = ("DIN", "DIEN")
CLICK_IF_ASKED = (*CLICK_BY_DESIGN, "Caser", "GRU4Rec", "NARM", "NextItNet", "SASRec", "STAMP")


def task_of(model_class: type, by_labels: bool = False) -> str:
    """What a model predicts: ``"next-item"`` or ``"click"``.

    An LLM model says so in its class attribute ``task``; of RecBole's models the context-aware ones and the decision
    trees predict clicks, and some sequential ones if asked.

    Args:
        model_class: the class.
        by_labels: whether it is asked to, with ``eval_args: {mode: labeled}``.
    """
    clicks = (ModelType.CONTEXT, ModelType.DECISIONTREE)
    if by_labels and model_class.__name__ in CLICK_IF_ASKED and not is_llm_model(model_class):
        return "click"
    return getattr(model_class, "task", None) or ("click" if model_class.type in clicks else "next-item")


class _RecBoleProperties(RecBoleConfig):
    """RecBole's own property files of one model and data set, read without building the rest of a config."""

    def __init__(self, model: str, model_class: type, dataset: str) -> None:
        # A list of our own: RecBole would append to the one that all its configs share.
        self.parameters: dict[str, list[str]] = {"Dataset": []}
        self.yaml_loader = PropertyLoader
        self._load_internal_config_dict(model, model_class, dataset)


def read_properties(
    model: str, model_class: type, dataset: str, llm_path: str | None = None, task: str | None = None
) -> dict[str, Any]:
    """All defaults of one model on one data set; a later file wins, ``load_col`` is the union.

    RecBole's files; judge.yaml; overall.yaml for LLM models; click.yaml for click models; the recommender's; the
    preset's; llm/tiny.yaml where the LLM is the tiny one; the data set's.

    Args:
        model: name of the model or preset.
        model_class: the class that is built.
        dataset: name of the data set.
        llm_path: the user's LLM; the property files' if None.
        task: what the model is to predict; its own task if None.
    """
    click = (task or task_of(model_class)) == "click"
    settings = _RecBoleProperties(model, model_class, dataset).internal_config_dict
    asked = settings["load_col"]
    folder, is_llm = find_properties(), is_llm_model(model_class)
    files = [folder / "judge.yaml"]
    files += [folder / "overall.yaml"] if is_llm else []
    files += [folder / "click.yaml"] if click else []
    files += _recommender_files(model_class)
    files += [presets()[model]] if model in presets() else []
    for file in files:
        settings.update(load_yaml(file))
    if is_llm and (llm_path or settings["llm_path"]) == "tiny":
        tiny = load_if_there(folder / "llm" / "tiny.yaml")
        settings.update({key: value for key, value in tiny.items() if not (click and key == "valid_metric")})
    settings.update(load_if_there(folder / "dataset" / f"{dataset}.yaml"))
    # RecBole's files name the columns that a model cannot do without (FDSA's genres), so ours only add to them.
    settings["load_col"] = union_columns([asked, settings["load_col"]])
    return settings


def _recommender_files(model_class: type) -> list[Path]:
    """Property files of an LLM model, those of the classes it derives from first.

    A third party's file ``<Class>.yaml`` lies beside the module of the class.
    """
    files = []
    for base in reversed(model_class.__mro__):
        if is_llm_model(base):
            module = getattr(sys.modules.get(base.__module__), "__file__", None) or __file__
            places = (find_properties() / "model", Path(module).parent)
            files += [
                place / f"{base.__name__}.yaml" for place in places if (place / f"{base.__name__}.yaml").is_file()
            ]
    return files


def load_if_there(file: Path) -> dict[str, Any]:
    """A property file's settings; none if there is no such file."""
    return load_yaml(file) if file.is_file() else {}


def settings_of(model: str, model_class: type, defaults: Mapping[str, Any]) -> frozenset[str]:
    """Names of every setting of a model, given its defaults."""
    unlisted = load_yaml(find_properties() / "recbole_keys.yaml")
    names = {*defaults, *COMMAND_KEYS, *unlisted["all"], *unlisted.get(model, ())}
    for arguments in ARGUMENT_LISTS:
        names.update(arguments)
    if is_llm_model(model_class):
        names.update(load_if_there(find_properties() / "llm" / "tiny.yaml"))
    return frozenset(names - {"MODEL_TYPE"})  # RecBole writes it among the defaults; it is a fact, not a setting


@lru_cache(maxsize=256)
def known_keys(model: str, dataset: str, llm_recommender: str | None = None) -> frozenset[str]:
    """Names of every setting that a model knows on a data set.

    Raises:
        InputError: no such model.
    """
    model_class = find_model(model, llm_recommender if model in presets() else None)
    return settings_of(model, model_class, read_properties(model, model_class, dataset))


def union_columns(columns: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Join several ``load_col``: file suffix to field names, ``"*"`` for all of a file, None for everything."""
    union: dict[str, Any] = {}
    for part in columns:
        if part is None:
            return None
        for suffix, fields in part.items():
            before = union.get(suffix, [])
            union[suffix] = "*" if "*" in (before, fields) else list(dict.fromkeys([*before, *fields]))
    return union
