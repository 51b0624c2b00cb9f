"""Models by name: ours, the presets, those of other distributions, and RecBole's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from recbole_llm.errors import InputError
from recbole_llm.property_files import find_properties, load_yaml, recbole_folder
from recbole_llm.registry import MODELS, added_choices, load_class, load_entry, suggestion


def presets() -> dict[str, Path]:
    """Presets by name: the files ``properties/model/<Preset>.yaml`` that name their ``llm_recommender``."""
    files = sorted((find_properties() / "model").glob("*.yaml"))
    return {file.stem: file for file in files if file.stem not in MODELS and load_yaml(file).get("llm_recommender")}


@lru_cache(maxsize=1)
def recbole_models() -> Mapping[str, str]:
    """RecBole's models: exact class name -> ``"module:Class"``, read from its source files without importing them.

    RecBole finds a model by the lower-case name of its file; the class in it carries the name's real spelling.
    """
    models = {}
    for file in sorted(recbole_folder().glob("model/*_recommender/*.py")):
        for name in re.findall(r"^class (\w+)\(", file.read_text(encoding="utf-8"), flags=re.MULTILINE):
            if name.lower() == file.stem:
                models[name] = f"recbole.model.{file.parent.name}.{file.stem}:{name}"
    return models


def llm_model_names() -> list[str]:
    """Every LLM-based model: ours, the presets, and those of other distributions."""
    return sorted({*MODELS, *presets(), *added_choices("model")})


def model_names() -> list[str]:
    """Every name that ``--model`` takes."""
    return sorted({*llm_model_names(), *recbole_models()})


def is_llm_model(model: str | type) -> bool:
    """Whether a model, given by name or class, is one of the LLM-based ones rather than RecBole's own."""
    if isinstance(model, str):
        return model in MODELS or model in presets() or model in added_choices("model")
    # By name, so that asking about SASRec does not import the LLM packages.
    return any(base.__name__ == "LLMRecommender" for base in model.__mro__)


def find_model(name: str, llm_recommender: str | None = None) -> type:
    """The class that ``--model=<name>`` builds.

    Args:
        name: one of our models, a preset, a model of another distribution, or one of RecBole's, upper and lower
            case as there.
        llm_recommender: the class that a preset is built on, when the user sets it; the preset's own choice otherwise.

    Raises:
        InputError: no such model (with the nearest names), a model whose package is missing, or an ``llm_recommender``
            that the model has no use for.
    """
    preset = presets().get(name)
    if preset is not None:
        return _recommender_of(name, llm_recommender or str(load_yaml(preset)["llm_recommender"]))
    if llm_recommender not in (None, name):
        raise InputError(f"llm_recommender: '{llm_recommender}' is for presets; {name} is a model of its own")
    if name in MODELS:
        return load_class(str(MODELS[name]))
    if name in added_choices("model"):
        return load_entry(added_choices("model")[name])
    if name in recbole_models():
        try:
            return load_class(recbole_models()[name])
        except ModuleNotFoundError as error:
            raise InputError(f"RecBole's {name} needs the package '{error.name}': pip install {error.name}") from error
    hint = suggestion(name, model_names(), f"; LLM models: {', '.join(llm_model_names())}; the rest are RecBole's")
    raise InputError(f"there is no model named '{name}'{hint}")


def _recommender_of(preset: str, recommender: str) -> type:
    """The class a preset is built on, which must be an LLM model and not a preset itself."""
    classes = {*MODELS, *added_choices("model")}
    if recommender not in classes:
        raise InputError(
            f"{preset}: there is no llm_recommender named '{recommender}'; choose from: {', '.join(sorted(classes))}"
        )
    return find_model(recommender)
