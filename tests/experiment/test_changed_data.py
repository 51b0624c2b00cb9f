"""A finished run on data that have changed since: the same answers, or one line, never those of other items."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import recbole_llm
from recbole_llm import Run
from recbole_llm.property_files import load_yaml
from recbole_llm.settings.command import parse_command, settings_for
from recbole_llm.settings.defaults import known_keys
from recbole_llm.settings.resolve import resolve
from tests.refusals import refused
from tests.runs import working_in
from tests.worlds import make_world

HISTORIES = [["i3", "i7", "i2"], ["i5"]]
Change = Callable[[list[str]], list[str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("changed") / "shop", n_users=12, n_items=20)


@pytest.fixture(scope="module")
def runs(world: Path, llama: Path) -> dict[str, Run]:
    shared = {"data_path": str(world.parent), "checkpoint_dir": str(world.parent / "saved"), "epochs": 1}
    shared |= {"show_progress": False, "topk": [5], "valid_metric": "NDCG@5"}
    llm = {"llm_path": str(llama), "prompt_style": "plain", "num_beams": 2, "max_new_tokens": 6, "lora_dropout": 0}
    llm |= {"lora_target_modules": "auto", "train_batch_size": 32, "recommender_config": {"epochs": 1}}
    featured = {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "class"]}}
    own: dict[str, dict[str, Any]] = {
        "Pop": {},
        "SASRec": {},
        "SASRecF": {**featured, "selected_features": ["class"]},
        "BIGRec": llm,
        "LLaRA": llm,
    }
    (world.parent / "saved").mkdir()
    with working_in(world.parent):
        return {model: recbole_llm.run(model, "shop", **shared, **settings) for model, settings in own.items()}


def asked(run: Run, world: Path, folder: Path, changes: dict[str, Change], **query: Any) -> pd.DataFrame:
    """What a run recommends with files that have changed; by default after histories, or for all users."""
    now = folder / "shop"
    shutil.copytree(world, now)
    for suffix, change in changes.items():
        file = now / f"shop.{suffix}"
        header, *lines = file.read_text().splitlines()
        file.write_text("\n".join([header, *change(lines)]) + "\n")
    again = recbole_llm.load_run(run.folder, data_path=folder)
    general = run.config["model"] == "Pop"
    query = query or ({"users": ["u1", "u2", "u3"]} if general else {"histories": HISTORIES})
    return again.recommend(**query, k=5)


def shuffled(lines: list[str]) -> list[str]:
    return random.Random(1).sample(lines, len(lines))


def renamed(old: str, new: str) -> Change:
    """Lines in which one value of a column takes the place of another, and the other way round."""

    def change(lines: list[str]) -> list[str]:
        swap = {old: new, new: old}
        return ["\t".join(swap.get(cell, cell) for cell in line.split("\t")) for line in lines]

    return change


def appended(*more: str) -> Change:
    return lambda lines: [*lines, *more]


@pytest.mark.parametrize("model", ["Pop", "SASRec", "SASRecF", "BIGRec", pytest.param("LLaRA", marks=pytest.mark.slow)])
def test_the_same_lines_in_another_order_are_answered_alike(model, runs, world, tmp_path):
    changes: dict[str, Change] = {"inter": shuffled}
    expected = asked(runs[model], world, tmp_path / "as they were", {})
    pd.testing.assert_frame_equal(asked(runs[model], world, tmp_path / "now", changes), expected)
    users = runs[model].recommend(users=["u1", "u5"], k=5)
    found = asked(runs[model], world, tmp_path / "users", changes, users=["u1", "u5"])
    pd.testing.assert_frame_equal(found, users)


@pytest.mark.parametrize("model", ["SASRec", "SASRecF", "BIGRec"])
def test_interactions_of_others_change_no_answer(model, runs, world, tmp_path):
    """Of items that exchange their interactions, of users that are new, of lines that come before all others."""
    expected = asked(runs[model], world, tmp_path / "as they were", {})
    new = [f"new\ti{item}\t5\t{time}" for time, item in enumerate((9, 4, 11))]
    changes: Sequence[Change] = (renamed("i1", "i2"), lambda lines: [*new, *lines], lambda lines: lines[40:])
    for number, change in enumerate(changes):
        found = asked(runs[model], world, tmp_path / str(number), {"inter": change})
        pd.testing.assert_frame_equal(found, expected)
    history = {"histories": [["i9", "i4", "i11"]]}
    found = asked(runs[model], world, tmp_path / "user", {"inter": changes[1]}, users=["new"])
    pd.testing.assert_frame_equal(
        found.drop(columns="user_id"), asked(runs[model], world, tmp_path / "own", {}, **history).drop(columns="query")
    )


@pytest.mark.parametrize(
    ("model", "suffix", "line", "words"),
    [
        ("Pop", "inter", "u1\tnew\t5\t1", "has 1 items that this run was not trained with .first: 'new'"),
        ("SASRec", "inter", "u1\tnew\t5\t1", "has 1 items"),
        ("SASRecF", "item", "new\tNew Title\t1990\twar", "has 1 items"),
        ("LLaRA", "item", "new\tNew Title\t1990\twar", "has 1 items"),
        ("Pop", "inter", "new\ti1\t5\t1", "has 1 users"),
        ("SASRecF", "item", "i1\tAgain\t1990\twar", ""),
    ],
)
def test_what_weights_have_no_entry_for_is_refused(model, suffix, line, words, runs, world, tmp_path):
    if not words:  # a second line for an item counts for nothing
        found = asked(runs[model], world, tmp_path, {suffix: appended(line)})
        pd.testing.assert_frame_equal(found, runs[model].recommend(HISTORIES, k=5))
        return
    with refused("dataset", "data", words):
        asked(runs[model], world, tmp_path, {suffix: appended(line)})


def test_values_of_a_feature_in_another_order_are_refused(runs, world, tmp_path):
    first = (world / "shop.item").read_text().splitlines()[1].split("\t")[3].split()[0]
    for number, change in enumerate(
        (lambda lines: lines[::-1], lambda lines: [line.replace(first, "x") for line in lines])
    ):
        with refused("dataset", "data", "column 'class' of 'shop' holds other values"):
            asked(runs["SASRecF"], world, tmp_path / str(number), {"item": change})


def test_columns_that_a_model_does_not_read_give_a_warning(world, tmp_path, caplog):
    shared = {"data_path": str(world.parent), "checkpoint_dir": str(tmp_path / "saved"), "show_progress": False}
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]}
    run = recbole_llm.run("SASRec", "shop", **shared, epochs=1, load_col=columns)
    title = (world / "shop.item").read_text().splitlines()[1].split("\t")[1]
    found = asked(run, world, tmp_path, {"item": lambda lines: [line.replace(title, "Another") for line in lines]})
    assert found["item_id"].tolist() == run.recommend(HISTORIES, k=5)["item_id"].tolist()
    assert "'title' of 'shop' changed since the training; SASRec reads none of it" in caplog.text


def test_titles_that_changed_are_told_before_a_tiny_llm_is_built_of_them(world, tmp_path):
    tiny = {"llm_path": "tiny", "tiny_epochs": 1, "tiny_layers": 1, "tiny_hidden_size": 16, "tiny_heads": 2}
    tiny = {key: value for key, value in tiny.items() if key in known_keys("BIGRec", "shop")}
    shared = {"data_path": str(world.parent), "checkpoint_dir": str(tmp_path / "saved"), "show_progress": False}
    run = recbole_llm.run("BIGRec", "shop", **shared, **tiny, epochs=0, num_beams=1)
    stages = sorted((tmp_path / "saved" / "stages").iterdir())
    item, title, *_ = (world / "shop.item").read_text().splitlines()[1].split("\t")
    told = f"1 items of 'shop' have other titles or texts .* .first: '{item}' was '{re.escape(title)}', is 'Another'"
    with refused("dataset", "data", told):
        asked(run, world, tmp_path / "a", {"item": lambda lines: [line.replace(title, "Another") for line in lines]})
    with refused("dataset", "data", "has 1 items that this run was not trained with"):
        asked(run, world, tmp_path / "b", {"item": appended("new\tNew Title\t1990\twar")})
    assert sorted((tmp_path / "saved" / "stages").iterdir()) == stages
    shuffles: dict[str, Change] = {"inter": shuffled}
    pd.testing.assert_frame_equal(asked(run, world, tmp_path / "c", shuffles), run.recommend(HISTORIES, k=5))


def test_other_interactions_are_refused_before_another_recommender_is_trained_on_them(runs, world, tmp_path):
    stages = sorted((world.parent / "saved" / "stages").iterdir())
    with refused("dataset", "data", "has other interactions than this run was trained with, and LLaRA reads a SASRec"):
        asked(runs["LLaRA"], world, tmp_path, {"inter": appended("u1\ti4\t3\t99999999")})
    assert sorted((world.parent / "saved" / "stages").iterdir()) == stages


def test_numbers_that_were_tampered_with_are_refused(runs, world, tmp_path):
    folder = tmp_path / runs["SASRec"].folder.name
    shutil.copytree(runs["SASRec"].folder, folder)
    facts = json.loads((folder / "ids.json").read_text())
    facts["ids"]["item_id"][1:3] = facts["ids"]["item_id"][2:0:-1]
    (folder / "ids.json").write_text(json.dumps(facts))
    with refused("", "file", "ids.json is not as it was written"):
        recbole_llm.load_run(folder).recommend(HISTORIES)


def test_a_run_without_its_numbers_is_loaded_and_a_warning_says_so(runs, tmp_path, caplog):
    folder = tmp_path / runs["SASRec"].folder.name
    shutil.copytree(runs["SASRec"].folder, folder)
    (folder / "ids.json").unlink()
    found = recbole_llm.load_run(folder).recommend(HISTORIES, k=5)
    assert "has no ids.json" in caplog.text
    pd.testing.assert_frame_equal(found, runs["SASRec"].recommend(HISTORIES, k=5))


def test_a_title_is_that_of_the_first_of_several_lines(runs, world, tmp_path):
    """By which LLM models know the item as well."""
    lines = appended("i3\tAnother Title\t1990\twar")
    found = asked(runs["SASRec"], world, tmp_path, {"item": lines}, histories=[["i1"]], exclude_seen=True)
    titles = dict(line.split("\t")[:2] for line in (world / "shop.item").read_text().splitlines())
    shown = runs["SASRec"].recommend([["i1"]], k=20)
    assert found["title"].tolist() == [titles[item] for item in found["item_id"]]
    assert "i3" in set(shown["item_id"])
    with refused("histories", "unknown", "'Another Title': no item has this id or title"):
        asked(runs["SASRec"], world, tmp_path / "title", {"item": lines}, histories=[["Another Title"]])


def test_what_the_file_beside_the_data_made_known_is_no_longer_needed_by_a_finished_run(world, tmp_path):
    """``domain`` is a setting of LLM models, and a data set's own file may hold it for all: its runs record it."""
    shutil.copytree(world, tmp_path / "shop")
    (tmp_path / "shop" / "shop.yaml").write_text("domain: item\n")
    own = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "saved"), "epochs": 1, "show_progress": False}
    run = recbole_llm.run("Pop", "shop", **own)
    assert load_yaml(run.folder / "config.yaml")["domain"] == "item"
    (tmp_path / "shop" / "shop.yaml").unlink()
    expected = run.recommend(users=["u1", "u2"], k=5)
    pd.testing.assert_frame_equal(recbole_llm.load_run(run.folder).recommend(users=["u1", "u2"], k=5), expected)
    again = parse_command([f"--config_files={run.folder / 'config.yaml'}"])
    assert resolve("Pop", "shop", settings_for("Pop", again)).final["data_path"] == str(tmp_path / "shop")
    with (run.folder / "config.yaml").open("a") as file:
        file.write("epohcs: 3\n")
    with refused("epohcs", "unknown"):
        recbole_llm.load_run(run.folder)


def test_a_wrong_data_path_is_named_before_any_setting(runs, tmp_path):
    with refused("data_path", "file", "no data set 'shop': the folder .*nowhere does not exist"):
        recbole_llm.load_run(runs["Pop"].folder, data_path=tmp_path / "nowhere")
    with refused("dataset", "unknown", "no data set 'shop' in "):
        recbole_llm.load_run(runs["Pop"].folder, data_path=tmp_path)
