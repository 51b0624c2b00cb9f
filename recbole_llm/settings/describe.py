"""A declared setting in words: type, range, meaning and default."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache

import yaml

from recbole_llm.declare import Key
from recbole_llm.property_files import load_yaml, recbole_folder

LARGE = 10_000_000  # a largest value beyond this tells a reader nothing


def types_of(key: Key) -> str:
    """Types as property files name them: ``int or float``."""
    return " or ".join(kind.__name__ for kind in key.types)


def limits_of(key: Key) -> str:
    """Range in mathematical notation: ``>= 1``, ``in [0, 1)``."""
    setting = key.setting
    if setting.share:
        least = 1 if setting.low is None else setting.low
        return f"a count >= {least:g} or a share in {'(' if least else '['}0, 1]"
    low, high = setting.low, setting.high
    if high is not None and high >= LARGE:
        return f">= {low}"
    if (low, setting.above) != (None, None) and (high, setting.below) != (None, None):
        begin = f"[{_number(low)}" if low is not None else f"({_number(setting.above)}"
        end = f"{_number(high)}]" if high is not None else f"{_number(setting.below)})"
        return f"in {begin}, {end}"
    return key.bounds


def _number(value: float | None) -> str:
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.15e}" if 0 < abs(value) < 1e-3 else repr(value)
    return re.sub(r"\.?0*e-0?", "e-", text) if "e" in text else text


def describe(key: Key) -> str:
    """A setting in one line: when it applies, what it means, what it may be."""
    setting = key.setting
    scope = setting.scope or _own_scope(key)
    meaning = f"{scope}: {setting.meaning}" if scope else setting.meaning[:1].upper() + setting.meaning[1:]
    if setting.choices:
        meanings = setting.choices if isinstance(setting.choices, Mapping) else dict.fromkeys(setting.choices, "")
        meaning += ": " + " | ".join(f"{name} ({text})" if text else name for name, text in meanings.items())
    parts = [", ".join(filter(None, (meaning, limits_of(key)))), setting.note]
    if key.null:
        parts.append(f"~ {setting.null}")
    return "; ".join(filter(None, parts)) + "."


def _own_scope(key: Key) -> str:
    """The axis value that a setting belongs to; those of LoRA and of codes serve others too."""
    name = getattr(key.owner, "name", None) or getattr(key.owner, "prefix", "").strip("_")
    return name if name not in ("lora", "tiny", "sid") else ""


@cache
def _of_recbole() -> Mapping[str, object]:
    """RecBole's own defaults of what every model has."""
    files = (recbole_folder() / "properties" / name for name in ("dataset/sample.yaml", "overall.yaml"))
    return {key: value for file in files for key, value in load_yaml(file).items()}


def recbole_default(name: str) -> str:
    """RecBole's default of a setting without one of ours, as it is written in a property file; a mapping is not shown.

    Example:
        >>> recbole_default("seed"), recbole_default("dataset")
        ('2020', "RecBole's")
    """
    value = _of_recbole().get(name, {})
    if isinstance(value, dict):
        return "RecBole's"
    return json.dumps(value) if isinstance(value, str) and value != value.strip() else yaml_text(value)


def yaml_text(value: object) -> str:
    """A value as it is written in a property file."""
    if value is None:
        return "~"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, dict | list | tuple):
        text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=1000)
        return text.strip()
    return str(value)
