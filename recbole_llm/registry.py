"""Names of the four axes and of grounding, and the classes they stand for.

Everything is imported on demand: looking a name up never loads the other entries of its table.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from recbole_llm.errors import InputError
from recbole_llm.property_files import find_properties, load_yaml, recbole_folder

# A value is "module:Class", or None where the name means that the axis does nothing.
MODELS: Mapping[str, str | None] = {
    "BIGRec": "recbole_llm.model.bigrec:BIGRec",
    "LLaRA": "recbole_llm.model.llara:LLaRA",
    "TALLRec": "recbole_llm.model.tallrec:TALLRec",
}
ADAPTERS: Mapping[str, str | None] = {
    "lora": "recbole_llm.adapter.lora:LoraAdapter",
    "ilora": "recbole_llm.adapter.ilora:ILoraAdapter",
    "full": "recbole_llm.adapter.full:FullAdapter",
}
CORESETS: Mapping[str, str | None] = {
    "none": None,
    "random": "recbole_llm.coreset:RandomSelector",
    "el2n": "recbole_llm.coreset:EL2NSelector",
    "grand": "recbole_llm.coreset:GraNdSelector",
    "ccs": "recbole_llm.coreset:CCSSelector",
    "k_center": "recbole_llm.coreset:KCenterSelector",
    "herding": "recbole_llm.coreset:HerdingSelector",
    "d2_pruning": "recbole_llm.coreset:D2PruningSelector",
    "dsir": "recbole_llm.coreset:DSIRSelector",
    "tf_dcon": "recbole_llm.coreset:TFDConSelector",
    "recranker": "recbole_llm.coreset:RecRankerSelector",
    "dealrec": "recbole_llm.coreset:DEALRecSelector",
    "goracs": "recbole_llm.coreset:GoracsSelector",
    "moderate": "recbole_llm.coreset:ModerateSelector",
    "fdmat": "recbole_llm.coreset:FDMatSelector",
    "qdit": "recbole_llm.coreset:QDITSelector",
}
CURRICULA: Mapping[str, str | None] = {
    "none": None,
    "sd_only": "recbole_llm.curriculum:SelfDistillation",
    "adaptive": "recbole_llm.curriculum:AdaptiveCurriculum",
    "fixed": "recbole_llm.curriculum:FixedCurriculum",
}
GROUNDINGS: Mapping[str, str | None] = {
    "embedding": "recbole_llm.grounding.embedding:EmbeddingGrounding",
    "constrained": "recbole_llm.grounding.constrained:ConstrainedGrounding",
    "likelihood": "recbole_llm.grounding.likelihood:LikelihoodGrounding",
}

AXES: Mapping[str, Mapping[str, str | None]] = {
    "adapter": ADAPTERS,
    "coreset": CORESETS,
    "curriculum": CURRICULA,
    "grounding": GROUNDINGS,
}

ENTRY_POINT_GROUP = "recbole_llm.models"


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The most similar names, best first, upper and lower case alike; empty when nothing is close."""
    folded: dict[str, str] = {}
    for known in sorted(names):
        folded.setdefault(known.lower(), known)
    return [folded[match] for match in difflib.get_close_matches(name.lower(), folded, n=count)]


def suggestion(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """``"; did you mean A, B?"``, or ``otherwise`` when no name is close."""
    close = nearest(name, names)
    return f"; did you mean {', '.join(close)}?" if close else otherwise


def load_class(reference: str) -> type:
    """Import the class that ``"module:Class"`` stands for."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def find_choice(axis: str, value: str) -> type | None:
    """The class behind one axis value, such as ``find_choice("adapter", "lora")``.

    Args:
        axis: a name in :data:`AXES`.
        value: a name in that axis' table; what stands behind a colon, as in ``fixed:0.5``, is the class's own affair.

    Returns:
        The class, or None where the value means that the axis does nothing.

    Raises:
        InputError: the axis has no such value.
    """
    table = AXES[axis]
    name = value.partition(":")[0]
    if name not in table:
        raise InputError(f"there is no {axis} named '{value}'; choose from: {', '.join(table)}")
    reference = table[name]
    return load_class(reference) if reference else None


# ---------------------------------------------------------------------------------------------------------- models


def presets() -> dict[str, Path]:
    """Presets by name: the files ``properties/model/<Preset>.yaml`` that name their ``llm_recommender``."""
    files = sorted((find_properties() / "model").glob("*.yaml"))
    return {file.stem: file for file in files if file.stem not in MODELS and load_yaml(file).get("llm_recommender")}


def plugin_models() -> dict[str, EntryPoint]:
    """Models that other installed distributions offer in the entry-point group ``recbole_llm.models``."""
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


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
    return sorted({*MODELS, *presets(), *plugin_models()})


def model_names() -> list[str]:
    """Every name that ``--model`` takes."""
    return sorted({*llm_model_names(), *recbole_models()})


def is_llm_model(model: str | type) -> bool:
    """Whether a model, given by name or class, is one of the LLM-based ones rather than RecBole's own."""
    if isinstance(model, str):
        return model in MODELS or model in presets() or model in plugin_models()
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
    if name in plugin_models():
        return _load_plugin(plugin_models()[name])
    if name in recbole_models():
        try:
            return load_class(recbole_models()[name])
        except ModuleNotFoundError as error:
            raise InputError(f"RecBole's {name} needs the package '{error.name}': pip install {error.name}") from error
    hint = suggestion(name, model_names(), f"; LLM models: {', '.join(llm_model_names())}; the rest are RecBole's")
    raise InputError(f"there is no model named '{name}'{hint}")


def _recommender_of(preset: str, recommender: str) -> type:
    """The class a preset is built on, which must be an LLM model and not a preset itself."""
    classes = {*MODELS, *plugin_models()}
    if recommender not in classes:
        raise InputError(
            f"{preset}: there is no llm_recommender named '{recommender}'; choose from: {', '.join(sorted(classes))}"
        )
    return find_model(recommender)


def _load_plugin(entry: EntryPoint) -> Any:
    """Import a third party's model; what fails there is named as theirs."""
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"model {entry.name} of another package ({entry.value}) does not load: {error}") from error
