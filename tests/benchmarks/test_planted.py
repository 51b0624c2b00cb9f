"""The planted world is what its settings say, and its oracle is what brute force over everything hidden gives."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import planted
from benchmarks.planted import PlantedSettings, Rules, World, judge, make_world, oracle_scores
from recbole_llm.data.rows import load_rows, row_histories, row_pairs
from recbole_llm.grounding.rank_metrics import ndcg_at
from recbole_llm.settings.config import Config
from tests.processes import fresh_python
from tests.refusals import refused
from tests.runs import run

SMALL = PlantedSettings(n_users=40, n_categories=4, items_per_category=5)
TINY = PlantedSettings(n_users=30, n_categories=3, items_per_category=2, min_length=4, max_length=6)
BIG = PlantedSettings(n_users=4000, n_categories=5, items_per_category=6)
SPOILED = {"n_groups": 3, "mislabelled": 0.2, "redundant": 0.25, "shift": 0.2}
TWO_GROUPS = {"n_groups": 2, "group_visible": "history"}


def files(world: World, folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in planted.write_world(world, folder).iterdir()}


def within(frequency: float, probability: float, n: int) -> bool:
    """Whether a frequency in n draws is within four standard deviations."""
    return abs(frequency - probability) <= 4 * np.sqrt(probability * (1 - probability) / n)


# ---- files and items


def test_the_same_seed_writes_the_same_files_and_another_one_others(tmp_path):
    knobs = replace(SMALL, **SPOILED)
    first = files(make_world(knobs), tmp_path / "a")
    assert first == files(make_world(knobs), tmp_path / "b")
    assert set(first) == {"planted.inter", "planted.item", "planted.json"}
    other = files(make_world(replace(knobs, seed=1)), tmp_path / "c")
    assert all(first[name] != other[name] for name in first)


def test_everything_true_can_be_read_back(tmp_path):
    world = make_world(replace(SMALL, **SPOILED))
    read = planted.read_world(planted.write_world(world, tmp_path))
    assert read.settings == world.settings
    for name in ("brand", "series", "number", "next_category", "next_position", "popularity"):
        np.testing.assert_array_equal(getattr(read.rules, name), getattr(world.rules, name))
    for name in ("group", "final_group", "copy_of", "recbole_ids"):
        np.testing.assert_array_equal(getattr(read, name), getattr(world, name))
    for name in ("sequences", "mislabelled"):
        assert [row.tolist() for row in getattr(read, name)] == [row.tolist() for row in getattr(world, name)]
    assert files(read, tmp_path / "again") == files(world, tmp_path)
    with refused("", "value", "there is no .*planted.json; write one with"):
        planted.read_world(tmp_path / "absent")


def test_titles_are_distinct_and_state_category_brand_and_series(tmp_path):
    folder = planted.write_world(make_world(), tmp_path)
    header, *lines = (folder / "planted.item").read_text().splitlines()
    assert header.split("\t") == [f"{name}:token" for name in ("item_id", "title", "category", "brand", "series")]
    rows = [line.split("\t") for line in lines]
    assert len({title for _, title, *_ in rows}) == len(rows) == 200
    for _, title, category, brand, series in rows:
        assert title.split()[:3] == [brand, category, series]
        assert len(title.split()) == 4
    assert json.loads((folder / "planted.json").read_text())["categories"] == list(dict.fromkeys(r[2] for r in rows))


def test_words_are_distinct():
    words = [*planted.CATEGORIES, *planted.BRANDS, *planted.SERIES]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("change", [{"mislabelled": 0.5}, {"redundant": 0.5}, {"p_item": 0.9}, {"n_users": 50}])
def test_a_knob_leaves_items_and_rules_alone(change):
    clean, turned = make_world(SMALL).rules, make_world(replace(SMALL, **change)).rules
    assert clean.titles == turned.titles
    np.testing.assert_array_equal(clean.next_category, turned.next_category)
    np.testing.assert_array_equal(clean.next_position, turned.next_position)


# ---- rules


def test_items_follow_one_another_as_often_as_the_settings_say():
    world = make_world(BIG)
    size, rules = BIG.items_per_category, world.rules
    last = np.concatenate([items[:-1] for items in world.sequences])
    following = np.concatenate([items[1:] for items in world.sequences])
    category = following // size
    followed = category == rules.next_category[0, last // size]
    assert within(followed.mean(), BIG.p_category, len(last))
    elsewhere = (category - rules.next_category[0, last // size])[~followed] % BIG.n_categories
    for other in range(1, BIG.n_categories):
        assert within((elsewhere == other).mean(), 1 / (BIG.n_categories - 1), len(elsewhere))

    # The exact successor comes as such, or by its popularity; other items by their popularity alone.
    successor = category * size + rules.next_position[last % size]
    exact = (following == successor)[followed]
    by_popularity = rules.popularity[successor % size][followed].mean()
    assert within(exact.mean(), BIG.p_item + (1 - BIG.p_item) * by_popularity, len(exact))
    for position, chance in enumerate(rules.popularity):
        assert within((following[~followed] % size == position).mean(), chance, (~followed).sum())


def test_popularity_falls_with_the_place_by_the_skew():
    weights = np.sort(make_world(replace(SMALL, popularity_skew=2.0)).rules.popularity)[::-1]
    np.testing.assert_allclose(weights / weights[0], 1 / np.arange(1, 6) ** 2.0)
    np.testing.assert_allclose(make_world(replace(SMALL, popularity_skew=0.0)).rules.popularity, 0.2)


@given(st.integers(2, 24), st.data())
@settings(max_examples=30)
def test_rules_of_groups_are_permutations_that_agree_nowhere(n_categories, data):
    n_groups = data.draw(st.integers(1, n_categories))
    rules = planted.make_rules(PlantedSettings(n_categories=n_categories, n_groups=n_groups)).next_category
    assert (np.sort(rules, axis=1) == np.arange(n_categories)).all()
    assert all(len(set(column)) == n_groups for column in rules.T)


def test_the_rules_averaged_over_groups_tell_nothing():
    knobs = replace(SMALL, n_groups=4)
    items = np.arange(knobs.n_items)
    rules = make_world(knobs).rules
    mean = sum(rules.next_item(np.full(len(items), group), items) for group in range(4)) / 4
    by_category = mean.reshape(len(items), 4, -1).sum(axis=2)
    np.testing.assert_allclose(by_category, 0.25)

    fewer = make_world(replace(knobs, n_groups=2)).rules
    mean = sum(fewer.next_item(np.full(len(items), group), items) for group in range(2)) / 2
    by_category = np.sort(mean.reshape(len(items), 4, -1).sum(axis=2), axis=1)
    np.testing.assert_allclose(by_category[:, 2:], (0.8 + 0.2 / 3) / 2)  # the two rules alike
    np.testing.assert_allclose(by_category[:, :2], 0.2 / 3)


@pytest.mark.parametrize("visible, told", [("history", False), ("item", True), ("id", True)])
def test_the_last_item_alone_tells_the_group_only_where_it_shall(visible, told):
    rules = make_world(replace(SMALL, n_groups=3, p_item=0.5, group_visible=visible)).rules
    groups = np.arange(3)
    chances = rules.first_item(groups)
    for _ in range(6):
        steps = [rules.next_item(np.full(20, group), np.arange(20)) for group in groups]
        assert np.allclose(chances, chances[0], rtol=1e-12) is not told
        chances = np.stack([row @ step for row, step in zip(chances, steps, strict=True)])


def test_a_group_that_shows_in_the_items_prefers_its_own_brands():
    world = make_world(replace(BIG, n_groups=2, group_visible="item"))
    pairs = zip(world.sequences, world.group, strict=True)
    assert np.mean([(world.rules.brand[items] % 2 == group).mean() for items, group in pairs]) > 0.8


def test_a_group_that_shows_in_the_ids_prefers_items_whose_texts_do_not_tell():
    world = make_world(replace(BIG, n_brands=4, n_groups=2, group_visible="id"))
    items = np.concatenate(world.sequences)
    group = np.repeat(world.group, [len(own) for own in world.sequences])
    assert (items % world.settings.items_per_category % 2 == group).mean() > 0.8
    for told in (world.rules.brand, world.rules.series):  # as unequal as titles fall to positions, not as groups are
        shares = [np.bincount(told[items[group == own]], minlength=4) / (group == own).sum() for own in (0, 1)]
        assert np.abs(shares[0] - shares[1]).max() < 0.5


def test_the_history_tells_the_group():
    world = make_world(PlantedSettings(n_groups=4))
    posterior = planted.group_posterior(world, world.rows("test").histories)
    assert (posterior.argmax(axis=1) == world.final_group).mean() > 0.98


# ---- knobs on training rows


def test_mislabelled_rows_are_marked_and_the_rest_follows_the_rules():
    world = make_world(replace(BIG, mislabelled=0.3))
    train = world.rows("train")
    assert within(train.mislabelled.mean(), 0.3, len(train.target))
    for split in ("valid", "test"):
        assert not world.rows(split).mislabelled.any()
    last = np.array([history[-1] for history in train.histories])
    followed = train.target // 6 == world.rules.next_category[0, last // 6]
    assert within(followed[~train.mislabelled].mean(), 0.8, (~train.mislabelled).sum())
    assert within(followed[train.mislabelled].mean(), 1 / 5, train.mislabelled.sum())
    counts = np.bincount(train.target[train.mislabelled], minlength=30)
    assert all(within(count / counts.sum(), 1 / 30, counts.sum()) for count in counts)


def test_judged_targets_follow_the_rules_however_many_training_rows_are_mislabelled():
    for split in ("valid", "test"):
        world = make_world(replace(BIG, mislabelled=1.0))
        rows = world.rows(split)
        last = np.array([history[-1] for history in rows.histories])
        followed = rows.target // 6 == world.rules.next_category[0, last // 6]
        assert within(followed.mean(), 0.8, len(followed))


def test_a_redundant_user_repeats_training_rows_and_is_judged_on_its_own_targets():
    world = make_world(replace(BIG, redundant=0.25, mislabelled=0.1, n_groups=2))
    copies = np.flatnonzero(world.copy_of >= 0)
    assert len(copies) == 1000
    assert (world.copy_of[world.copy_of[copies]] == -1).all()
    same = []
    for copy in copies:
        own, other = world.sequences[copy], world.sequences[world.copy_of[copy]]
        np.testing.assert_array_equal(own[:-2], other[:-2])
        np.testing.assert_array_equal(world.mislabelled[copy], world.mislabelled[world.copy_of[copy]])
        assert world.group[copy] == world.group[world.copy_of[copy]]
        same.append(own[-1] == other[-1])
    assert np.mean(same) < 0.3
    train = world.rows("train")
    np.testing.assert_array_equal(train.redundant, np.isin(train.user, copies))
    assert not world.rows("valid").redundant.any() and not world.rows("test").redundant.any()


@pytest.mark.parametrize("n_groups, shift, last_group", [(2, 0.0, 0), (2, 0.3, 0), (4, 0.5, 0), (3, 0.5, 0.1)])
def test_the_shift_is_as_large_as_stated(n_groups, shift, last_group):
    world = make_world(replace(BIG, n_groups=n_groups, shift=shift, last_group=last_group))
    shares = {split: planted.group_shares(world, split) for split in ("train", "valid", "test")}
    np.testing.assert_array_equal(shares["valid"], shares["test"])
    assert shares["valid"][-1] - shares["train"][-1] == pytest.approx(shift, abs=0.01)
    assert (world.final_group == world.group).all() == (shift == 0)


def test_the_last_three_interactions_follow_the_final_group():
    world = make_world(replace(BIG, n_groups=2, shift=0.3, p_category=1.0))
    moved = np.flatnonzero(world.final_group != world.group)
    assert len(moved) > 100 and (world.final_group[moved] == 1).all()
    for user in moved:
        steps = world.sequences[user] // 6
        rule = np.array([world.group[user]] * (len(steps) - 4) + [1] * 3)
        np.testing.assert_array_equal(steps[1:], world.rules.next_category[rule, steps[:-1]])


def test_by_default_nothing_is_spoiled():
    world = make_world(SMALL)
    assert not any(marks.any() for marks in world.mislabelled)
    assert (world.copy_of == -1).all() and not world.group.any() and not world.final_group.any()


# ---- the oracle


def mechanisms(rules: Rules, group: int, last: int) -> dict[int, float]:
    """Next-item probabilities of one group, summed over the ways in which an item can be drawn."""
    knobs, chances = rules.settings, dict.fromkeys(range(rules.settings.n_items), 0.0)
    size = knobs.items_per_category
    rule = int(rules.next_category[group, last // size])
    for category in range(knobs.n_categories):
        taken = knobs.p_category if category == rule else (1 - knobs.p_category) / (knobs.n_categories - 1)
        popular = taken * ((1 - knobs.p_item) if category == rule else 1)
        for item in range(category * size, (category + 1) * size):
            chances[item] += popular * popularity_within(rules, group, item)
        if category == rule:
            chances[category * size + int(rules.next_position[last % size])] += taken * knobs.p_item
    return chances


def popularity_within(rules: Rules, group: int, item: int) -> float:
    """Share of an item in the popularity of its category, as the group sees it."""
    size = rules.settings.items_per_category

    def weight(other: int) -> float:
        shown = {"item": rules.brand[other], "id": other % size}.get(rules.settings.group_visible, -1)
        preferred = shown >= 0 and shown % rules.settings.n_groups == group
        return rules.popularity[other % size] * (planted.BRAND_PREFERENCE if preferred else 1)

    start = item // size * size
    return weight(item) / sum(weight(other) for other in range(start, start + size))


def brute_force(world: World, history: list[int], split: str, known: int | None = None) -> np.ndarray:
    """P(next item | history) as a ratio of sums over group, joining, and mislabelling of every training target."""
    knobs, rules, joint = world.settings, world.rules, np.zeros(world.settings.n_items)
    length = len(history) + (2 if split == "valid" else 1)  # of the user's whole sequence
    n_groups = knobs.n_groups
    mean_rows = (knobs.min_length + knobs.max_length) / 2 - 3
    last = knobs.last_group or 1 / n_groups
    joins = knobs.shift / ((1 - last) * (1 - 1 / mean_rows)) if knobs.shift else 0.0
    training = range(1, length - 2)
    for group, joined in itertools.product(range(n_groups), (False, True)):
        if group == n_groups - 1 and joined:
            continue
        final = n_groups - 1 if joined else group
        if known is not None and final != known:
            continue
        prior = 1 if group == n_groups - 1 else joins if joined else 1 - joins
        prior *= last if group == n_groups - 1 else (1 - last) / (n_groups - 1) if n_groups > 1 else 1
        for noisy in itertools.product((False, True), repeat=len(training)):
            marks = dict(zip(training, noisy, strict=True))
            chance = prior * popularity_within(rules, group, history[0]) / knobs.n_categories
            for t in range(1, len(history)):
                if t in marks:
                    chance *= knobs.mislabelled if marks[t] else 1 - knobs.mislabelled
                now = final if t >= length - 3 else group
                uniform = 1 / knobs.n_items
                chance *= uniform if marks.get(t) else mechanisms(rules, now, history[t - 1])[history[t]]
            following = mechanisms(rules, final, history[-1])
            joint += [chance * following[item] for item in range(knobs.n_items)]
    return joint / joint.sum()


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"p_category": 1.0, "p_item": 0.0},
        {"n_groups": 2},
        {"n_groups": 3, "mislabelled": 0.3},
        {"n_groups": 2, "mislabelled": 0.2, "shift": 0.1, "redundant": 0.3},
        {"n_groups": 3, "group_visible": "item", "shift": 0.2},
        {"n_groups": 2, "last_group": 0.1, "shift": 0.3},
        {"n_groups": 2, "group_visible": "id"},
    ],
)
def test_the_oracle_equals_brute_force(knobs, split):
    world = make_world(replace(TINY, **knobs))
    rows = world.rows(split)
    found = oracle_scores(world, rows.histories, split=split)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)
    wanted = [brute_force(world, history.tolist(), split) for history in rows.histories]
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_the_oracle_that_is_told_the_groups_equals_brute_force():
    world = make_world(replace(TINY, n_groups=2, shift=0.1, group_visible="item", mislabelled=0.2))
    rows = world.rows("test")
    found = oracle_scores(world, rows.histories, rows.user)
    groups = world.final_group[rows.user].tolist()
    wanted = [brute_force(world, h.tolist(), "test", g) for h, g in zip(rows.histories, groups, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_the_oracle_is_calibrated():
    world = make_world(replace(BIG, **TWO_GROUPS, mislabelled=0.3, shift=0.2))
    judged = planted.oracle_metrics(world, topk=(1, 3, 10))
    for k in (1, 3, 10):
        assert within(judged.metrics[f"hit@{k}"], judged.expected[f"hit@{k}"], BIG.n_users)


def test_an_impossible_history_is_refused():
    world = make_world(replace(TINY, p_category=1.0, n_groups=2))
    with pytest.raises(ValueError, match="cannot happen"):
        oracle_scores(world, [np.array([0, 0, 0, 0])])


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_nothing_beats_the_oracle_in_expectation(seed):
    world = make_world(replace(SMALL, n_groups=2, mislabelled=0.1, shift=0.1, seed=seed))
    rows = world.rows("test")
    best = oracle_scores(world, rows.histories)
    rng = np.random.default_rng(seed)
    rivals = {
        "popularity": planted.popularity_scores(world),
        "permuted popularity": rng.permutation(planted.popularity_scores(world)),
        "category": planted.category_scores(world, rows.histories),
        "blind": planted.blind_scores(world, rows.histories),
        "permuted items": best[:, rng.permutation(best.shape[1])],
        "permuted rows": best[rng.permutation(len(best))],
        "noisy": best * rng.uniform(0.5, 1.5, best.shape),
    }
    reached = judge(world, best).expected
    for scores in rivals.values():
        for metric, value in judge(world, scores).expected.items():
            assert value <= reached[metric] + 1e-12


def test_what_each_ranker_knows_shows_in_its_metrics():
    world = make_world(PlantedSettings(n_groups=4))
    rows = world.rows("test")
    rankers = [
        planted.popularity_scores(world),
        planted.blind_scores(world, rows.histories),
        planted.category_scores(world, rows.histories),
        oracle_scores(world, rows.histories),
    ]
    reached = [judge(world, scores).expected["ndcg@10"] for scores in rankers]
    assert reached == sorted(reached) and min(np.diff(reached)) > 0.02


def test_judging_follows_its_definitions():
    world = make_world(SMALL)
    rows, ids = world.rows("valid"), world.recbole_ids
    scores = np.random.default_rng(0).integers(0, 4, (40, 20)).astype(float)  # many ties
    judged = judge(world, scores, topk=(3,), split="valid")
    truth = oracle_scores(world, rows.histories, split="valid")
    expected = 0.0
    for row, target in enumerate(rows.target):
        order = sorted(range(20), key=lambda item: (-scores[row, item], ids[item]))
        assert judged.ranks[row] == order.index(target)
        expected += sum(truth[row, item] / np.log2(place + 2) for place, item in enumerate(order[:3])) / 40
    assert judged.expected["ndcg@3"] == pytest.approx(expected)
    assert judged.metrics["ndcg@3"] == pytest.approx(ndcg_at(judged.ranks, 3).mean())


# ---- RecBole


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory) -> tuple[World, Path]:
    world = make_world(replace(SMALL, **SPOILED))
    return world, planted.write_world(world, tmp_path_factory.mktemp("worlds"))


def test_rows_and_ids_are_those_of_the_command(spoiled):
    world, folder = spoiled
    loaded = load_rows(Config("SASRec", "planted", config_dict={"data_path": str(folder.parent)}), few_shot=False)
    for split in ("train", "valid", "test"):
        rows = world.rows(split)
        pairs = np.stack([rows.user + 1, world.recbole_ids[rows.target]], axis=1)
        np.testing.assert_array_equal(row_pairs(getattr(loaded, split)), pairs)
        items, lengths = row_histories(getattr(loaded, split))
        for found, length, history in zip(items, lengths, rows.histories, strict=True):
            np.testing.assert_array_equal(found[:length], world.recbole_ids[history])


def test_the_command_runs_on_it_and_judges_pop_as_we_do(spoiled, tmp_path):
    world, folder = spoiled
    finished = run("Pop", folder, tmp_path / "saved")
    assert finished.status == 0
    wanted = judge(world, planted.popularity_scores(world), topk=(1, 5, 10)).metrics
    found = finished.result("Pop").test
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-12)


# ---- settings and command


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n_users": 0}, "n_users is 0; give an integer"),
        ({"n_users": 10.0}, "n_users is 10.0; give an integer"),
        ({"n_categories": 1}, "n_categories is 1; give an integer, 2 to 24"),
        ({"n_brands": 100}, "n_brands is 100"),
        ({"p_category": 1.1}, "p_category is 1.1; give a number, 0 to 1"),
        ({"p_item": float("nan")}, "p_item is nan"),
        ({"mislabelled": -0.1}, "mislabelled is -0.1"),
        ({"redundant": True}, "redundant is True"),
        ({"group_visible": "always"}, "group_visible is 'always'; give one of history, item, id"),
        ({"min_length": 3}, "min_length is 3"),
        ({"min_length": 12}, "min_length 12 exceeds max_length 11"),
        ({"n_groups": 9}, "n_groups 9 exceeds n_categories 8"),
        ({"n_groups": 5, "group_visible": "item"}, "n_brands 4 is less than n_groups 5"),
        (
            {"n_groups": 5, "items_per_category": 4, "group_visible": "id"},
            "items_per_category 4 is less than n_groups 5",
        ),
        ({"shift": 0.1}, "shift 0.1 exceeds 0, the most that n_groups 1"),
        ({"last_group": 0.1}, "last_group 0.1 is a share of one group"),
        ({"n_groups": 2, "shift": 0.5}, r"shift 0.5 exceeds 0.4231, .* lengths 8 to 11 allow"),
        ({"n_groups": 2, "shift": 0.1, "min_length": 4, "max_length": 4}, "shift 0.1 exceeds 0"),
    ],
)
def test_bad_settings_give_one_line(change, message):
    with refused("", "value", message) as raised:
        PlantedSettings(**change)
    assert "\n" not in str(raised.value)


def test_somebody_must_be_left_to_repeat():
    with refused("", "value", "redundant 0.9 of 4 users leaves nobody"):
        make_world(PlantedSettings(n_users=4, redundant=0.9))


def test_the_command_writes_a_world_and_says_what_can_be_reached(tmp_path):
    words = ["--n_users=40", "--n_categories=4", "--items_per_category=5", "--n_groups=2", "--mislabelled=.5"]
    done = fresh_python("-m", "benchmarks.planted", f"--out={tmp_path}", *words)
    assert "40 users, 20 items" in done.stdout
    world = make_world(replace(SMALL, n_groups=2, mislabelled=0.5))
    assert f"{planted.oracle_metrics(world).expected['ndcg@10']:.4f}" in done.stdout
    assert planted.read_world(tmp_path / "planted").settings == world.settings


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    assert planted.main([f"--out={tmp_path}", "--p_item=2"]) == 2
    assert capsys.readouterr().err == "error: p_item is 2.0; give a number, 0 to 1\n"
    assert not list(tmp_path.iterdir())


def test_worlds_of_one_items_seed_have_the_same_titles_and_other_rules_and_users():
    first, second = (make_world(replace(SMALL, seed=seed, items_seed=7)) for seed in (1, 2))
    assert first.rules.titles == second.rules.titles
    np.testing.assert_array_equal(first.rules.popularity, second.rules.popularity)
    assert not np.array_equal(first.rules.next_category, second.rules.next_category)
    assert not all(map(np.array_equal, first.sequences, second.sequences))
    own = make_world(replace(SMALL, seed=7)).rules.titles  # by default the seed of everything is that of the items
    assert own == first.rules.titles != make_world(replace(SMALL, seed=8)).rules.titles
