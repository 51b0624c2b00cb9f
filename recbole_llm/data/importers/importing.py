"""The import of a data set: detect the layout, read, filter, write."""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_llm.data.importers import amazon, any_table, book_crossing, goodreads, lastfm, mind, movielens, steam, yelp
from recbole_llm.data.importers.catalogue import features_of, read_titles
from recbole_llm.data.importers.clock import ORDER
from recbole_llm.data.importers.interactions import Interactions, read_interactions
from recbole_llm.data.importers.placing import is_unfinished, placed
from recbole_llm.data.importers.plan import Choices, ImportPlan, Origin
from recbole_llm.data.importers.steps import Filters, apply_filters
from recbole_llm.data.importers.writing import write_interactions, write_items, write_properties, write_split
from recbole_llm.errors import InputError
from recbole_llm.property_files import BUILT_IN, find_properties
from recbole_llm.registry import suggestion

Layout = Callable[[Origin, Choices], "ImportPlan | None"]
# In the order in which they are tried; any table is the last.
LAYOUTS: dict[str, Layout] = {
    "movielens": movielens.find,
    "book-crossing": book_crossing.find,
    "amazon": amazon.find,
    "steam": steam.find,
    "yelp": yelp.find,
    "goodreads": goodreads.find,
    "mind": mind.find,
    "lastfm": lastfm.find,
    "table": any_table.find,
}
log = logging.getLogger(__name__)
LEAST_OF_A_USER = 3  # interactions that give a training and a test row
_LONGEST_NAME = 200  # bytes; file systems take 255, endings included
_NO_NAMES, _QUOTES = ("None", "null", "Null", "NULL", "~"), ("'", '"')  # which --dataset reads as nothing, or takes off


@dataclass(frozen=True)
class Imported:
    """A data set that was imported.

    Attributes:
        folder: its folder.
        has_titles: whether an item of it has a title.
        can_run: whether a user has enough interactions for a run.
    """

    folder: Path
    has_titles: bool
    can_run: bool


def import_dataset(
    path: str | Path,
    name: str,
    out: str | Path = "dataset",
    *,
    layout: str | None = None,
    choices: Choices | None = None,
    filters: Filters | None = None,
    domain: str | None = None,
    split: str = "official",
    overwrite: bool = False,
    progress: bool = True,
    command: str = "",
) -> Path:
    r"""Write ``<out>/<name>/<name>.inter``, ``.item`` and ``.yaml``; the same input gives the same bytes.

    Args:
        path: a file, or the folder of a public data set as it is unpacked.
        name: name of the data set.
        out: folder of data sets.
        layout: one of :data:`LAYOUTS`; None finds it by names and first lines of the files.
        choices: what the user says of the files.
        filters: what is left out.
        domain: words of the prompt; None: the layout's.
        split: ``official`` writes the rows of a split that the files are; ``join`` ignores it.
        overwrite: whether a data set of this name may be replaced.
        progress: whether to show progress bars.
        command: the command line, for the property file.

    Returns:
        The folder of the data set.

    Raises:
        InputError: a file or column is missing, a line cannot be read, none is left, or nothing can be written.

    Example:
        >>> _ = Path("log.csv").write_text("user,item,time,title\nann,x,1,Heat\nann,y,2,Babe\nbob,x,3,Heat\n")
        >>> import_dataset("log.csv", "mine", progress=False).as_posix()
        'dataset/mine'
    """
    return imported(
        path,
        name,
        out,
        layout=layout,
        choices=choices or Choices(),
        filters=filters or Filters(),
        domain=domain,
        split=split,
        overwrite=overwrite,
        progress=progress,
        command=command,
    ).folder


def imported(
    path: str | Path,
    name: str,
    out: str | Path,
    *,
    layout: str | None,
    choices: Choices,
    filters: Filters,
    domain: str | None,
    split: str,
    overwrite: bool,
    progress: bool,
    command: str,
) -> Imported:
    """:func:`import_dataset`, and what can be done with the data set."""
    folder = _free_folder(name, Path(out), overwrite)
    _check_words(domain, split)
    origin = Origin(path, choices.items)
    with _own_tables_told(layout is None) as tried:
        plan = _find(origin, choices, layout, tried)
        log.info("layout: %s", plan.layout)
        found = read_interactions(plan.interactions, plan.columns, choices.drop, progress)
    titles = read_titles(plan, found, progress, filters.keep_items)
    has_titles = bool(plan.items or plan.columns.title)
    repeats = filters.repeats or plan.repeats
    filters = Filters(**{**vars(filters), "repeats": repeats})
    apply_filters(found, filters, titles if has_titles else None, plan.columns.time != ORDER)
    can_run = _report(plan, found, folder)
    known = (titles, filters.keep_items) if has_titles else None
    with placed(folder) as aside:
        _write(plan, found, known, aside, name, domain or plan.domain, split, command)
    return Imported(folder, any(found.items[number] in titles for number in np.unique(found.item)), can_run)


@contextmanager
def _own_tables_told(is_open: bool) -> Iterator[list[str]]:
    """Errors of a layout that the names of the files told say what to do if the table is one's own.

    Args:
        is_open: whether the user leaves the layout open.

    Yields:
        A list for the names of the layouts that are tried.
    """
    tried: list[str] = []
    try:
        yield tried
    except InputError as error:
        if not is_open or tried[-1:] == ["table"] or error.kind not in ("data", "file") or "layout=table" in str(error):
            raise
        message = f"{error}; if the file is a table of your own, add --layout=table"
        raise InputError("", message, kind=error.kind, about=error.key) from error


def _free_folder(name: str, out: Path, overwrite: bool) -> Path:
    is_plain = name.isprintable() and len(name.encode()) <= _LONGEST_NAME
    if not name or not is_plain or name != Path(name).name or name.startswith("."):
        raise InputError("name", f"'{name}' is no name of a folder; give one without a path, like my-shop")
    if name in _NO_NAMES or name[0] in _QUOTES and name[0] == name[-1]:
        raise InputError("name", f"--dataset={name} is not read as the name {name}; give another one, like my-shop")
    if name == BUILT_IN:
        message = f"{BUILT_IN} is the data set that RecBole brings along; give another name, like my-{BUILT_IN}"
        raise InputError("name", message)
    folder = out / name
    if not overwrite and not is_unfinished(folder) and any(folder.glob(f"{glob.escape(name)}.*")):
        message = f"{folder} holds a data set already; give another name, or replace it with --overwrite"
        raise InputError("name", message, kind="conflict")
    return folder


def _check_words(domain: str | None, split: str) -> None:
    known = sorted(file.stem for file in (find_properties() / "prompt").glob("*.yaml"))
    if domain is not None and domain not in known:
        raise InputError("domain", f"there is no domain '{domain}'{suggestion(domain, known)}", kind="unknown")
    if split not in ("official", "join"):
        raise InputError("split", f"'{split}' is not allowed; choose one of official, join")


def _find(origin: Origin, choices: Choices, layout: str | None, tried: list[str]) -> ImportPlan:
    if layout is not None and layout not in LAYOUTS:
        raise InputError("layout", f"there is no layout '{layout}'{suggestion(layout, list(LAYOUTS))}", kind="unknown")
    # Columns that are named are those of a table.
    names = [layout] if layout else ["table"] if choices.names or choices.columns else list(LAYOUTS)
    for name in names:
        tried.append(name)
        plan = LAYOUTS[name](origin, choices)
        if plan is not None:
            return plan
    message = f"{origin.path} is not of the layout {layout}; leave --layout out, or give the folder of the public files"
    raise InputError("layout", message, kind="file")


def _report(plan: ImportPlan, found: Interactions, folder: Path) -> bool:
    """Log counts of every line. Returns: whether runs will take the data set."""
    names = ", ".join(table.file.name for table in plan.interactions)
    read = len(found) + sum(found.dropped.values())
    log.info("%s: %s lines, %s interactions", names, f"{found.lines:,}", f"{read:,}")
    for reason, count in found.dropped.items():
        log.info("left out: %s %s", f"{count:,}", reason)
    for note in [*plan.notes, *found.notes]:
        log.info(note)
    users, items = (len(np.unique(column)) for column in (found.user, found.item))
    log.info("%s: %s interactions of %s users and %s items", folder, f"{len(found):,}", f"{users:,}", f"{items:,}")
    can_run = bool(plan.parts) or int(np.bincount(found.user).max()) >= LEAST_OF_A_USER
    if not can_run:
        log.warning("no user has %d interactions, so that runs will refuse the data set", LEAST_OF_A_USER)
    return can_run


def _write(
    plan: ImportPlan,
    found: Interactions,
    known: tuple[dict[str, tuple[str, ...]], bool] | None,
    folder: Path,
    name: str,
    domain: str,
    split: str,
    command: str,
) -> None:
    """Write the files; ``known`` are titles, and whether items without interactions are written."""
    features = features_of(plan) if known is not None else ()
    parts = plan.parts if split == "official" else ()
    write_interactions(found, folder / f"{name}.inter")
    if known is not None:
        titles, keep_items = known
        write_items(found, titles, features, folder / f"{name}.item", keep_items)
    else:
        log.warning("the files hold no titles: LLM models need them; name a column (--title) or a file (--items)")
    if parts:
        counts = write_split(found, parts, name, folder)
        rows = ", ".join(f"{count:,} {part}" for part, count in counts.items())
        log.info("the files are a split, which runs keep: %s rows (--split=join leaves it out)", rows)
    inter = ["user_id", "item_id", *["rating"] * (found.rating is not None), "timestamp"]
    columns = ["user_id", "item_id_list", "item_id"] if parts else inter
    write_properties(folder / f"{name}.yaml", command, plan.layout, columns, features, known is not None, domain, parts)
