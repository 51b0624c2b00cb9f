"""Writes property files' comments and defaults and docs/settings.md from the settings' declarations.

python -m recbole_llm.settings.generate
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recbole_llm.declare import NO_DEFAULT, Key, keys_by_name
from recbole_llm.llm.settings import TinyLLMConfig
from recbole_llm.property_files import find_properties
from recbole_llm.settings.declarations import groups, llm_keys, model_keys, with_choices
from recbole_llm.settings.describe import describe, recbole_default, types_of, yaml_text
from recbole_llm.settings.readers import listed, model_readers
from recbole_llm.settings.recbole_keys import RecBoleSettings

COLUMN = 32  # where comments begin
WIDTH = 120
_LINE = re.compile(r"(\w+):( .*?|)\s*(?:\s#.*)?$")


# ---------------------------------------------------------------------------------------------------- property files


def property_line(name: str, value: str, comment: str) -> str:
    """``key: value  # (type) meaning``, wrapped."""
    start = f"{name}: {value}".rstrip()
    start = f"{start:<{COLUMN}}" if len(start) < COLUMN else f"{start}  "
    comment = re.sub(r"([<>]=?|~|in) (?=[\w(\[])", "\\1\N{NO-BREAK SPACE}", comment)  # a range is not torn
    lines = textwrap.wrap(comment, WIDTH - 2 - len(start), break_long_words=False, break_on_hyphens=False)
    rest = textwrap.wrap(" ".join(lines[1:]), WIDTH - 2 - COLUMN, break_long_words=False, break_on_hyphens=False)
    found = "\n".join([f"{start}# {lines[0]}", *(f"{'':<{COLUMN}}# {line}" for line in rest)])
    return found.replace("\N{NO-BREAK SPACE}", " ")


def refreshed(text: str, own_defaults: Mapping[str, Any], keys: Mapping[str, Key]) -> str:
    """A property file with the comments of its declared keys rewritten.

    Args:
        text: the file; headings, order and indented lines stay.
        own_defaults: values to write, by key; the values of other keys stay.
        keys: declared settings by name.
    """
    return "\n".join(_refreshed_lines(text.splitlines(), own_defaults, keys)) + "\n"


def _refreshed_lines(lines: list[str], own_defaults: Mapping[str, Any], keys: Mapping[str, Key]) -> Iterator[str]:
    in_comment = False
    for line in lines:
        if in_comment and re.match(r"\s+#", line):
            continue
        found = _LINE.match(line)
        in_comment = bool(found and found[1] in keys)
        if found and in_comment:
            key = keys[found[1]]
            value = yaml_text(own_defaults[key.name]) if key.name in own_defaults else found[2].strip()
            yield property_line(key.name, value, f"({types_of(key)}) {describe(key)}")
        else:
            yield line


def property_texts(folder: Path) -> dict[Path, str]:
    """What every derived property file should hold."""
    keys, found = llm_keys(), {}
    keys = {**keys, **model_keys()}
    declared = [one for group in groups() if not group.model for one in group.components]
    defaults = {key.name: key.default for key in keys_by_name(declared).values() if key.default is not NO_DEFAULT}
    tiny = {key.name: key.default for key in keys_by_name([TinyLLMConfig]).values()}
    overall = {name: value for name, value in defaults.items() if name not in (*tiny, "valid_metric")}
    own = {"overall.yaml": overall, "evaluation.yaml": defaults}
    for name, values in {**own, "click.yaml": {}, "llm/tiny.yaml": tiny, "llm/smollm2.yaml": {}}.items():
        found[folder / name] = refreshed((folder / name).read_text(encoding="utf-8"), values, keys)
    single = {group.model: keys_by_name(group.components) for group in groups() if group.model}
    for file in sorted((folder / "model").glob("*.yaml")):
        own_values = {name: key.default for name, key in single.get(file.stem, {}).items()}
        found[file] = refreshed(file.read_text(encoding="utf-8"), own_values, keys)
    return found


# --------------------------------------------------------------------------------------------------------- docs page

PAGE = """\
# Settings

All declared settings: key, type, default, range and meaning. `~` is YAML's null. `recbole-llm --help <word>` prints
the lines that contain a word, and the settings of RecBole's models, which this page does not list.

These are the defaults of the code. Presets (`properties/model/`), the tiny LLM and SmolLM2 (`properties/llm/`) and data
sets (`properties/dataset/`) override some of them ([configuration](configuration.md#where-a-setting-comes-from)).

This page is written by `python -m recbole_llm.settings.generate` from the declarations in the code.
"""


def page() -> str:
    """The page of settings."""
    parts = [PAGE]
    for group in groups():
        reach = "For all models, RecBole's included." if group.every_model else "For LLM models."
        reach = f"For {group.model}." if group.model else reach
        keys = keys_by_name(group.components)
        reach = f"For {listed(model_readers(next(iter(keys))), 'and')}." if group.readers else reach
        rows = [
            f"| `{key.name}` | {types_of(key)} | {_default_text(key)} | {_cell(describe(key))} |"
            for key in map(with_choices, keys.values())
        ]
        table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
        parts.append(f"## {group.title}\n\n{reach}\n\n{table}\n")
    return "\n".join(parts)


def _default_text(key: Key) -> str:
    if key.default is NO_DEFAULT:
        if key.owner is not RecBoleSettings:
            return "`evaluation.yaml`"
        default = recbole_default(key.name)
        return default if default == "RecBole's" else f"`{default}`"
    return f"`{yaml_text(key.default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    """Write all derived files."""
    folder = find_properties()
    for file, text in property_texts(folder).items():
        file.write_text(text, encoding="utf-8")
    (folder.parent / "docs" / "settings.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
