"""Small random data sets in RecBole's atomic files, with the side files that some of RecBole's models ask for.

A world holds everything a sequential, a general or a knowledge-aware model may load: interactions, item titles and
categories, user attributes, a knowledge graph with its link to the items, and pre-trained entity and relation vectors.
Which model loads what is said in :func:`side_file_settings`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ADJECTIVES = ("Silent", "Golden", "Broken", "Distant", "Crimson", "Hidden", "Electric", "Frozen", "Wild", "Last")
NOUNS = ("River", "Empire", "Garden", "Station", "Mirror", "Harbor", "Signal", "Forest", "Letter", "Machine")
CATEGORIES = ("action", "comedy", "drama", "horror", "romance", "war")
N_RELATIONS = 3
VECTOR_SIZE = 16


def make_world(folder: str | Path, n_users: int = 20, n_items: int = 30, seed: int = 0) -> Path:
    """Writes one data set; RecBole finds it by ``data_path=folder.parent``, ``dataset=folder.name``.

    Args:
        folder: where the files go, ``<folder>/<folder.name>.inter`` and so on; made if missing.
        n_users: number of users, each with 5 to 12 interactions at distinct times.
        n_items: number of items, each with at least one interaction and a title of its own.
        seed: the same seed writes the same bytes.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    users = [f"u{index}" for index in range(1, n_users + 1)]
    items = [f"i{index}" for index in range(1, n_items + 1)]
    tables = {
        "inter": _interactions(rng, users, items),
        "item": _items(rng, items),
        "user": _users(rng, users),
        **_knowledge_graph(rng, items),
    }
    for suffix, (header, rows) in tables.items():
        lines = ["\t".join(header), *("\t".join(map(str, row)) for row in rows)]
        (folder / f"{folder.name}.{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def ring_world(
    folder: Path, n_users: int = 300, n_kinds: int = 12, per_kind: int = 40, length: int = 9, seed: int = 0
) -> Path:
    """Categories follow each other in a ring; which item of a category is chance, and each is seen a few times.

    Item number i is of category ``i // per_kind``. A title is a number of its own, which says nothing.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines, items = ["user_id:token\titem_id:token\ttimestamp:float"], ["item_id:token\ttitle:token\tclass:token_seq"]
    for user in range(n_users):
        kind = int(rng.integers(n_kinds))
        for step in range(length):
            lines.append(f"u{user}\ti{kind * per_kind + rng.integers(per_kind)}\t{step}")
            kind = (kind + 1) % n_kinds
    names = np.random.default_rng([seed, 1]).permutation(n_kinds * per_kind)
    items += [f"i{item}\tNumber {name}\tc{item // per_kind}" for item, name in enumerate(names.tolist())]
    for suffix, rows in (("inter", lines), ("item", items)):
        (folder / f"{folder.name}.{suffix}").write_text("\n".join(rows) + "\n")
    return folder


def side_file_settings(model: str) -> dict[str, Any]:
    """The settings, beyond the data set's name, with which a sequential model of RecBole runs on a world.

    Models that are not named here run with the interactions alone.
    """
    inter = ["user_id", "item_id", "rating", "timestamp"]
    item = {"inter": inter, "item": ["item_id", "class"]}
    user_and_item = {**item, "user": ["user_id", "age", "gender", "occupation"]}
    graph = {"inter": inter, "kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}
    entity_vectors = {**graph, "ent": ["ent_id", "ent_emb"]}
    vectors = {**entity_vectors, "rel": ["rel_id", "rel_emb"]}
    settings: dict[str, dict[str, Any]] = {
        "GRU4RecKG": {
            "load_col": entity_vectors,
            "additional_feat_suffix": ["ent"],
            "alias_of_entity_id": ["ent_id"],
            "preload_weight": {"ent_id": "ent_emb"},
            "embedding_size": VECTOR_SIZE,
        },
        "KSR": {
            "load_col": vectors,
            "additional_feat_suffix": ["ent", "rel"],
            "alias_of_entity_id": ["ent_id"],
            "alias_of_relation_id": ["rel_id"],
            "preload_weight": {"ent_id": "ent_emb", "rel_id": "rel_emb"},
            "kg_embedding_size": VECTOR_SIZE,
        },
        "DIN": {"load_col": user_and_item},
        "DIEN": {"load_col": user_and_item},
    }
    settings.update({model: {"load_col": item} for model in ("FDSA", "GRU4RecF", "S3Rec", "SASRecF")})
    return settings.get(model, {})


Table = tuple[tuple[str, ...], Iterable[tuple[Any, ...]]]


def _interactions(rng: np.random.Generator, users: list[str], items: list[str]) -> Table:
    """Each user meets distinct items; the first users in turn make sure that every item is met."""
    rows = []
    for index, user in enumerate(users):
        own = [items[i] for i in range(index, len(items), len(users))]
        others = [item for item in rng.permutation(items) if item not in own]
        history = rng.permutation(own + others[: max(0, int(rng.integers(5, 13)) - len(own))])
        times = 1_000_000 + np.cumsum(rng.integers(1, 1000, len(history)))
        ratings = rng.integers(1, 6, len(history))
        rows += [(user, *row) for row in zip(history, ratings, times, strict=True)]
    return ("user_id:token", "item_id:token", "rating:float", "timestamp:float"), rows


def _items(rng: np.random.Generator, items: list[str]) -> Table:
    rows = []
    for index, item in enumerate(items):
        number, name = divmod(index, len(ADJECTIVES) * len(NOUNS))
        title = f"{ADJECTIVES[name % len(ADJECTIVES)]} {NOUNS[name // len(ADJECTIVES)]}" + f" {number + 1}" * (
            number > 0
        )
        categories = " ".join(rng.choice(CATEGORIES, int(rng.integers(1, 4)), replace=False))
        rows.append((item, title, int(rng.integers(1980, 1999)), categories))
    return ("item_id:token", "title:token_seq", "release_year:token", "class:token_seq"), rows


def _users(rng: np.random.Generator, users: list[str]) -> Table:
    rows = [(user, rng.integers(18, 60), rng.choice(["F", "M"]), rng.choice(["artist", "nurse"])) for user in users]
    return ("user_id:token", "age:token", "gender:token", "occupation:token"), rows


def _knowledge_graph(rng: np.random.Generator, items: list[str]) -> dict[str, Table]:
    """A graph over the items' entities and as many free ones, with a vector for every entity and relation."""
    linked = [f"e{item}" for item in items]
    entities = linked + [f"x{index}" for index in range(len(items))]
    relations = [f"r{index}" for index in range(N_RELATIONS)]
    triples = [(head, rng.choice(relations), rng.choice(entities)) for head in entities for _ in range(2)]
    vectors = {name: rng.normal(size=VECTOR_SIZE).round(4) for name in entities + relations}

    def with_vectors(names: list[str]) -> list[tuple[str, str]]:
        return [(name, " ".join(map(str, vectors[name]))) for name in names]

    return {
        "kg": (("head_id:token", "relation_id:token", "tail_id:token"), triples),
        "link": (("item_id:token", "entity_id:token"), list(zip(items, linked, strict=True))),
        "ent": (("ent_id:token", "ent_emb:float_seq"), with_vectors(entities)),
        "rel": (("rel_id:token", "rel_emb:float_seq"), with_vectors(relations)),
    }
