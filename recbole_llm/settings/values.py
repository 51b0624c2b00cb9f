"""Values as text: parsing of an argument, and the text of a value. Nothing is evaluated."""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping
from typing import Any

import yaml

from recbole_llm.property_files import PropertyLoader
from recbole_llm.settings.schema import is_text

PLAIN = (bool, int, float, str, list, dict, type(None))
YAML_NULLS = ("", "~", "null", "Null", "NULL")


def parse_value(text: str) -> Any:
    """A word of the command line as a value: a Python literal, else YAML, else the text itself; never evaluated.

    Example:
        >>> [parse_value(word) for word in ("1e-4", "[1, 5]", "[Recall, NDCG]", "true", "~", "a=b")]
        [0.0001, [1, 5], ['Recall', 'NDCG'], True, None, 'a=b']
    """
    try:
        return _plain(ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    try:
        value = _plain(yaml.load(text, Loader=PropertyLoader))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text
    # YAML drops what it takes for a comment, so text is better kept as it was typed.
    return text if isinstance(value, str) or value is None and text.strip() not in YAML_NULLS else value


def _plain(value: object) -> Any:
    """The value with tuples as lists; a ValueError for what no setting can be (bytes, sets, dates)."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if not isinstance(value, PLAIN):
        raise ValueError(f"not a setting: {value!r}")
    return value


def parse_text(text: str) -> str | None:
    """A word of the command line for a setting that is text whatever it looks like: quotes go, ``~`` is None."""
    if text.strip() in (*YAML_NULLS, "None") and not text.isspace():  # a blank is a separator
        return None
    try:
        literal = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return literal if isinstance(literal, str) else text


def parse_setting(key: str, text: str) -> Any:
    """The value of one setting; ``key`` may carry a model's name before a dot."""
    return parse_text(text) if is_text(key.rpartition(".")[2]) else parse_value(text)


def parse_texts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings given in Python: texts are read as on the command line, all else is taken as it is."""
    return {
        key: parse_setting(key, value) if isinstance(value, str) else copy.deepcopy(value)
        for key, value in settings.items()
    }


def write_value(value: object) -> str:
    """The word that :func:`parse_value` reads as this value.

    Example:
        >>> [write_value(value) for value in (1e-4, "auto", " ", "5", None, [1, 5], {"mode": "full"})]
        ['0.0001', 'auto', "' '", "'5'", '~', '[1, 5]', "{'mode': 'full'}"]
    """
    if value is None:
        return "~"
    return value if isinstance(value, str) and _reads(parse_value(value), value) else repr(value)


def write_setting(key: str, value: object) -> str:
    """The word that :func:`parse_setting` reads as the value of this setting."""
    if not isinstance(value, str) or not is_text(key.rpartition(".")[2]):
        return write_value(value)
    return value if parse_text(value) == value else repr(value)


def _reads(found: object, value: str) -> bool:
    return isinstance(found, str) and found == value


def split_names(value: object) -> list[str]:
    """Names from ``"A,B"``, ``"A B"`` or a list."""
    parts = value if isinstance(value, list) else [value or ""]
    return [name for part in parts for name in str(part).replace(",", " ").split()]
