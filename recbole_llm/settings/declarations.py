"""The list of all declared settings, in the order of the property files and of the docs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import EntryPoint

from recbole_llm.adapter.settings import AdapterSettings
from recbole_llm.callbacks.settings import CallbackSettings
from recbole_llm.coreset.settings import CoresetSettings, EffortSettings, InfluenceSettings
from recbole_llm.curriculum.settings import DistillationSettings
from recbole_llm.declare import Key, keys_by_name, keys_of
from recbole_llm.grounding.settings import GroundingSettings, ReweightSettings
from recbole_llm.history.settings import HistorySettings, SarSettings
from recbole_llm.llm.laser_settings import LaserSettings
from recbole_llm.llm.settings import BackboneSettings, GenerationSettings, TinyLLMConfig
from recbole_llm.llm.vector_settings import ItemVectorSettings
from recbole_llm.objective.preference_settings import PreferenceSettings
from recbole_llm.objective.settings import ObjectiveSettings
from recbole_llm.prompt.settings import PromptSettings, TrunkSettings
from recbole_llm.registry import AXES, added_choices, choices, load_class, load_entry
from recbole_llm.rerank.settings import LMDHSettings, RerankSettings
from recbole_llm.semantic_ids.settings import CodeSettings, TwinSettings
from recbole_llm.semantic_ids.solid_settings import SolidSettings
from recbole_llm.settings.evaluation import EvaluationSettings, RowSettings
from recbole_llm.settings.models import ModelFacts
from recbole_llm.settings.recbole_keys import RecBoleSettings
from recbole_llm.settings.training import AlignmentSettings, FineTuneSettings, ModelSettings, TeachingSettings


@dataclass(frozen=True)
class Group:
    """Settings that belong together.

    Attributes:
        title: heading in the docs.
        components: the dataclasses that declare them.
        every_model: whether RecBole's own models read them as well.
        model: the one model of ours that reads them, where it is no LLM recommender.
        readers: whether an LLM model of these facts reads them; None where all do.
    """

    title: str
    components: tuple[type, ...]
    every_model: bool = False
    model: str = ""
    readers: Callable[[ModelFacts], bool] | None = None


def _of_axis(axis: str) -> tuple[type, ...]:
    """Our own values of an axis that have settings."""
    classes = [load_class(reference) for reference in AXES[axis].values() if reference]
    return tuple(found for found in classes if keys_of(found))


@lru_cache(maxsize=1)
def groups() -> tuple[Group, ...]:
    """Our own settings."""
    return (
        Group("Data and run", (RecBoleSettings,), every_model=True),
        Group("Rows", (RowSettings,), every_model=True),
        Group("Evaluation", (EvaluationSettings,), every_model=True),
        Group("Re-ranking", (RerankSettings,), every_model=True),
        Group("Trackers", (CallbackSettings,), every_model=True),
        Group("Training", (FineTuneSettings,), every_model=True),
        Group("Trunks", (TrunkSettings,)),
        Group("LLM", (BackboneSettings,)),
        Group("Tiny LLM", (TinyLLMConfig,)),
        Group("Item text and prompt", (PromptSettings,)),
        Group("Generation", (GenerationSettings,)),
        Group("Model", (ModelSettings,)),
        Group("Item vectors", (ItemVectorSettings,)),
        Group(
            "Vectors in a classic model",
            (AlignmentSettings,),
            readers=lambda facts: facts.reads_items and not facts.reads_histories,
        ),
        Group("Bi-tuning", (LaserSettings,), readers=lambda facts: facts.reads_histories),
        Group("Teaching a classic model", (TeachingSettings,)),
        Group("Adapter", (AdapterSettings, *_of_axis("adapter"))),
        Group("Coreset", (CoresetSettings, *_of_axis("coreset"))),
        Group("Influence and effort", (InfluenceSettings, EffortSettings)),
        Group("Curriculum", (DistillationSettings,)),
        Group("Objective", (ObjectiveSettings, *_of_axis("objective"))),
        Group("Preference", (PreferenceSettings,)),
        Group("Codes of items", (CodeSettings,), readers=lambda facts: bool(facts.names_codes)),
        Group("Codes of users", (TwinSettings,), readers=lambda facts: facts.names_codes == "twin"),
        Group("Grounding", (GroundingSettings, ReweightSettings)),
        Group("History", (HistorySettings,)),
        Group("LMDH", (LMDHSettings,), model="LMDH"),
        Group("SAR", (SarSettings,), model="SAR"),
        Group("SOLID", (SolidSettings,), model="SOLID"),
    )


def classic_keys() -> Mapping[str, Key]:
    """Declared settings that RecBole's own models read, by name."""
    return _keys(every_model=True, added=())


def llm_keys() -> Mapping[str, Key]:
    """Declared settings of LLM models by name, those of other distributions included."""
    return _keys(every_model=False, added=tuple(entry for axis in AXES for entry in added_choices(axis).values()))


@lru_cache(maxsize=1)
def model_keys() -> Mapping[str, Key]:
    """Declared settings of single models of ours that are no LLM recommenders, by name."""
    return keys_by_name([one for group in groups() if group.model for one in group.components])


@lru_cache(maxsize=8)
def _keys(every_model: bool, added: tuple[EntryPoint, ...]) -> Mapping[str, Key]:
    read = [group for group in groups() if not group.model and (group.every_model or not every_model)]
    components = [one for group in read for one in group.components]
    keys = keys_by_name([*components, *filter(None, map(_component, added))])
    return {name: with_choices(key) for name, key in keys.items()}


def _component(entry: EntryPoint) -> type | None:
    """A third party's class; None where it does not load, which is an error only where it is chosen."""
    try:
        found: type = load_entry(entry)
    except ValueError:
        return None
    return found


def with_choices(key: Key) -> Key:
    """The setting with the values of the axis it names, those of other distributions included."""
    setting = key.setting
    if not setting.axis:
        return key
    if setting.pattern:  # a name may have a value behind a colon
        names = "".join(f"|{re.escape(name)}(:.*)?" for name in added_choices(setting.axis))
        return replace(key, setting=replace(setting, pattern=f"{setting.pattern}{names}"))
    meanings = setting.choices if isinstance(setting.choices, Mapping) else {}
    named = {name: meanings.get(name, "") for name in choices(setting.axis)}
    return replace(key, setting=replace(setting, choices=named))
