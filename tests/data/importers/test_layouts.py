"""Every layout, written from its documentation: the atomic files hold what the world in plain Python holds."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from recbole_llm.data.importers.command import main
from recbole_llm.data.importers.importing import import_dataset
from recbole_llm.data.importers.plan import Choices
from recbole_llm.data.importers.steps import Filters
from recbole_llm.data.rows import load_rows
from recbole_llm.property_files import load_yaml
from recbole_llm.settings.config import Config
from tests.data.importers.public import LAYOUTS, Layout, atomic, expected, objects, text, world
from tests.data.plain import World, judged_by_hand
from tests.data.test_gate import judged_by
from tests.refusals import refused


def imported(folder: Path, layout: Layout, *more: str) -> tuple[Path, Any]:
    """A world written in a layout and imported by the command, and what is expected of it."""
    made = world()
    path = layout.write(folder / "public", made)
    options = {**layout.options}
    if "items" in options:
        options["items"] = str(folder / "public" / options["items"])
    words = [f"--{key}={value}" for key, value in options.items()]
    main([str(path), "--name=mine", f"--out={folder / 'out'}", *words, *more], progress=False)
    return folder / "out" / "mine", expected(layout, made)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.write.__name__)
def test_a_layout_comes_out_as_it_was_written(tmp_path, caplog, layout):
    with caplog.at_level("INFO"):
        folder, wanted = imported(tmp_path, layout)
    assert f"layout: {layout.name}" in caplog.messages
    header, rows = atomic(folder, "inter")
    assert header == ["user_id:token", "item_id:token", *["rating:float"] * layout.rated, "timestamp:float"]
    assert rows == wanted.inter and rows
    if not layout.titled:
        assert not (folder / "mine.item").exists() and "the files hold no titles" in caplog.text
        return
    header, rows = atomic(folder, "item")
    assert header == ["item_id:token", "title:token", *layout.header.split()]
    assert {item: rest for item, *rest in rows} == wanted.items and len(rows) == len(wanted.items)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.write.__name__)
def test_a_run_reads_it_by_its_name_alone(tmp_path, layout):
    """Rows against plain Python over the atomic files; columns and words come from the property file beside them."""
    folder, wanted = imported(tmp_path, layout)
    model = "BIGRec" if layout.titled else "SASRec"
    config = Config(model, "mine", config_dict={"data_path": str(tmp_path / "out")})
    assert config["domain" if layout.titled else "TIME_FIELD"] == load_yaml(folder / "mine.yaml").get(
        "domain", "timestamp"
    )
    rows = load_rows(config, False)
    assert judged_by(rows) == judged_by_hand(World(folder, {}, "utf-8", "\t"))
    assert rows.whole.reading.interactions == rows.whole.reading.kept == len(wanted.inter)
    if layout.titled:
        assert set(rows.whole.field2id_token["title"].tolist()) - {"[PAD]"} == {row[0] for row in wanted.items.values()}


def test_every_file_of_a_folder_and_gzip_give_the_same(tmp_path):
    by_name = {layout.write.__name__: layout for layout in LAYOUTS}
    whole, _ = imported(tmp_path / "folder", by_name["ml_20m"])
    made = world()
    by_name["ml_20m"].write(tmp_path / "packed", made)
    for file in list((tmp_path / "packed").iterdir()):
        (tmp_path / "packed" / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    packed = import_dataset(tmp_path / "packed" / "ratings.csv.gz", "mine", tmp_path / "out", progress=False)
    for kind in ("inter", "item"):
        assert (packed / f"mine.{kind}").read_bytes() == (whole / f"mine.{kind}").read_bytes()


# ------------------------------------------------------------------------------------------------- what only one has


def test_clicks_before_the_first_impression_come_first_in_their_order(tmp_path):
    news = [[f"N{n}", "c", "s", f"Title {n}", "", "", "[]", "[]"] for n in range(6)]
    train = [
        ["1", "U1", "11/11/2019 9:05:58 AM", "N3 N1", "N2-1 N0-0"],
        ["2", "U1", "11/11/2019 12:00:00 AM", "N3 N1", "N0-1"],
    ]
    dev = [
        ["3", "U1", "11/15/2019 8:55:22 PM", "N3 N1 N0", "N4-0 N5-1"],
        ["4", "U2", "11/15/2019 8:55:22 PM", "", "N5-1"],
    ]
    for part, rows in (("train", train), ("dev", dev)):  # dev comes first by name
        text(tmp_path / "mind" / part, "behaviors.tsv", "".join("\t".join(row) + "\n" for row in rows))
        text(tmp_path / "mind" / part, "news.tsv", "".join("\t".join(row) + "\n" for row in news))
    folder = import_dataset(tmp_path / "mind", "mind", tmp_path / "out", progress=False)
    rows = [(user, item) for user, item, _ in atomic(folder, "inter")[1]]
    assert [item for user, item in rows if user == "U1"] == ["N3", "N1", "N0", "N2", "N5"]
    assert [item for user, item in rows if user == "U2"] == ["N5"]


def test_reviews_without_a_year_and_books_without_times_are_said(tmp_path):
    reviews = [{"posted": "Posted July 3.", "item_id": "1"}, {"posted": "Posted July 4, 2014.", "item_id": "1"}]
    file = text(tmp_path, "australian_user_reviews.json", objects([{"user_id": "u", "reviews": reviews}], repr))
    with refused("", "data", "australian_user_reviews.json, line 1: has no time; .*--bad-lines=drop"):
        import_dataset(file, "a", tmp_path / "out", progress=False)
    folder = import_dataset(file, "a", tmp_path / "out", choices=Choices(drop=True), progress=False)
    assert len(atomic(folder, "inter")[1]) == 1
    text(tmp_path, "goodreads_interactions.csv", "user_id,book_id,is_read,rating,is_reviewed\n0,1,1,5,0\n")
    with refused("", "data", r"goodreads_interactions.csv has no times; give .*\.json"):
        import_dataset(tmp_path / "goodreads_interactions.csv", "g", tmp_path / "out", progress=False)


def official_split(folder: Path, history: bool) -> Path:
    """An absolute-time split of Amazon Reviews 2023, with or without the column of histories."""
    made = world()
    made.rows.sort(key=lambda row: row[3])
    cuts = {"train": made.rows[:20], "valid": made.rows[20:28], "test": made.rows[28:]}
    for part, rows in cuts.items():
        header = "user_id,parent_asin,rating,timestamp" + ",history" * history
        lines = [f"{user},{item},{rating}.0,{time}" + ",B1 B2" * history for user, item, rating, time in rows]
        text(folder, f"Toys.{part}.csv", "\n".join([header, *lines]) + "\n")
    return folder


@pytest.mark.parametrize("history", [False, True])
def test_an_official_split_is_kept(tmp_path, history):
    folder = official_split(tmp_path / "public", history)
    made = world()
    made.rows.sort(key=lambda row: row[3])
    for given in (folder, folder / "Toys.valid.csv"):  # the folder, or any of the three
        out = import_dataset(given, "toys", tmp_path / "out", overwrite=True, progress=False)
    sequences: dict[str, list[str]] = {}
    wanted: dict[str, list[list[str]]] = {"train": [], "valid": [], "test": []}
    for place, (user, item, _, _) in enumerate(made.rows):
        before = sequences.setdefault(user, [])
        if before:
            wanted["train" if place < 20 else "valid" if place < 28 else "test"].append([user, " ".join(before), item])
        before.append(item)
    for part, rows in wanted.items():
        found = [line.split("\t") for line in (out / f"toys.{part}.inter").read_text().splitlines()[1:]]
        assert found == rows and rows
    config = Config("SASRec", "toys", config_dict={"data_path": str(tmp_path / "out")})
    judged = judged_by(load_rows(config, False))
    for part in ("valid", "test"):
        triples = [(user, tuple(history.split()[-10:]), item) for user, history, item in wanted[part]]
        assert judged[part] == sorted(triples)


def test_an_official_split_may_be_joined_and_must_be_whole(tmp_path):
    folder = official_split(tmp_path / "public", False)
    out = import_dataset(folder, "toys", tmp_path / "out", split="join", progress=False)
    assert sorted(file.name for file in out.iterdir()) == ["toys.inter", "toys.yaml"]
    assert len(atomic(out, "inter")[1]) == len(world().rows)
    assert "benchmark_filename" not in load_yaml(out / "toys.yaml")
    (folder / "Toys.test.csv").unlink()
    with refused("", "file", "Toys.train.csv is a part of a split, and toys.test.csv is not beside it"):
        import_dataset(folder / "Toys.train.csv", "other", tmp_path / "out", progress=False)


def test_filters_apply_to_a_split_as_well(tmp_path):
    folder = official_split(tmp_path / "public", False)
    out = import_dataset(folder, "toys", tmp_path / "out", filters=Filters(sample_users=2), progress=False)
    users = {row[0] for row in atomic(out, "inter")[1]}
    for part in ("train", "valid", "test"):
        lines = (out / f"toys.{part}.inter").read_text().splitlines()[1:]
        assert {line.split("\t")[0] for line in lines} <= users and len(users) == 2
