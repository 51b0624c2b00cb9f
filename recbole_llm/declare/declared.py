"""Dataclasses whose annotated fields are settings: checked, filled from a run's settings, listed as keys."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from recbole_llm.declare.key import NO_DEFAULT, TYPE_NAMES, Key, Setting

_Self = TypeVar("_Self", bound="Declared")


class Settings(Protocol):
    """A run's settings by their names: a mapping, or RecBole's ``Config``."""

    def __getitem__(self, key: str, /) -> Any: ...


class MutableSettings(Settings, Protocol):
    """Settings that can be changed."""

    def __setitem__(self, key: str, value: Any, /) -> None: ...


class Declared:
    """Base of a frozen dataclass whose annotated fields are settings: checks them, and reads them from a run's."""

    prefix: ClassVar[str] = ""
    """What the names of the settings begin with; a class with a ``name`` has ``<name>_``."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __repr__(self) -> str:
        """The class and the settings that differ from their defaults; of a dataclass that makes none of its own."""
        named: list[tuple[Field[Any], Any]]
        named = [(own, getattr(self, own.name)) for own in fields(self)] if is_dataclass(self) else []
        changed = [f"{own.name}={value!r}" for own, value in named if value != _default(own)]
        return f"{type(self).__name__}({', '.join(changed)})"

    @classmethod
    def from_settings(cls: type[_Self], settings: Mapping[str, Any]) -> _Self:
        """The component from a run's settings; one that is not set keeps the component's own default."""
        found = {field: settings[key.name] for field, key in keys_of(cls).items() if key.name in settings}
        return cls(**found)


def check_fields(component: object) -> None:
    """Refuse field values that their annotation does not accept.

    Which values an axis has is the registry's to say, since other distributions add some.

    Raises:
        InputError: with the name of the setting and what is allowed.
    """
    for name, key in keys_of(type(component)).items():
        if not key.setting.axis:
            key.check(getattr(component, name))


def keys_of(component: type) -> Mapping[str, Key]:
    """The settings that a dataclass declares, inherited ones included, by the name of the field."""
    return _read_keys(component) if is_dataclass(component) else {}


@cache
def _read_keys(component: Any) -> Mapping[str, Key]:
    owners = {name: base for base in reversed(component.__mro__) for name in vars(base).get("__annotations__", {})}
    keys = {}
    for field in fields(component):
        hint = _hint(owners[field.name], field)
        if get_origin(hint) is Annotated:
            found = [note for note in hint.__metadata__ if isinstance(note, Setting)]
            if found:
                owner = owners[field.name]
                name = found[0].key or f"{_prefix(owner, component)}{field.name}"
                types, null = _types(hint.__origin__)
                keys[field.name] = Key(name, types, null, found[0], _default(field), owner)
    return keys


def keys_by_name(components: Iterable[type]) -> dict[str, Key]:
    """The settings of several components by their names.

    Raises:
        ValueError: two components declare one setting differently.
    """
    found: dict[str, Key] = {}
    for component in components:
        for key in keys_of(component).values():
            if found.setdefault(key.name, key) != key:
                raise ValueError(f"{key.name} is declared by {found[key.name].owner} and by {key.owner}")
    return found


def _hint(owner: type, field: Field[Any]) -> Any:
    """The field's annotation, resolved where it is text; only its own, as others may name what is not imported."""
    if not isinstance(field.type, str):
        return field.type
    if "Setting" not in field.type:  # no setting; its types may be imported for type checkers only
        return Any
    single = type("single", (), {"__annotations__": {field.name: field.type}, "__module__": owner.__module__})
    names = vars(sys.modules[owner.__module__])
    return get_type_hints(single, globalns=names, localns=dict(vars(owner)), include_extras=True)[field.name]


def _prefix(owner: type, component: type) -> str:
    """Of the class that declares a field: an iLoRA adapter's rank is LoRA's, ``lora_r``."""
    if prefix := getattr(owner, "prefix", ""):
        return str(prefix)
    name = getattr(owner, "name", None) or getattr(component, "name", None)
    return f"{name}_" if isinstance(name, str) else ""


def _types(hint: object) -> tuple[tuple[type, ...], bool]:
    """Plain types of a hint, and whether None is among them: ``str | list[str] | None`` is text or a list, or None."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    plain = [part if part is NoneType else get_origin(part) or part for part in parts]
    kinds = tuple(dict.fromkeys(_plain(kind) for kind in plain if kind is not NoneType))
    return kinds, NoneType in plain


def _plain(kind: type) -> type:
    """The type that YAML gives: a sequence is a list."""
    if kind in TYPE_NAMES:
        return kind
    for known in (list, dict):
        if issubclass(known, kind):
            return known
    raise TypeError(f"a setting cannot be of type {kind}; give one of {', '.join(one.__name__ for one in TYPE_NAMES)}")


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return NO_DEFAULT if field.default is MISSING else field.default
