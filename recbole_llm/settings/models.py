"""Models by name: ours, presets, those of other packages and RecBole's, and what settings need of them.

Nothing is imported before :func:`find_model`: facts come from source files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from recbole_llm.errors import InputError
from recbole_llm.property_files import find_properties, load_yaml, recbole_folder
from recbole_llm.registry import CLASSIC_MODELS, MODELS, added_choices, load_class, load_entry, suggestion
from recbole_llm.settings.source import missing_packages, read_class

LLM_BASE = "LLMRecommender"
ANSWERING = "BIGRec"  # the base of the models that write titles

# RecBole's sequential models that can be evaluated by clicks as well: the first two are made for it, the others score a
# history and an item by one differentiable number.
CLICK_BY_DESIGN = ("DIN", "DIEN")
CLICK_IF_ASKED = (*CLICK_BY_DESIGN, "Caser", "GRU4Rec", "NARM", "NextItNet", "SASRec", "STAMP")


@dataclass(frozen=True)
class ModelFacts:
    """What settings need to know of the class that a model builds.

    Attributes:
        class_name: name of the class; a preset's is that of its recommender.
        type: name of RecBole's ``ModelType``, such as ``SEQUENTIAL``.
        has_input_type: whether the class states its ``input_type``; else the loss does.
        own_task: ``"click"`` or ``"next-item"`` where an LLM model says so.
        is_llm: whether the model is LLM-based.
        has_answers: whether it is an LLM model that writes titles, as BIGRec and what derives from it.
        reads_vectors: whether its prompts hold item vectors of the auxiliary recommender, as LLaRA's.
        names_codes: ``"static"`` where items are codes in its prompts, as SemID's, ``"twin"`` where users are
            as well and codes change, as TTDS's; else empty.
        reads_items: whether its LLM makes vectors of what it reads and answers no prompts, as LLMEmb's.
        reads_histories: whether it reads histories too, and serves, as Laser's.
        property_files: property files of a model of ours, those of the classes it derives from first.
    """

    class_name: str
    type: str
    has_input_type: bool
    own_task: str | None
    is_llm: bool
    has_answers: bool = False
    reads_vectors: bool = False
    property_files: tuple[Path, ...] = ()
    names_codes: str = ""
    reads_items: bool = False
    reads_histories: bool = False

    def task(self, by_labels: bool = False) -> str:
        """What the model predicts: ``"next-item"`` or ``"click"``.

        An LLM model says so in its class attribute ``task``; of RecBole's models the context-aware ones and the
        decision trees predict clicks, and some sequential ones if asked.

        Args:
            by_labels: whether it is asked to, with ``eval_args: {mode: labeled}``.
        """
        if by_labels and self.class_name in CLICK_IF_ASKED and not self.is_llm:
            return "click"
        return self.own_task or ("click" if self.type in ("CONTEXT", "DECISIONTREE") else "next-item")


def facts_of(model_class: type) -> ModelFacts:
    """The facts of a class that is there already."""
    is_llm = is_llm_model(model_class)
    files = []
    for base in reversed(model_class.__mro__):
        if is_llm and is_llm_model(base):
            module = getattr(sys.modules.get(base.__module__), "__file__", None) or __file__
            files += _files_of(base.__name__, Path(module).parent)
    if model_class.__name__ in CLASSIC_MODELS:
        files = _files_of(model_class.__name__, Path(__file__).parent)
    kind: Any = getattr(model_class, "type", None)
    return ModelFacts(
        model_class.__name__,
        getattr(kind, "name", "GENERAL"),
        hasattr(model_class, "input_type"),
        getattr(model_class, "task", None),
        is_llm,
        is_llm and any(base.__name__ == ANSWERING for base in model_class.__mro__),
        bool(is_llm and getattr(model_class, "item_slots", False)),
        tuple(files),
        str(getattr(model_class, "names_codes", "") if is_llm else ""),
        bool(is_llm and getattr(model_class, "reads_items", False)),
        bool(is_llm and getattr(model_class, "reads_histories", False)),
    )


def task_of(model_class: type, by_labels: bool = False) -> str:
    """What a model predicts; see :meth:`ModelFacts.task`."""
    return facts_of(model_class).task(by_labels)


def facts_by_name(name: str, llm_recommender: str | None = None) -> ModelFacts:
    """The facts of the class that ``--model=<name>`` builds, without importing it.

    Args:
        name: see :func:`find_model`.
        llm_recommender: see :func:`find_model`.

    Raises:
        InputError: see :func:`find_model`.
    """
    source = read_class(find_reference(name, llm_recommender))
    kind = source.attribute("type") if source else None
    if source is None or kind is None:  # made by other means than a plain class statement
        return facts_of(find_model(name, llm_recommender))
    ancestors = list(source.ancestry())
    is_llm = any(one.name == LLM_BASE for one in ancestors)
    own = [one for one in reversed(ancestors) if is_llm and any(base.name == LLM_BASE for base in one.ancestry())]
    files = [file for one in own for file in _files_of(one.name, one.file.parent)]
    files += _files_of(name, source.file.parent) if name in CLASSIC_MODELS else []
    inputs = source.attribute("input_type") is not None
    answers = is_llm and any(one.name == ANSWERING for one in ancestors)
    vectors, items, histories = (
        is_llm and bool(source.attribute(attribute)) for attribute in ("item_slots", "reads_items", "reads_histories")
    )
    codes = str((source.attribute("names_codes") if is_llm else None) or "")
    property_files = tuple(dict.fromkeys(files))
    own_task = source.attribute("task")
    more = (answers, vectors, property_files, codes, items, histories)
    return ModelFacts(source.name, kind, inputs, own_task, is_llm, *more)


def _files_of(class_name: str, folder: Path) -> list[Path]:
    """Property files of one class: ours, and a third party's, which lies beside the class's module."""
    folders = (find_properties() / "model", folder)
    return [own / f"{class_name}.yaml" for own in folders if (own / f"{class_name}.yaml").is_file()]


# ------------------------------------------------------------------------------------------------------------- names


def presets() -> dict[str, Path]:
    """Presets by name: the files ``properties/model/<Preset>.yaml`` that name their ``llm_recommender``."""
    files = sorted((find_properties() / "model").glob("*.yaml"))
    return {file.stem: file for file in files if file.stem not in MODELS and _is_preset(file, file.stat().st_mtime_ns)}


@lru_cache(maxsize=256)
def _is_preset(file: Path, changed: int) -> bool:
    """Whether a property file is a preset's, looked up again when it was changed: at that many nanoseconds."""
    return re.search(r"^llm_recommender: *\w", file.read_text(encoding="utf-8"), flags=re.MULTILINE) is not None


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


_READS_COLUMNS = re.compile(
    r"selected_features|item_attribute|_feat\b|_feature\(|get_preload_weight|field2type|field2id_token|dataset\.fields"
)


def reads_columns(model: str) -> bool:
    """Whether a model without an LLM may learn from columns beside users, items, times and ratings.

    Of RecBole's general and sequential models the source tells; any other may.

    Example:
        >>> reads_columns("SASRec"), reads_columns("SASRecF"), reads_columns("FM")
        (False, True, True)
    """
    source = read_class(recbole_models()[model]) if model in recbole_models() else None
    if source is None or source.attribute("type") not in ("GENERAL", "SEQUENTIAL", "TRADITIONAL"):
        return True
    bases = [one for one in source.ancestry() if one.file.stem != "abstract_recommender"]
    return any(_READS_COLUMNS.search(one.text()) is not None for one in bases)


def llm_model_names() -> list[str]:
    """Every LLM-based model: ours, the presets, and those of other distributions."""
    return sorted({*MODELS, *presets(), *added_choices("model")})


def model_names() -> list[str]:
    """Every name that ``--model`` takes."""
    return sorted({*llm_model_names(), *CLASSIC_MODELS, *recbole_models()})


def is_llm_model(model: str | type) -> bool:
    """Whether a model, given by name or class, is one of the LLM-based ones rather than RecBole's own."""
    if isinstance(model, str):
        return model in MODELS or model in presets() or model in added_choices("model")
    # By name, so that asking about SASRec does not import the LLM packages.
    return any(base.__name__ == LLM_BASE for base in model.__mro__)


def find_reference(name: str, llm_recommender: str | None = None) -> str:
    """``"module:Class"`` of the class that ``--model=<name>`` builds (see :func:`find_model`).

    Raises:
        InputError: no such model, with the nearest names; or an ``llm_recommender`` that the model has no use for.
    """
    preset = presets().get(name)
    if preset is not None:
        own = str(load_yaml(preset)["llm_recommender"])
        return _recommender_of(name, own if llm_recommender is None else llm_recommender)
    if llm_recommender not in (None, name):
        raise InputError(
            "llm_recommender", f"'{llm_recommender}' is for presets; {name} is a model of its own", kind="conflict"
        )
    if name in MODELS:
        return str(MODELS[name])
    if name in CLASSIC_MODELS:
        return CLASSIC_MODELS[name]
    if name in added_choices("model"):
        return added_choices("model")[name].value
    if name in recbole_models():
        return recbole_models()[name]
    hint = suggestion(name, model_names(), f"; LLM models: {', '.join(llm_model_names())}; the rest are RecBole's")
    raise InputError(f"there is no model named '{name}'{hint}", kind="unknown", about="model")


def _recommender_of(preset: str, recommender: str) -> str:
    """The class a preset is built on, which must be an LLM model and not a preset itself."""
    classes = {*MODELS, *added_choices("model")}
    if recommender not in classes:
        raise InputError(
            f"{preset}: there is no llm_recommender named '{recommender}'; choose from: {', '.join(sorted(classes))}",
            kind="unknown",
            about="llm_recommender",
        )
    return find_reference(recommender)


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
    reference = find_reference(name, llm_recommender)
    for entry in added_choices("model").values():
        if entry.value == reference:
            found: type = load_entry(entry)
            return found
    try:
        return load_class(reference)
    except ModuleNotFoundError as error:
        if name not in recbole_models():
            raise
        raise needs_recbole_package(name, str(error.name)) from error


def check_packages(name: str) -> None:
    """Refuse one of RecBole's models whose module imports a package that is not installed; nothing is imported.

    Raises:
        InputError: naming the package.
    """
    reference = recbole_models().get(name)
    for package in missing_packages(reference.partition(":")[0]) if reference else ():
        raise needs_recbole_package(name, package)


def needs_recbole_package(name: str, package: str) -> InputError:
    """The refusal of one of RecBole's models that a package is missing for."""
    message = f"RecBole's {name} needs the package '{package}': pip install {package}"
    return InputError(message, kind="environment", about="model")
