"""Which values of the axes read a setting, by the declarations; settings of a command that nothing reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import EntryPoint
from itertools import chain
from typing import TYPE_CHECKING, Any

from recbole_llm.declare import Key, keys_by_name, keys_of
from recbole_llm.property_files import find_properties, load_yaml, recbole_folder
from recbole_llm.registry import AXES, added_choices, load_entry
from recbole_llm.settings.declarations import groups
from recbole_llm.settings.models import ModelFacts, facts_by_name, llm_model_names

if TYPE_CHECKING:
    from recbole_llm.settings.resolve import Resolution

Conditions = Mapping[str, tuple[str, ...]]
"""Settings, and the values of each under which alone something is read; all must have one of theirs. Axes are first."""


def readers() -> Mapping[str, Conditions]:
    """The conditions of every declared setting that is read only at some values of an axis or of another setting.

    A field of an axis value's class is read by that value. A setting of an axis, or of components that serve some of
    its values, is read by those that its scope names, or by all that do something; a scope may also name a choice of
    another setting of the component. Where it names anything else, nothing is known.
    """
    return _readers(tuple(entry for axis in AXES for entry in added_choices(axis).values()))


@lru_cache(maxsize=8)
def _readers(added: tuple[EntryPoint, ...]) -> Mapping[str, Conditions]:
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for component, axis, value in _components(added):
        for key in keys_of(component).values():
            own = _conditions(key, component, axis, value)
            before = found.setdefault(key.name, own)  # declared by several components, each of which reads it
            both = {name: tuple(dict.fromkeys([*values, *own[name]])) for name, values in before.items() if name in own}
            found[key.name] = both
    return {name: own for name, own in found.items() if own}


def _components(added: Sequence[EntryPoint] = ()) -> Iterator[tuple[type, str, str]]:
    """The components of LLM models and of re-ranking: each with its axis, and with its value there if it is one."""
    for component in (one for group in groups() if not group.model for one in group.components):
        place = _place(component)
        own = [key.setting.axis for key in keys_of(component).values() if key.setting.axis]
        yield (component, *place) if place else (component, own[0] if own else "", "")
    for entry in added:
        try:
            yield load_entry(entry), entry.group.rpartition(".")[2], entry.name
        except ValueError:  # an error only where it is chosen
            continue


def _place(component: type) -> tuple[str, str] | None:
    """Axis and value that a class of ours stands for."""
    value = str(getattr(component, "name", ""))
    places = (axis for axis in AXES if (AXES[axis].get(value) or "").endswith(f":{component.__name__}"))
    return next(((axis, value) for axis in places), None)


def _conditions(key: Key, component: type, axis: str, value: str) -> dict[str, tuple[str, ...]]:
    if key.setting.apart or key.setting.axis:
        return {}
    named = _named(key, component, axis)
    if value:
        return {axis: (value,), **named}
    does_nothing = None in AXES.get(axis, {}).values()
    return {axis: _doing(axis), **named} if does_nothing and axis not in named else named


def _doing(axis: str) -> tuple[str, ...]:
    """The values of an axis that do something."""
    return tuple(name for name, reference in AXES[axis].items() if reference)


def _named(key: Key, component: type, axis: str) -> dict[str, tuple[str, ...]]:
    """What a setting's scope names: values of the component's axis, else of any; choices of its other settings."""
    found: dict[str, list[str]] = {}
    for name in filter(None, (part.strip() for part in key.setting.scope.split(","))):
        axes = [one for one in AXES if name in AXES[one] and axis in ("", one)]
        others = [other.name for other in keys_of(component).values() if name in other.setting.choices]
        places = axes or others
        if len(places) != 1:
            return {}
        found.setdefault(places[0], []).append(name)
    return {name: tuple(found[name]) for name in sorted(found, key=lambda name: name not in AXES)}


def unmet(key: str, final: Mapping[str, Any]) -> Conditions:
    """The conditions of a setting that the settings of a run do not meet; none where the run reads it.

    What another distribution's value of an axis reads is not known, so it meets all conditions on that axis.

    Args:
        key: name of the setting.
        final: settings of the run, resolved.
    """
    conditions = readers().get(key, {})
    return {name: values for name, values in conditions.items() if name in final and not _meets(name, values, final)}


def _meets(name: str, values: Sequence[str], final: Mapping[str, Any]) -> bool:
    value = str(final[name]).partition(":")[0]
    return value in values or (name in AXES and value not in AXES[name])


def yielded(final: Mapping[str, Any], user: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of property files that nothing reads any more where the user sets what they depend on otherwise.

    Args:
        final: settings of the run, the user's included.
        user: the user's.

    Returns:
        The components' defaults of these settings.

    Example:
        >>> user = {"lora_rank_rule": "fixed"}
        >>> yielded({"sara_threshold": 0.5, "adapter": "mosara", **user}, user)
        {'sara_threshold': None}
    """
    found: dict[str, Any] = {}
    known = readers()
    for component, *_ in _components():
        for key in keys_of(component).values():
            others = [name for name in known.get(key.name, ()) if name not in AXES and name in user]
            if others and key.name in final and key.name not in user and any(map(unmet(key.name, final).get, others)):
                found[key.name] = key.default
    return found


# ------------------------------------------------------------------------------------------------------- of a command


def unread(given: Iterable[str], resolved: Sequence[Resolution]) -> list[str]:
    """A warning for every setting that none of the models which it is given to reads.

    Config files may hold settings of models and values that are not chosen, so theirs are not meant.

    Args:
        given: names of settings on a command line or of arguments; ``BIGRec.alpha`` is given to BIGRec only.
        resolved: the settings of the models.
    """
    found = []
    for typed in given:
        model, _, key = typed.rpartition(".")
        own = [one for one in resolved if key in one.user and model in ("", one.model)]
        if own and all(_is_of_others(key, one) for one in own):
            found.append(f"{typed} has no effect: only {listed(model_readers(key), 'or')} reads it; leave it out.")
        elif own and key in readers() and all(_without(key, one) for one in own):
            found.append(_warning(typed, key, own))
    return found


def model_readers(key: str) -> list[str]:
    """The LLM models that read a setting at some values of the others."""
    return [name for name in llm_model_names() if _readable(key, facts_by_name(name))]


def _is_of_others(key: str, one: Resolution) -> bool:
    """Whether a setting is one of other LLM models."""
    return one.facts.is_llm and not _readable(key, one.facts)


def _readable(key: str, facts: ModelFacts) -> bool:
    """Whether an LLM model of these facts reads a setting at some values of the others."""
    asked = (group.readers for group in groups() if group.readers and key in keys_by_name(group.components))
    return all(reads(facts) for reads in asked)


def _without(key: str, one: Resolution) -> Conditions:
    """What a model would need in order to read a setting."""
    return {} if not one.facts.is_llm and key in _own_settings(one.model) else unmet(key, one.final)


def _own_settings(model: str) -> frozenset[str]:
    """Settings of one of the models without an LLM, RecBole's or ours: of its property file, and others it reads."""
    files = [folder / "model" / f"{model}.yaml" for folder in (recbole_folder() / "properties", find_properties())]
    shared = [getattr(one, "also_reads", ()) for group in groups() if group.model == model for one in group.components]
    return frozenset(chain(*shared, *(load_yaml(file) for file in files if file.is_file())))


def _warning(typed: str, key: str, models: Sequence[Resolution]) -> str:
    name, values = next(iter(_without(key, models[0]).items()))
    by_value: dict[Any, dict[str, None]] = {}
    for one in models:  # a search resolves one model several times
        by_value.setdefault(one[name], {})[one.model] = None
    told = ", ".join(
        f"{listed([*own], 'and')} {'have' if len(own) > 1 else 'has'} {name}={value}" for value, own in by_value.items()
    )
    if name in AXES and values == _doing(name) and len(values) > 1:
        reads, wanted = "", name
    else:
        reads = f"only {name}={listed(values, 'or')} reads it, and "
        wanted = f"{name}={values[0]}" if len(values) == 1 else name
    return f"{typed} has no effect: {reads}{told}; set --{wanted}, or leave {typed} out."


def listed(names: Sequence[str], word: str) -> str:
    """Names as in a sentence.

    Args:
        names: at least one.
        word: ``"and"`` or ``"or"``, before the last of them.
    """
    return f"{', '.join(names[:-1])} {word} {names[-1]}" if len(names) > 1 else names[0]
