"""Any CSV, TSV, JSON-lines or Parquet file with a column of users, one of items and one of times."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from recbole_llm.data.importers.clock import ORDER
from recbole_llm.data.importers.delimited import DelimitedTable
from recbole_llm.data.importers.files import plain_name, text_lines
from recbole_llm.data.importers.interactions import Columns
from recbole_llm.data.importers.plan import Choices, Feature, ImportPlan, Items, Origin
from recbole_llm.data.importers.table import Table
from recbole_llm.data.importers.tables import JsonTable, ParquetTable, records
from recbole_llm.errors import InputError
from recbole_llm.registry import suggestion

SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".jsonl", ".ndjson", ".json", ".parquet")
# Names under which a column is found, compared without case, blanks and marks; the first that is there is taken.
KNOWN = {
    "user": "userid user uid reviewerid customerid visitorid memberid accountid username customer reviewer usersha1",
    "item": "itemid item iid parentasin asin productid movieid bookid businessid articleid newsid gameid songid "
    "trackid artistid videoid isbn sku product movie book article song track artist video game",
    "time": "timestamp time unixreviewtime datetime date createdat reviewtime reviewdate eventtime ts purchasedate "
    "watchedat playedat clickedat",
    "rating": "rating stars score overall bookrating reviewscore stars10",
    "title": "title itemtitle producttitle movietitle booktitle itemname productname moviename bookname appname name "
    "headline",
}
_SEPARATORS = ",\t;|"
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_NAMED_SEPARATOR = re.compile(r'"?sep=(.)"?')  # the first line of a CSV that is made for Excel
# Columns that atomic files and runs have already: a text under such a name would take another's place.
_OTHERS = ("user_id", "item_id", "title", "rating", "timestamp", "label", "item_id_list", "item_length")
_ADVICE = {
    (".xlsx", ".xls", ".ods"): "save the sheet as CSV in UTF-8",
    (".zip", ".7z", ".rar", ".tar", ".tgz", ".bz2", ".xz", ".zst"): "unpack it",
    (".inter", ".item"): "an atomic file needs no import: --dataset=NAME finds dataset/NAME/NAME.inter",
}
OF_REVIEWS = {"helpfulvote", "verifiedpurchase"}  # columns of Amazon's reviews
_LOOKED_AT = 1000  # objects whose keys are the columns of a file of JSON lines


def find(origin: Origin, choices: Choices) -> ImportPlan | None:
    """The plan for a table of interactions, and a table of items if the user names one.

    Raises:
        InputError: a folder instead of a file; a column that is not there, or that is not found by its name.
    """
    if origin.path.is_dir():
        names = ", ".join(file.name for file in origin.given("*")[:10])
        message = f"{origin.path} has no known layout (it holds {names}); give the file of interactions instead"
        raise InputError("", message, kind="file")
    own = _of_interactions(origin, choices)
    needed = [*(name for name in own.names.values() if name != ORDER), *own.texts]
    table = open_table(origin.path, own, own.columns, needed)
    found = {what: _column(what, table, own) for what in KNOWN}
    if (named := choices.names.get("title")) in table.columns:
        found["title"] = named
    if missing := [what for what in ("user", "item", "time") if found[what] is None]:
        raise InputError(missing[0], _not_found(missing, table), kind="missing")
    for what, other in combinations(("user", "item", "time"), 2):
        if found[what] == found[other]:
            message = f"column '{found[what]}' is the {what} and the {other}; name another with --{what} or --{other}"
            raise InputError(other, message, kind="conflict")
    title = found["title"]
    _check_texts(own.texts, table, bool(title))
    # Beside a file of items, the interactions' titles and texts are those of the items that it lacks.
    texts = own.texts or tuple(name for name in choices.texts if title and name in table.columns)
    columns = Columns(
        str(found["user"]), str(found["item"]), str(found["time"]), found["rating"], title, texts, choices.time_format
    )
    used = [f"{what} is " + _shown(what, name) for what, name in found.items() if name]
    notes = ["columns: " + ", ".join([*used, *(f"text is '{name}'" for name in texts)])]
    if title is None and any(_plain(name) == "title" for name in table.columns) and origin.items is None:
        notes.append("the column title is taken for the reviews'; if it is the items', add --title=title")
    _narrow(table, [name for name in (*found.values(), *texts) if name])
    items = _items(origin, choices, columns.item)
    for source in items:
        words = [
            f"item is '{source.item}'",
            f"title is '{source.title}'",
            *(f"text is '{name}'" for name in choices.texts),
        ]
        notes.append(f"columns of {source.table.file.name}: " + ", ".join(words))
    return ImportPlan("a table", [table], columns, items, notes=notes)


def _of_interactions(origin: Origin, choices: Choices) -> Choices:
    """What the user says of the interactions: where there is a file of items, title and texts are said of it."""
    if origin.items is None:
        return choices
    return replace(choices, names={what: name for what, name in choices.names.items() if what != "title"}, texts=())


def open_table(file: Path, choices: Choices, columns: Sequence[str] = (), needed: Collection[str] = ()) -> Table:
    """A table by its file's ending.

    Args:
        file: the file.
        choices: what the user says of it.
        columns: names of the columns of a file without a header.
        needed: columns that are searched for in all of a file of JSON lines.

    Raises:
        InputError: the ending is unknown, or the file is not as its ending says.
    """
    name = plain_name(file)
    if name.endswith(".parquet"):
        if columns:
            raise InputError(
                "columns", f"{file.name} is Parquet, which names its columns; leave it out", kind="conflict"
            )
        return ParquetTable(file)
    if name.endswith((".jsonl", ".ndjson", ".json")):
        encoding = choices.encoding or "utf-8"
        keys = columns or _keys(file, encoding, needed)
        return JsonTable(file, keys, drop=choices.drop, encoding=encoding, known=None if columns else keys)
    if not name.endswith(SUFFIXES):
        advice = (what for endings, what in _ADVICE.items() if name.endswith(endings))
        what_to_do = next(advice, "rename it by what it holds")
        message = f"{file.name} ends in none of {', '.join(SUFFIXES)}; {what_to_do}"
        raise InputError("", message, kind="file")
    named = _NAMED_SEPARATOR.fullmatch(_first_line(file, choices).rstrip("\r\n"))
    usual = named.group(1) if named else "\t" if name.endswith(".tsv") else _separator(file, choices)
    separator = choices.separator or usual
    quoting = "none" if len(separator) > 1 else choices.quoting
    form = choices.form(separator, quoting=quoting)
    if columns:
        _refuse_header(file, form.split(_first_line(file, choices)))
    return DelimitedTable(file, form, columns or None, choices.drop, skip=1 if named else 0)


def _narrow(table: Table, columns: Sequence[str]) -> None:
    """Leave columns that are not imported unread, where the form of the file allows it."""
    if isinstance(table, ParquetTable):
        table.narrow(columns)


def _refuse_header(file: Path, fields: Sequence[str]) -> None:
    """Refuse names of columns for a file whose first line holds some: it would be read as an interaction."""
    first = {_plain(field) for field in fields}
    if all(first & set(KNOWN[what].split()) for what in ("user", "item")):
        message = f"the first line of {file.name} names its columns ({', '.join(fields)}); leave it out"
        raise InputError("columns", message, kind="conflict")


def _keys(file: Path, encoding: str, needed: Collection[str]) -> list[str]:
    """The keys of the first objects of a file, of more if one is needed; an object without a key has nothing there."""
    keys: dict[str, None] = {}
    with closing(records(file, encoding)) as found:
        for looked_at, (number, record) in enumerate(found):
            if looked_at >= _LOOKED_AT and keys.keys() >= set(needed):
                break
            if isinstance(record, Mapping):
                keys.update(dict.fromkeys(record))
            elif not keys:
                message = f"{file.name}, line {number}: {record}; give one JSON object on each line"
                raise InputError("", f"{message} (pandas: to_json(orient='records', lines=True))", kind="file")
    if not keys:
        raise InputError("", f"{file.name}: is empty; give one JSON object on each line", kind="file")
    return list(keys)


def _first_line(file: Path, choices: Choices) -> str:
    return next((line for _, line in text_lines(file, choices.encoding or "utf-8")), "")


def _separator(file: Path, choices: Choices) -> str:
    """The separator that the first line has most of, outside quotes."""
    line = _first_line(file, choices)
    bare = _QUOTED.sub("", line)
    return max(_SEPARATORS, key=(bare if any(map(bare.count, _SEPARATORS)) else line).count)


def has_own_titles(columns: Sequence[str], items: Sequence[object]) -> bool:
    """Whether a header names a column of items' titles, so that the file is a table of one's own.

    Public files of interactions have none: their titles are in the file of items beside them.
    """
    return not items and bool({_plain(name) for name in columns} & set(KNOWN["title"].split()))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _column(what: str, table: Table, choices: Choices) -> str | None:
    """The column that the user names, else the first that has one of the known names."""
    given = choices.names.get(what)
    if given == ORDER and what == "time":
        return ORDER
    if given is not None:
        _check_columns(what, [given], table)
        return given
    by_name = {_plain(name): name for name in reversed(table.columns)}
    if what == "title" and OF_REVIEWS & by_name.keys():  # it is the review's
        by_name.pop("title", None)
    return next((by_name[name] for name in KNOWN[what].split() if name in by_name), None)


def _check_columns(key: str, names: Sequence[str], table: Table) -> None:
    for name in names:
        if name not in table.columns:
            hint = suggestion(name, table.columns, f"; it has {', '.join(table.columns)}")
            raise InputError(key, f"{table.file.name} has no column '{name}'{hint}", kind="unknown")


def _check_texts(names: Sequence[str], table: Table, titled: bool) -> None:
    """Refuse texts that no run could load: without titles, or named like another column of the atomic files."""
    _check_columns("text", names, table)
    if names and not titled:
        raise InputError("text", "there are no titles that texts could stand beside; name their column: --title=COLUMN")
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InputError("text", f"'{name}' is given twice; give it once")
        if name in _OTHERS:
            message = f"'{name}' is the name of another column of a data set; rename it in {table.file.name}"
            raise InputError("text", f"{message}, or leave it out", kind="conflict")
        if ":" in name or not name.isprintable():
            message = f"the name '{name}' has a colon or a control character, which a data set's header cannot hold"
            raise InputError("text", f"{message}; rename it in {table.file.name}")


def _not_found(missing: Sequence[str], table: Table) -> str:
    """Which columns have no known name, and the flags that name them."""
    flags = " ".join(f"--{what}=COLUMN" for what in missing)
    if "time" in missing:
        flags += ", or --time=order if the order of the lines stands for the time"
    if isinstance(table, DelimitedTable) and table.has_header:
        if any(_is_number(name) for name in table.columns):
            flags += "; if the file has no header, name all its columns: --columns=user,item,..."
        elif len(table.columns) == 1:
            flags += "; if this is more than one column, say what parts them: --separator=' '"
    names = ", ".join(table.columns)
    return f"{table.file.name} has no column with a known name for {', '.join(missing)} (it has {names}); add {flags}"


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?\d+([.,]\d+)?", text.strip()))


def _shown(what: str, name: str) -> str:
    return "the order of the lines" if what == "time" and name == ORDER else f"'{name}'"


def _items(origin: Origin, choices: Choices, item: str) -> list[Items]:
    if origin.items is None:
        return []
    given = [choices.names["title"]] if "title" in choices.names else []
    table = open_table(origin.items, choices, needed=[*given, *choices.texts])
    by_name = (name for name in table.columns if _plain(name) == "id")  # of an item, in a table of items
    own = item if item in table.columns else _column("item", table, Choices()) or next(by_name, None)
    title = _column("title", table, choices)
    if own is None:
        names = ", ".join(table.columns)
        message = (
            f"{table.file.name} has no column '{item}' (it has {names}); rename the column of the items' ids to it"
        )
        raise InputError("items", message, kind="data")
    if title is None:
        raise InputError("title", _not_found(["title"], table), kind="missing")
    _check_texts(choices.texts, table, True)
    _narrow(table, [own, title, *choices.texts])
    return [Items(table, own, title, tuple(Feature(name, name) for name in choices.texts))]
