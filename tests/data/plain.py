"""Random data sets with everything odd that public files have, and what they say in plain Python."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

ODD_IDS = (
    "NA",
    "null",
    "nan",
    "None",
    '"q',
    'q"',
    "007",
    "7",
    "1e5",
    "-",
    "a b",
    "i ",
    " i",
    "i",
    "#1",
    "[PAD]x",
    "'",
    "é",
)
ODD_TITLES = (
    '"Heroes',
    'Ruler 12"',
    '"Crocodile" Dundee',
    "NA",
    "null",
    "None",
    "nan",
    "Don't",
    '""',
    "Amélie",
    "",
    "12",
)
CLASSES = ("action", "NA", "drama", '"x"', "war")
SETTINGS = {"CKE": ("kg", "link"), "SASRecF": (), "BIGRec": (), "Pop": (), "SASRec": ()}
Judged = dict[str, list[tuple[str, tuple[str, ...], str]]]


@dataclass
class World:
    """A data set on disk.

    Attributes:
        folder: its folder.
        settings: keys of the config with which it can be read.
        encoding: of its files.
        separator: of their fields.
    """

    folder: Path
    settings: dict[str, Any]
    encoding: str
    separator: str


def judged_by_hand(world: World, longest: int = 10) -> Judged:
    """(user, history, target) of validation and test rows: each user's last two interactions, in plain Python."""
    sequences: dict[str, list[str]] = {}
    for user, item in in_time(world):
        sequences.setdefault(user, []).append(item)
    evaluated: Judged = {"valid": [], "test": []}
    for user, items in sequences.items():
        for part, back in (("test", 1), ("valid", 2)):
            place = len(items) - back
            if place >= back and place > 1 - (back == 1 and len(items) > 2):
                evaluated[part].append((user, tuple(items[max(0, place - longest) : place]), items[place]))
    return {part: sorted(rows) for part, rows in evaluated.items()}


def in_time(world: World) -> list[tuple[str, str]]:
    """(user, item) of all interactions by exact time, equal times in the order of the file."""
    text = (world.folder / f"{world.folder.name}.inter").read_bytes().decode(world.encoding).lstrip("\ufeff")
    header, *lines = [line.removesuffix("\r").split(world.separator) for line in text.split("\n") if line.strip()]
    names = [column.split(":")[0] for column in header]
    user, item, time = (names.index(name) for name in ("user_id", "item_id", "timestamp"))
    lines.sort(key=lambda line: exact(line[time]))
    return [(line[user], line[item]) for line in lines]


def exact(time: str) -> Any:
    """A time without rounding."""
    return Decimal(time) if "T" not in time else datetime.fromisoformat(time.replace("Z", "+00:00"))


def make(folder: Path, seed: int) -> World:
    """Write a world; the seed decides everything."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    encoding = str(rng.choice(["utf-8", "utf-8-sig", "latin-1", "utf-16"]))
    separator = str(rng.choice(["\t", ",", "|", "::", ";"]))
    newline = str(rng.choice(["\n", "\r\n"]))
    unit = str(rng.choice(["s", "ms", "ns", "decimal", "date"]))
    ids = [*rng.permutation(ODD_IDS)[: rng.integers(2, len(ODD_IDS))].tolist(), *(f"x{n}" for n in range(8))]
    items = [str(item) for item in rng.permutation(ids)[: rng.integers(5, len(ids) + 1)]]
    users = [str(user) for user in rng.permutation(ids)[: rng.integers(3, len(ids) + 1)]]
    rows = [
        (user, str(rng.choice(items)), int(rng.integers(0, 40))) for user in users for _ in range(rng.integers(1, 16))
    ]
    rows += [(users[0], items[n % len(items)], 40 + n) for n in range(4)]  # somebody has enough
    order = str(rng.choice(["time", "shuffled", "user"]))
    rows = sorted(rows, key=lambda row: row[2]) if order == "time" else rows
    rows = [rows[n] for n in rng.permutation(len(rows))] if order == "shuffled" else rows
    kind = "token" if unit == "date" else "float"
    inter = [f"user_id:token item_id:token rating:float timestamp:{kind}".split(" ")]
    inter += [[user, item, str(rng.integers(1, 6)), _time(tick, unit)] for user, item, tick in rows]
    with_line = [item for item in items if rng.random() < 0.85] or items
    titles = [str(rng.choice([*ODD_TITLES, f"Title {n}"])) for n in range(len(with_line))]
    titles[0] = "Some Title"  # a catalogue without any is refused
    lines = [[item, title, str(rng.choice(CLASSES))] for item, title in zip(with_line, titles, strict=True)]
    lines += [[with_line[0], "Second Line", "war"]] if rng.random() < 0.5 else []
    linked = [item for item in with_line if rng.random() < 0.6] or with_line[:1]
    facts = [[f"e{n}", f"r{n % 2}", str(rng.choice([f"e{n + 1}", "other"]))] for n in range(len(linked) + 1)]
    tables = {
        "inter": inter,
        "item": [["item_id:token", "title:token", "class:token"], *lines],
        "link": [["item_id:token", "entity_id:token"], *([item, f"e{n}"] for n, item in enumerate(linked))],
        "kg": [["head_id:token", "relation_id:token", "tail_id:token"], *facts],
    }
    for suffix, table in tables.items():
        text = newline.join(separator.join(line) for line in table) + newline * int(rng.integers(1, 4))
        (folder / f"{folder.name}.{suffix}").write_bytes(text.encode(encoding))
    named = "utf-8" if encoding == "utf-8-sig" else encoding
    settings = {"data_path": str(folder.parent), "encoding": named, "field_separator": separator}
    return World(folder, settings, "utf-8" if named == "utf-8" else encoding, separator)


def _time(tick: int, unit: str) -> str:
    """A time a few units after another, so near that single precision, or double, may not tell them apart."""
    if unit == "date":
        moment = datetime(2024, 3, 9, 12, tzinfo=timezone.utc) + timedelta(seconds=tick)
        return moment.isoformat().replace("+00:00", "Z")
    start = {"s": 1_700_000_000, "ms": 1_700_000_000_000, "ns": 1_700_000_000_000_000_000, "decimal": 1_700_000_000}[
        unit
    ]
    return f"{start}.{tick:09}" if unit == "decimal" else str(start + tick)


def before_the_split(world: World) -> Counter[tuple[str, str]]:
    """Interactions that no row of validation or test has as its target."""
    evaluated = Counter((user, target) for rows in judged_by_hand(world).values() for user, _, target in rows)
    return Counter(in_time(world)) - evaluated
