"""The atomic files and the property file of an imported data set; :mod:`.placing` puts them in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from recbole_llm.data.importers.interactions import Interactions
from recbole_llm.data.importers.plan import Feature
from recbole_llm.errors import InputError
from recbole_llm.property_files import dump_yaml

_STEP = 20_000  # rows turned into text at a time
LONGEST_HISTORY = 50  # items of a row of a split that its authors made; a run reads MAX_ITEM_LIST_LENGTH of them


def write_interactions(found: Interactions, file: Path) -> None:
    """The ``.inter`` file, in the order of the interactions."""
    _write(file, _inter_lines(found))


def _inter_lines(found: Interactions) -> Iterator[str]:
    rated = found.rating is not None
    columns = ["user_id:token", "item_id:token", *["rating:float"] * rated, "timestamp:float"]
    yield "\t".join(columns) + "\n"
    for start in range(0, len(found), _STEP):
        part = slice(start, start + _STEP)
        users = [found.users[number] for number in found.user[part].tolist()]
        items = [found.items[number] for number in found.item[part].tolist()]
        cells = [
            users,
            items,
            *([] if found.rating is None else [_ratings(found.rating[part])]),
            [repr(time) for time in found.time[part].tolist()],
        ]
        yield "".join("\t".join(row) + "\n" for row in zip(*cells, strict=True))


def _ratings(ratings: np.ndarray) -> list[str]:
    return ["" if rating != rating else repr(rating) for rating in ratings.tolist()]


def write_items(
    found: Interactions,
    titles: dict[str, tuple[str, ...]],
    features: Sequence[Feature],
    file: Path,
    keep_items: bool = False,
) -> int:
    """The ``.item`` file, sorted by id; an item without a title has a line of its own.

    Args:
        found: the interactions.
        titles: title and features of items.
        features: names of the features.
        file: where it is written.
        keep_items: whether items with a title that are in no interaction have a line, too.

    Returns:
        The number of items.
    """
    sold = {found.items[number] for number in np.unique(found.item).tolist()}
    present = sorted(sold.union(titles) if keep_items else sold)
    header = ["item_id:token", "title:token", *(f"{feature.name}:{feature.kind}" for feature in features)]
    nothing = ("", *(feature.clean(None) for feature in features))
    rows = ("\t".join([item, *titles.get(item, nothing)]) + "\n" for item in present)
    _write(file, ["\t".join(header) + "\n", *rows])
    return len(present)


def write_split(found: Interactions, parts: Sequence[str], name: str, folder: Path) -> dict[str, int]:
    """The rows of a split that its authors made: each interaction with those of its user before it as its history.

    Args:
        found: the interactions in the order of time; their ``part`` says which file each stood in.
        parts: names of the parts.
        name: name of the data set.
        folder: folder of the data set.

    Returns:
        Rows by part; a user's first interaction is none, as it has no history.

    Raises:
        InputError: an item's id has a blank.
    """
    if blank := next((item for item in found.items if " " in item), None):
        raise InputError(
            "split", f"item '{blank}' has a blank, which parts histories; set --split=join", kind="conflict"
        )
    counts = dict.fromkeys(parts, 0)
    streams = {part: open(folder / f"{name}.{part}.inter", "w", encoding="utf-8", newline="") for part in parts}
    try:
        for stream in streams.values():
            stream.write("user_id:token\titem_id_list:token_seq\titem_id:token\n")
        histories: dict[int, list[int]] = {}
        for user, item, part in zip(found.user.tolist(), found.item.tolist(), found.part.tolist(), strict=True):
            history = histories.setdefault(user, [])
            if history:
                listed = " ".join(found.items[number] for number in history)
                streams[parts[part]].write(f"{found.users[user]}\t{listed}\t{found.items[item]}\n")
                counts[parts[part]] += 1
            history.append(item)
            del history[:-LONGEST_HISTORY]
    finally:
        for stream in streams.values():
            stream.close()
    return counts


PROPERTIES = """\
# {source}, imported by
#   {command}
# `--dataset={name}` reads this file beside the atomic files; what you change here is the default of every run.

"""


def write_properties(
    file: Path,
    command: str,
    layout: str,
    inter: Sequence[str],
    features: Sequence[Feature],
    titled: bool,
    domain: str,
    parts: Sequence[str] = (),
) -> None:
    """The data set's property file, which lies beside its atomic files.

    Args:
        file: ``<name>.yaml``.
        command: the command line that wrote the data set.
        layout: what was imported.
        inter: columns of the ``.inter`` file.
        features: columns of the ``.item`` file beside id and title.
        titled: whether there is an ``.item`` file.
        domain: words of the prompt.
        parts: names of the parts of a split.
    """
    words = [feature.name for feature in features if feature.kind == "token_seq"]
    texts = words or [feature.name for feature in features]
    settings: dict[str, object] = {
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": "timestamp",
        "load_col": {"inter": list(inter), **({"item": ["item_id", "title", *texts]} if titled else {})},
    }
    if "rating" in inter:
        settings["RATING_FIELD"] = "rating"
    if titled:
        settings |= {"title_field": "title", "item_text_fields": texts, "domain": domain}
        settings |= {"category_field": words[0]} if words else {}
    if parts:
        settings["benchmark_filename"] = list(parts)
    head = PROPERTIES.format(source=layout, command=" ".join(command.split()), name=file.stem)
    _write(file, [head, dump_yaml(settings)])


def _write(file: Path, texts: Iterable[str]) -> None:
    with open(file, "w", encoding="utf-8", newline="") as stream:
        stream.writelines(texts)
