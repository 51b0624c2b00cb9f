"""One line for columns that the settings name and the files do not have, or have otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_llm.data import lines
from recbole_llm.data.lines import Format, read_header, read_lines
from recbole_llm.data.rows import load_rows
from recbole_llm.errors import Kind
from recbole_llm.settings.config import Config
from tests.refusals import refused
from tests.worlds import make_world

INTER = ["user_id", "item_id", "rating", "timestamp"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_world(tmp_path_factory.mktemp("columns") / "world", n_users=6, n_items=8)
    lines = (folder / "world.item").read_text().splitlines()
    lines = [
        f"{line}\t{'price:float' if n == 0 else n}\t{'vector:float_seq' if n == 0 else '1 2'}"
        for n, line in enumerate(lines)
    ]
    (folder / "world.item").write_text("\n".join(lines) + "\n")
    return folder


def refusal(folder: Path, model: str, key: str, kind: Kind, **settings: Any) -> str:
    with refused(key, kind) as caught:
        load_rows(Config(model, folder.name, config_dict={"data_path": str(folder.parent), **settings}), False)
    return str(caught.value)


@pytest.mark.parametrize("model", ["SASRecF", "FDSA", "GRU4RecF"])
@pytest.mark.parametrize(("field", "kind"), [("price", "float"), ("vector", "float_seq")])
def test_models_with_item_features_take_tokens_only(folder, model, field, kind):
    load_col = {"inter": INTER, "item": ["item_id", field]}
    said = refusal(folder, model, "selected_features", "data", selected_features=[field], load_col=load_col)
    assert said.startswith(f"selected_features: {model} takes token and token_seq features only, and '{field}' of")
    assert f"has type {kind}" in said
    assert "world.item has no column 'colour'" in refusal(
        folder, model, "selected_features", "data", selected_features=["colour"]
    )


@pytest.mark.parametrize("model", ["SASRec", "Pop"])
def test_load_col_must_hold_user_item_and_time(folder, model):
    said = refusal(folder, model, "load_col", "missing", load_col={"inter": ["user_id", "item_id", "rating"]})
    assert said.startswith(
        "load_col: its list for inter lacks 'timestamp', the TIME_FIELD; give inter: [user_id, item_id,"
    )
    said = refusal(folder, model, "load_col", "missing", load_col={"inter": ["item_id", "timestamp"]})
    assert "lacks 'user_id', the USER_ID_FIELD" in said
    assert "unload_col: 'timestamp', the TIME_FIELD" in refusal(
        folder, model, "unload_col", "conflict", unload_col={"inter": ["timestamp"]}, load_col=None
    )


@pytest.mark.parametrize("suffix", ["inter", "item"])
@pytest.mark.parametrize("kind", ["float", "token_seq"])
def test_ids_are_text(tmp_path, suffix, kind):
    folder = make_world(tmp_path / "ids", n_users=6, n_items=8)
    file = folder / f"ids.{suffix}"
    file.write_text(file.read_text().replace("item_id:token", f"item_id:{kind}", 1))
    assert f"ids.{suffix}, line 1: column 'item_id' has type {kind}; ids are text: write item_id:token" in refusal(
        folder, "BIGRec", "", "data"
    )


def test_the_time_is_one_number(tmp_path):
    folder = make_world(tmp_path / "times", n_users=6, n_items=8)
    file = folder / "times.inter"
    file.write_text(file.read_text().replace("timestamp:float", "timestamp:float_seq", 1))
    assert "TIME_FIELD: column 'timestamp' of times.inter is a sequence" in refusal(
        folder, "SASRec", "TIME_FIELD", "data"
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"rating": "3 to 5"},
            "val_interval: 'rating' holds numbers, and '3 to 5' is not an interval; write the interval in",
        ),
        ({"rating": 3}, "val_interval: 'rating' holds numbers"),
        ({"item_id": "i1"}, "val_interval: 'item_id' holds texts, and 'i1' is not a list of texts"),
        ({"item_id": [1, 2]}, "val_interval: 'item_id' holds texts"),
        ("{rating: [3,inf)}", "val_interval"),
    ],
)
def test_intervals_of_values_are_in_quotes(folder, value, message):
    with refused("val_interval", "value", "val_interval") as caught:
        settings = {"data_path": str(folder.parent), "load_col": {"inter": INTER}, "val_interval": value}
        load_rows(Config("SASRec", "world", config_dict=settings), False)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    kept = {"data_path": str(folder.parent), "load_col": {"inter": INTER}, "val_interval": {"rating": "[2,inf)"}}
    reading = load_rows(Config("SASRec", "world", config_dict=kept), False).whole.reading
    assert reading.dropped["outside val_interval"] > 0 and reading.unexplained == 0


def test_links_of_several_items_to_one_entity_are_refused(tmp_path):
    folder = make_world(tmp_path / "links", n_users=6, n_items=8)
    header, *lines = (folder / "links.link").read_text().splitlines()
    entity = lines[0].split("\t")[1]
    lines[1] = "\t".join([lines[1].split("\t")[0], entity])
    (folder / "links.link").write_text("\n".join([header, *lines]) + "\n")
    graph = {"inter": INTER, "kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}
    said = refusal(folder, "CKE", "", "data", load_col=graph)
    assert f"links.link links several items to entity '{entity}'" in said


def test_epochs_reach_the_pretraining_of_s3rec(folder):
    def epochs(**settings: Any) -> tuple[int, int]:
        config = Config("S3Rec", "world", config_dict={"data_path": str(folder.parent), **settings})
        return config["epochs"], config["pretrain_epochs"]

    assert epochs(epochs=1) == (1, 1)
    assert epochs(epochs=1, pretrain_epochs=3) == (1, 3)
    assert epochs()[1] == 500


GRAPH = {"kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}


@pytest.mark.parametrize(
    ("suffix", "old", "new", "settings", "key"),
    [
        ("kg", "head_id:token", "head:token", {}, "HEAD_ENTITY_ID_FIELD"),
        ("kg", "relation_id:token", "relation_id:float", {}, "RELATION_ID_FIELD"),
        ("kg", "tail_id:token", "tail_id:token_seq", {}, "TAIL_ENTITY_ID_FIELD"),
        ("link", "entity_id:token", "entity:token", {}, "ENTITY_ID_FIELD"),
        ("link", "", "", {"ITEM_ID_FIELD": "item_id", "ENTITY_ID_FIELD": "thing"}, "ENTITY_ID_FIELD"),
        ("kg", "", "", {"load_col": {"inter": INTER, **GRAPH, "kg": ["head_id", "tail_id"]}}, "load_col"),
        ("link", "", "", {"load_col": {"inter": INTER, **GRAPH}, "unload_col": {"link": ["entity_id"]}}, "load_col"),
    ],
)
@pytest.mark.parametrize("model", ["CKE", "RippleNet"])
def test_a_knowledge_graph_has_its_columns(tmp_path, model, suffix, old, new, settings, key):
    folder = make_world(tmp_path / "world", n_users=6, n_items=8)
    file = folder / f"world.{suffix}"
    file.write_text(file.read_text().replace(old, new, 1))
    said = refusal(folder, model, key, "data", **{"load_col": {"inter": INTER, **GRAPH}, **settings})
    assert f"world.{suffix}" in said


def test_an_interval_may_be_of_a_column_in_a_file_that_the_settings_name(tmp_path):
    folder = make_world(tmp_path / "world", n_users=6, n_items=8)
    table = ["sold_item:token\tprice:float", *(f"i{n}\t{n}" for n in range(1, 9))]
    (folder / "world.shop").write_text("\n".join(table) + "\n")
    where = {"load_col": None, "additional_feat_suffix": ["shop"], "alias_of_item_id": ["sold_item"]}
    said = refusal(folder, "SASRec", "val_interval", "value", val_interval={"price": "dear"}, **where)
    assert "'price' holds numbers, and 'dear' is not an interval" in said
    settings = {"data_path": str(tmp_path), "val_interval": {"price": "[1,8]"}, **where}
    assert load_rows(Config("SASRec", "world", config_dict=settings), False).whole.reading.unexplained == 0


def test_a_column_of_a_further_file_has_a_name_of_its_own(tmp_path):
    folder = make_world(tmp_path / "world", n_users=6, n_items=8)
    (folder / "world.shop").write_text("item_id:token\tprice:float\ni1\t5\n")
    where = {"load_col": None, "additional_feat_suffix": ["shop"]}
    said = refusal(folder, "SASRec", "load_col", "data", **where)
    assert "'item_id' is a column of world.inter and of world.shop" in said and "see alias_of_item_id" in said


def test_a_header_is_read_once_and_again_when_the_file_has_changed(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(lines, "read_lines", lambda file, form: opened.append(file) or read_lines(file, form))
    file = tmp_path / "x.inter"
    file.write_text("a:token\n")
    for _ in range(3):
        assert read_header(file, Format()) == {"a": "token"}
    read_header(file, Format())["b"] = "token"  # a reader's own copy
    assert read_header(file, Format()) == {"a": "token"} and opened == [file]
    file.write_text("b:float\n")
    assert read_header(file, Format()) == {"b": "float"} and opened == [file, file]
    file.unlink()
    with refused("", "file", "cannot read .*x.inter: No such file"):
        read_header(file, Format())
