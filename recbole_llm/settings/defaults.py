"""Defaults: the property files of a model on a data set, RecBole's and ours, and the settings they make known."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from recbole_llm.declare import NO_DEFAULT, keys_of
from recbole_llm.errors import InputError
from recbole_llm.llm.settings import SMOLLM2, TINY
from recbole_llm.property_files import find_properties, load_yaml, recbole_folder
from recbole_llm.registry import AXES, added_choices, load_entry
from recbole_llm.settings.models import ModelFacts, facts_by_name, presets
from recbole_llm.settings.source import literals_in

SEVERAL_RUNS = ("seeds", "baseline")  # settings of a comparison, not of a run
COMMAND_KEYS = ("model", "dataset", "config_files", *SEVERAL_RUNS)
GIVEN = "given"  # in a run's config.yaml: names of the settings that were set; the others are defaults as resolved then
# How long, on how many rows and until when is trained.
REGIME = (
    *("train_sample_size", "train_batch_size", "epochs", "eval_step", "stopping_step"),
    *("warmup_steps", "lr_scheduler", "valid_metric"),
)
ARGUMENT_LISTS = ("general_arguments", "training_arguments", "evaluation_arguments", "dataset_arguments")


def given_names(settings: Mapping[str, Any]) -> list[str]:
    """Names of the settings that somebody set: of a run's record those that it lists, of another source all.

    Raises:
        InputError: the record's list is none.
    """
    names = settings.get(GIVEN, list(settings))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(GIVEN, f"{names!r} is no list of settings' names; take the run's own config.yaml", kind="file")
    return names


@cache
def recbole_arguments(name: str) -> tuple[str, ...]:
    """One of RecBole's argument lists, such as ``dataset_arguments``."""
    return tuple(literals_in("recbole.utils.argument_list")[name])


def _recbole_files(model: str, facts: ModelFacts, dataset: str) -> Iterator[str]:
    """RecBole's property files of a model and data set in the order in which RecBole reads them."""
    yield from ("overall", f"model/{model}", "dataset/sample", f"dataset/{dataset}")
    ml_100k = dataset == "ml-100k"
    start = "quick_start_config/"
    if facts.type in ("CONTEXT", "DECISIONTREE"):
        yield start + "context-aware"
        if ml_100k:
            yield start + "context-aware_ml-100k"
    elif facts.type == "SEQUENTIAL" and model in ("DIN", "DIEN"):
        yield start + "sequential_DIN"
        if ml_100k:
            yield start + "sequential_DIN_on_ml-100k"
    elif facts.type == "SEQUENTIAL" and model in ("GRU4RecKG", "KSR"):
        yield start + "sequential_embedding_model"
    elif facts.type == "SEQUENTIAL":
        yield start + "sequential"
        if ml_100k and model in ("GRU4RecF", "SASRecF", "FDSA", "S3Rec"):
            yield start + "special_sequential_on_ml-100k"
    elif facts.type == "KNOWLEDGE":
        yield start + "knowledge_base"


def read_properties(
    model: str,
    facts: ModelFacts,
    dataset: str,
    llm_path: str | None = None,
    task: str | None = None,
    own: Path | None = None,
) -> dict[str, Any]:
    """All defaults of one model on one data set; a later file wins, ``load_col`` is the union.

    RecBole's files; evaluation.yaml; overall.yaml for LLM models; click.yaml for click models; the recommender's; the
    preset's; llm/tiny.yaml or llm/smollm2.yaml where that is the LLM, less what few-shot models keep and what models
    set whose LLM only reads items; the data set's, ours and that beside its files.

    Args:
        model: name of the model or preset.
        facts: facts of the class that is built.
        dataset: name of the data set.
        llm_path: the user's LLM; the property files' if None.
        task: what the model is to predict; its own task if None.
        own: the property file beside the data set's files, if there is one.
    """
    click = (task or facts.task()) == "click"
    settings: dict[str, Any] = {}
    for name in _recbole_files(model, facts, dataset):
        settings.update(load_if_there(recbole_folder() / "properties" / f"{name}.yaml"))
    asked = settings["load_col"]
    folder = find_properties()
    files = [folder / "evaluation.yaml"]
    files += [folder / "overall.yaml"] if facts.is_llm else []
    files += [folder / "click.yaml"] if click else []
    for file in files:
        settings.update(load_yaml(file))
    of_model: dict[str, Any] = {}
    for file in [*facts.property_files, *([presets()[model]] if model in presets() else [])]:
        of_model.update(load_yaml(file))
    settings.update(of_model)
    if facts.is_llm:
        settings = {**_added_defaults(), **settings}
        if (name := str(llm_path or settings["llm_path"])) in (TINY, SMOLLM2):
            its_own = of_model if facts.reads_items else few_shot_regime(of_model)
            kept = {*its_own, *(["valid_metric"] if click else [])}
            of_llm = load_if_there(folder / "llm" / f"{name}.yaml")
            settings.update({key: value for key, value in of_llm.items() if key not in kept})
    settings.update(load_if_there(folder / "dataset" / f"{dataset}.yaml"))
    settings.update(load_yaml(own) if own is not None else {})
    # RecBole's files name the columns that a model cannot do without (FDSA's genres), so ours only add to them.
    settings["load_col"] = union_columns([asked, settings["load_col"]])
    return settings


def few_shot_regime(own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a few-shot model that it keeps with an LLM of ours: its rows, and how often they are seen.

    A model is few-shot whose own property files say how many rows it trains on, or that a coreset is chosen from all
    (``train_sample_size: ~``): of as many as the file of the LLM allows.

    Args:
        own: what the files of the recommender and the preset set.
    """
    if "train_sample_size" not in own:
        return {}
    return {key: own[key] for key in REGIME if own.get(key) is not None}


def _added_defaults() -> dict[str, Any]:
    """Defaults of what other distributions add to the axes; a broken one is an error where it is used."""
    found: dict[str, Any] = {}
    for axis in AXES:
        for entry in added_choices(axis).values():
            try:
                component = load_entry(entry)
            except ValueError:
                continue
            found.update(
                {key.name: key.default for key in keys_of(component).values() if key.default is not NO_DEFAULT}
            )
    return found


def load_if_there(file: Path) -> dict[str, Any]:
    """A property file's settings; none if there is no such file."""
    return load_yaml(file) if file.is_file() else {}


def settings_of(model: str, is_llm: bool, defaults: Mapping[str, Any]) -> frozenset[str]:
    """Names of every setting of a model, given its defaults."""
    unlisted = load_yaml(find_properties() / "recbole_keys.yaml")
    names = {*defaults, *COMMAND_KEYS, GIVEN, *unlisted["all"], *unlisted.get(model, ())}
    for arguments in ARGUMENT_LISTS:
        names.update(recbole_arguments(arguments))
    if is_llm:
        names.update(load_if_there(find_properties() / "llm" / "tiny.yaml"))
    return frozenset(names)


def known_keys(model: str, dataset: str, llm_recommender: str | None = None) -> frozenset[str]:
    """Names of every setting that a model knows on a data set.

    Raises:
        InputError: no such model.
    """
    return _known_keys(model, dataset, llm_recommender, tuple(sys.path))


@lru_cache(maxsize=256)
def _known_keys(model: str, dataset: str, llm_recommender: str | None, path: tuple[str, ...]) -> frozenset[str]:
    """See :func:`known_keys`; other distributions, found by ``sys.path``, may add keys."""
    facts = facts_by_name(model, llm_recommender if model in presets() else None)
    return settings_of(model, facts.is_llm, read_properties(model, facts, dataset))


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
