"""Names of the models and of the axes' values, and the classes they stand for, ours and those of other distributions.

Everything is imported on demand: looking a name up never loads the other entries of its table. A third party adds a
value by an entry point in the group ``recbole_llm.<axis>``: ``model``, ``adapter``, ``coreset``, ``curriculum``,
``objective``, ``preference``, ``grounding``, ``history_policy`` or ``rerank``; and a ``callback``.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from recbole_llm.errors import InputError

# A value is "module:Class", or None where the name means that the axis does nothing.
MODELS: Mapping[str, str | None] = {
    "BIGRec": "recbole_llm.model.bigrec:BIGRec",
    "SemID": "recbole_llm.model.semid:SemID",
    "TTDS": "recbole_llm.model.ttds:TTDS",
    "LLaRA": "recbole_llm.model.llara:LLaRA",
    "TALLRec": "recbole_llm.model.tallrec:TALLRec",
    "LLMEmb": "recbole_llm.model.llmemb:LLMEmb",
    "Laser": "recbole_llm.model.laser:Laser",
}
# Models of ours that are no LLM recommenders: RecBole's trainers train them, as they train RecBole's own models.
CLASSIC_MODELS: Mapping[str, str] = {
    "LMDH": "recbole_llm.model.lmdh:LMDH",
    "SAR": "recbole_llm.model.sar:SAR",
    "SOLID": "recbole_llm.model.solid:SOLID",
}
ADAPTERS: Mapping[str, str | None] = {
    "lora": "recbole_llm.adapter.lora:LoraAdapter",
    "ilora": "recbole_llm.adapter.ilora:ILoraAdapter",
    "reclora": "recbole_llm.adapter.reclora:RecLoraAdapter",
    "mosara": "recbole_llm.adapter.mosara:MoSaraAdapter",
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
OBJECTIVES: Mapping[str, str | None] = {
    "nll": None,
    "msl": "recbole_llm.objective.token_objectives:MSLObjective",
    "bear": "recbole_llm.objective.token_objectives:BEARObjective",
    "cft": "recbole_llm.objective.token_objectives:CFTObjective",
}
PREFERENCES: Mapping[str, str | None] = {
    "none": None,
    "dpo": "recbole_llm.objective.preferences:DPOPreference",
    "sdpo": "recbole_llm.objective.preferences:SDPOPreference",
    "dmpo": "recbole_llm.objective.preferences:DMPOPreference",
    "rpo": "recbole_llm.objective.preferences:RPOPreference",
    "rpo_diagonal": "recbole_llm.objective.preferences:RPODiagonalPreference",
    "sprec": "recbole_llm.objective.preferences:SPRecPreference",
}
GROUNDINGS: Mapping[str, str | None] = {
    "embedding": "recbole_llm.grounding.embedding:EmbeddingGrounding",
    "interleaved": "recbole_llm.grounding.interleaved:InterleavedGrounding",
    "constrained": "recbole_llm.grounding.constrained:ConstrainedGrounding",
    "likelihood": "recbole_llm.grounding.likelihood:LikelihoodGrounding",
}

RERANKS: Mapping[str, str | None] = {
    "none": None,
    "mmr": "recbole_llm.rerank.rerankers:MMRReranker",
    "lmdh": "recbole_llm.rerank.rerankers:LMDHReranker",
}
HISTORY_POLICIES: Mapping[str, str | None] = {
    "fixed": None,
    "sar": "recbole_llm.history.policy:LengthPolicy",
}

# Trackers by the package that each needs; not an axis, as no result depends on them.
CALLBACKS: Mapping[str, str] = {
    "wandb": "recbole_llm.callbacks.wandb_run:WandbCallback",
    "mlflow": "recbole_llm.callbacks.mlflow_run:MlflowCallback",
}

AXES: Mapping[str, Mapping[str, str | None]] = {
    "adapter": ADAPTERS,
    "coreset": CORESETS,
    "curriculum": CURRICULA,
    "objective": OBJECTIVES,
    "preference": PREFERENCES,
    "grounding": GROUNDINGS,
    "history_policy": HISTORY_POLICIES,
    "rerank": RERANKS,
}
OMITTED: Mapping[str, str] = {"objective": "nll", "preference": "none", "history_policy": "fixed", "rerank": "none"}
"""Axes that a run's effective point omits at this value."""

OLD_MODEL_GROUP = "recbole_llm.models"  # what recbole_llm.model was called first


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
    found: type = getattr(importlib.import_module(module), name)
    return found


def added_choices(axis: str) -> Mapping[str, EntryPoint]:
    """Values of an axis, models or callbacks of other installed distributions, from the group ``recbole_llm.<axis>``.

    Names of our own stay ours.
    """
    own = {"model": {**MODELS, **CLASSIC_MODELS}, "callback": CALLBACKS}.get(axis) or AXES[axis]
    found = _entries(f"recbole_llm.{axis}", tuple(sys.path))
    return {entry.name: entry for entry in found if entry.name not in own}


@lru_cache(maxsize=16)
def _entries(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Entry points of a group; what is installed may change with ``sys.path``."""
    groups = (group, OLD_MODEL_GROUP) if group == "recbole_llm.model" else (group,)
    return tuple(entry for name in groups for entry in entry_points(group=name))


def choices(axis: str) -> tuple[str, ...]:
    """All names of an axis' values, ours first."""
    return (*AXES[axis], *added_choices(axis))


def load_entry(entry: EntryPoint) -> Any:
    """Import what another distribution offers.

    Raises:
        InputError: it does not load, named as theirs.
    """
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        kind = "model" if entry.group in (OLD_MODEL_GROUP, "recbole_llm.model") else entry.group.rpartition(".")[2]
        raise InputError(
            f"{kind} {entry.name} of another package ({entry.value}) cannot be loaded: {error}", kind="environment"
        ) from error


def find_choice(axis: str, value: str) -> type | None:
    """The class behind one axis value, such as ``find_choice("adapter", "lora")``.

    Args:
        axis: a name in :data:`AXES`.
        value: a name of that axis; what follows a colon, as in ``fixed:0.5``, is the class's own affair.

    Returns:
        The class, or None where the value means that the axis does nothing.

    Raises:
        InputError: the axis has no such value, or another distribution's does not load.
    """
    name = value.partition(":")[0]
    if name in AXES[axis]:
        reference = AXES[axis][name]
        return load_class(reference) if reference else None
    if name in added_choices(axis):
        found: type = load_entry(added_choices(axis)[name])
        return found
    raise InputError(
        axis, f"there is no {axis} named '{value}'; choose from: {', '.join(choices(axis))}", kind="unknown"
    )
