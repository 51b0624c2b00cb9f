"""All models of a command checked from files alone, before RecBole, torch or the LLM libraries are imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from recbole_llm.curriculum import make_curricula
from recbole_llm.data.atomic import Format, read_header
from recbole_llm.data.columns import check_columns, check_item_field
from recbole_llm.errors import InputError
from recbole_llm.llm.folders import find_encoder, find_llm
from recbole_llm.llm.settings import TINY
from recbole_llm.prompt.wording import Wording
from recbole_llm.registry import find_choice
from recbole_llm.settings.command import Command, settings_for
from recbole_llm.settings.data_folder import has_data
from recbole_llm.settings.defaults import union_columns
from recbole_llm.settings.models import check_packages
from recbole_llm.settings.resolve import Resolution, resolve
from recbole_llm.settings.stage_checks import check_readable
from recbole_llm.settings.task_checks import check_same_candidates, mixed_tasks

if TYPE_CHECKING:
    from recbole_llm.coreset import Selector


def check_command(command: Command) -> list[Resolution]:
    """The settings of every model of a command, checked alone, side by side and against the headers of the data files.

    Raises:
        InputError: the first mistake.
    """
    resolved = [resolve(model, command.dataset, settings_for(model, command)) for model in command.models]
    for model in command.models:
        check_packages(model)
    by_task = {one.task: one.model for one in resolved}
    if len(by_task) > 1:
        raise mixed_tasks(by_task["click"], by_task["next-item"])
    check_same_candidates(resolved)
    for one in resolved:
        if has_data(Path(one["data_path"]), one.dataset):  # else RecBole downloads it
            _check_load_col(one)
    columns = union_columns([one["load_col"] for one in resolved])
    for one in resolved:
        if one.facts.is_llm:
            Wording.of_domain(one["domain"])
            _check_files(one)
        if has_data(Path(one["data_path"]), one.dataset):
            together = dataclasses.replace(one, final={**one.final, "load_col": columns})
            check_columns(together)
            _check_item_fields(together)
    return resolved


def _check_files(resolved: Resolution) -> None:
    """Refuse files and folders of an LLM's run that are not there; a finished run is loaded without most of them."""
    if resolved["llm_path"] != TINY:
        find_llm(resolved["llm_path"])
    if not resolved["epochs"]:
        return
    if resolved["sd_file"] is not None and make_curricula(resolved):
        check_readable("sd_file", Path(resolved["sd_file"]))
    if resolved["coreset_file"] is not None:
        check_readable("coreset_file", Path(resolved["coreset_file"]))
        return
    selector = cast("type[Selector] | None", find_choice("coreset", resolved["coreset"]))
    if selector is not None and resolved["coreset_encoder"] != "llm":
        if any(need.name in ("embeddings", "valid_embeddings") for need in selector.needs):
            find_encoder(resolved["coreset_encoder"])


def _files(resolved: Resolution, suffix: str) -> Iterator[Path]:
    """The files of a suffix, whole or split."""
    folder, name = Path(resolved["data_path"]), resolved.dataset
    parts = resolved["benchmark_filename"] if suffix == "inter" else None
    names = [name] if parts is None else [f"{name}.{part}" for part in parts]
    yield from (file for file in (folder / f"{stem}.{suffix}" for stem in names) if file.is_file())


def _check_load_col(resolved: Resolution) -> None:
    """Refuse columns of the user's own ``load_col`` that the files do not have; RecBole leaves them out in silence."""
    for suffix, wanted in (resolved.user.get("load_col") or {}).items():
        for file in _files(resolved, suffix):
            columns = read_header(file, Format.from_config(resolved))
            for field in [] if wanted == "*" else wanted:
                if field not in columns:
                    raise InputError(
                        "load_col", f"{file.name} has no column '{field}', it has {', '.join(columns)}", kind="data"
                    )


def _check_item_fields(resolved: Resolution) -> None:
    """Refuse item fields for titles and texts that the .item file does not have, or that are no text."""
    asked: list[tuple[str, str]] = []
    if resolved.facts.is_llm or resolved["candidates"]:
        asked += [(key, resolved[key]) for key in ("title_field", "title_with") if resolved[key]]
    if resolved.facts.is_llm:
        asked += [("item_text_fields", field) for field in resolved["item_text_fields"] or ()]
    if not asked:
        return
    files = list(_files(resolved, "item"))
    columns = read_header(files[0], Format.from_config(resolved)) if files else {}
    loaded = (resolved["load_col"] or {"item": "*"}).get("item", ())
    for key, field in asked:
        check_item_field(key, field, resolved.dataset, columns, loaded)
