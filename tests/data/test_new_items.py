"""``repeatable: False``: what a user had before a target is neither ranked nor sampled, by the lines of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import recbole_llm
from recbole_llm.data.loaders import eval_loader
from recbole_llm.data.rows import SAMPLE_ID, Rows, load_rows, row_pairs
from recbole_llm.settings.check import check_command
from recbole_llm.settings.command import parse_command
from recbole_llm.settings.config import Config
from tests.refusals import refused
from tests.worlds import make_world

SPLITS: dict[str, Any] = {
    "last two": {"split": {"LS": "valid_and_test"}},
    "shares of a user": {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": "user"},
    "one cut in time": {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": None},
}


def load(world: Path, **settings: Any) -> tuple[Config, Rows]:
    where = {"data_path": str(world.parent), "repeatable": False}
    config = Config("Pop", world.name, config_dict={**where, **settings})
    return config, load_rows(config, False)


def had_before(world: Path, rows: Rows, phase: str) -> dict[int, set[str]]:
    """Outside ids of what each row's user had before, by the row's number.

    From the lines of the file: the last interactions of a user have rows, in their order.
    """
    lines = pd.read_csv(world / f"{world.name}.inter", sep="\t", dtype=str)
    lines["time"] = lines["timestamp:float"].astype(float)
    own = {
        user: list(part["item_id:token"])
        for user, part in lines.sort_values("time", kind="stable").groupby("user_id:token")
    }
    users, items = (rows.whole.field2id_token[name] for name in ("user_id", "item_id"))
    places = {user: len(had) for user, had in own.items()}
    told: dict[int, set[str]] = {}
    for part in (rows.test, rows.valid):  # from the last row backwards
        pairs = row_pairs(part)
        for place in reversed(range(len(pairs))):
            user, target = users[pairs[place, 0]], items[pairs[place, 1]]
            places[user] -= 1
            assert own[user][places[user]] == target
            told[int(part.inter_feat[SAMPLE_ID][place])] = {*own[user][: places[user]]} - {target}
    return {number: told[number] for number in getattr(rows, phase).inter_feat[SAMPLE_ID].tolist()}


@pytest.mark.parametrize("phase", ["valid", "test"])
@pytest.mark.parametrize("split", SPLITS)
def test_full_rankings_leave_out_all_that_a_user_had_before(tmp_path, split, phase):
    """More than the two items that a row shows of the history; in batches of any size."""
    world = make_world(tmp_path / "world", n_users=15, n_items=25, seed=3)
    config, rows = load(world, eval_args=SPLITS[split], MAX_ITEM_LIST_LENGTH=2, eval_batch_size=4)
    expected = had_before(world, rows, phase)
    tokens, found = rows.whole.field2id_token["item_id"], {}
    for batch, (places, items), _, targets in eval_loader(config, rows, phase):
        for place in range(len(batch)):
            number = int(batch[SAMPLE_ID][place])
            found[number] = {*tokens[items[places == place].numpy()]}
            assert tokens[targets[place]] not in found[number]
    assert found == expected and max(map(len, found.values())) > 2


@pytest.mark.parametrize("mode", ["uni5", "pop5"])
def test_samples_leave_it_out_too(tmp_path, mode):
    world = make_world(tmp_path / "world", n_users=15, n_items=40, seed=4)
    config, rows = load(world, eval_args={"mode": mode}, MAX_ITEM_LIST_LENGTH=2)
    before, tokens = had_before(world, rows, "test"), rows.whole.field2id_token["item_id"]
    drawn: dict[int, set[str]] = {}
    for batch, *_ in eval_loader(config, rows, "test"):
        for row, item in zip(batch[SAMPLE_ID].tolist(), batch["item_id"].tolist(), strict=True):
            drawn.setdefault(row, set()).add(tokens[item])
    assert drawn.keys() == before.keys()
    for number, had in before.items():
        assert len(drawn[number]) > 1 and not drawn[number] & had


def test_a_user_who_had_everything_is_told_of_where_items_are_sampled(tmp_path):
    world = make_world(tmp_path / "world", n_users=8, n_items=12, seed=5)
    file = world / "world.inter"
    lines = file.read_text().splitlines()
    items = [line.split("\t")[0] for line in (world / "world.item").read_text().splitlines()[1:]]
    width = len(lines[0].split("\t"))
    file.write_text(
        "\n".join([*lines, *("\t".join(["all", item, "5", str(n)][:width]) for n, item in enumerate(items))]) + "\n"
    )
    config, rows = load(world, eval_args={"mode": "uni5"})
    with refused("repeatable", "conflict", "for user all, who had all of them"):
        eval_loader(config, rows, "test")
    assert len(eval_loader(load(world)[0], rows, "test")) > 0


def test_a_user_who_had_everything_is_told_of_before_training(tmp_path):
    """The target of the test row is the last item that was left, so that the validation row can be sampled for."""
    world = make_world(tmp_path / "world", n_users=8, n_items=12, seed=5)
    items = [line.split("\t")[0] for line in (world / "world.item").read_text().splitlines()[1:]]
    file = world / "world.inter"
    lines = file.read_text().splitlines()
    width = len(lines[0].split("\t"))
    own = ["\t".join(["all", item, "5", str(n)][:width]) for n, item in enumerate(items)]
    file.write_text("\n".join([*lines, *own]) + "\n")
    words = {"data_path": str(tmp_path), "repeatable": False, "checkpoint_dir": str(tmp_path / "saved")}
    with refused("repeatable", "conflict", "for user all, who had all of them"):
        recbole_llm.run("BPR", "world", **words, eval_args={"mode": {"valid": "full", "test": "uni1"}})
    assert not list((tmp_path / "saved").rglob("*.pth"))


def test_pop_ranks_what_a_user_has_not_had_and_the_page_says_so(command, world):
    lists = {}
    for repeatable in (True, False):
        finished = command("Pop", "--topk=[5,10]", f"--repeatable={repeatable}")
        lists[repeatable] = {row["user_id"]: row["top_items"] for row in finished.ranks("Pop")}
        page = (finished.results / "report.html").read_text(encoding="utf-8")
        assert ("Items that a user had before the target are not ranked." in page) != repeatable
    assert len({*lists[True].values()}) == 1 < len({*lists[False].values()})
    had = pd.read_csv(world / "world.inter", sep="\t", dtype=str).groupby("user_id:token")["item_id:token"].agg(list)
    for user, best in lists[False].items():
        assert not {*best.split(" ")} & {*had[user][:-1]}


def test_clicks_and_listed_candidates_are_no_matter_of_it(command, world):
    """Neither ranks what could be left out."""
    found = {}
    for repeatable in (True, False):
        word = f"--repeatable={repeatable}"
        labels = ("--eval_args={mode: labeled}", "--threshold={rating: 3}", "--metrics=AUC", "--valid_metric=AUC")
        clicks = command("LR", *labels, word)
        listed = command("Pop", "--topk=[5,10]", "--candidates=8", "--MAX_ITEM_LIST_LENGTH=2", word)
        found[repeatable] = [one.table.results[0].test for one in (clicks, listed)]
        assert clicks.status == listed.status == 0
    assert found[True] == found[False]


@pytest.mark.parametrize("mode", ["full", "uni5"])
def test_models_of_one_table_rank_the_same_items(mode):
    words = ["--model=Pop,BPR", "--dataset=ml-100k", "--Pop.repeatable=False", f"--eval_args={{mode: {mode}}}"]
    with refused("repeatable", "conflict", "repeatable: Pop has False and BPR True; .* the same candidates"):
        check_command(parse_command(words))
