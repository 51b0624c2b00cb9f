"""What an import leaves out: against plain Python over the same interactions, and every line accounted for."""

from __future__ import annotations

from collections import Counter
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.data.importers.clock import seconds_per_unit
from recbole_llm.data.importers.importing import import_dataset
from recbole_llm.data.importers.plan import Choices
from recbole_llm.data.importers.steps import Filters
from tests.data.importers.public import atomic, text
from tests.refusals import refused

Row = tuple[str, str, int, int]
events = st.tuples(st.sampled_from("abcd"), st.sampled_from("wxyz"), st.integers(1, 3), st.integers(0, 9))


def imported(folder: Path, rows: list[Row], titled: str = "wxyz", **filters: Any) -> list[Row]:
    lines = [f"{user},{item},{rating},{time},{item if item in titled else ''}" for user, item, rating, time in rows]
    file = text(folder, "mine.csv", "\n".join(["user,item,rating,time,title", *lines]) + "\n")
    out = import_dataset(file, "t", folder / "out", filters=Filters(**filters), overwrite=True, progress=False)
    return [(user, item, round(float(rating)), int(time)) for user, item, rating, time in atomic(out, "inter")[1]]


def by_hand(
    rows: list[Row], titled: str = "wxyz", since: int = 0, until: int = 99, repeats: str = "keep", k_core: int = 1
) -> list[Row]:
    """The same, one interaction at a time."""
    kept = [row for row in sorted(rows, key=lambda row: row[3]) if since <= row[3] < until]
    kept = list(dict.fromkeys(kept))
    if repeats != "keep":
        ordered = kept if repeats == "first" else kept[::-1]
        chosen = {row[:2]: place for place, row in reversed(list(enumerate(ordered)))}
        kept = [row for place, row in enumerate(ordered) if chosen[row[:2]] == place]
        kept = kept if repeats == "first" else kept[::-1]
    kept = [row for row in kept if row[1] in titled]
    while True:
        counts = Counter(user for user, *_ in kept), Counter(item for _, item, *_ in kept)
        remain = [row for row in kept if counts[0][row[0]] >= k_core and counts[1][row[1]] >= k_core]
        if remain == kept:
            return kept
        kept = remain


@given(
    st.lists(events, min_size=1, max_size=30),
    st.sampled_from(["wxyz", "wx", "w"]),
    st.integers(0, 4),
    st.integers(5, 10),
    st.sampled_from(["keep", "first", "last"]),
    st.integers(1, 3),
)
@settings(max_examples=50)
def test_filters_are_those_of_plain_python(tmp_path_factory, rows, titled, since, until, repeats, k_core):
    options = {"repeats": repeats, "k_core": k_core}
    wanted = by_hand(rows, titled, since, until, **options)
    folder = tmp_path_factory.mktemp("steps")
    bounds = {"since": str(since), "until": str(until)}
    if not wanted:
        with refused("", "data", "no interaction is left|no item that is in the interactions"):
            imported(folder, rows, titled, **bounds, **options)
        return
    assert imported(folder, rows, titled, **bounds, **options) == wanted


def test_every_interaction_is_accounted_for(tmp_path, caplog):
    rows = [("a", "w", 1, 5), ("a", "w", 1, 5), ("a", "w", 2, 6), ("b", "z", 1, 7), ("b", "x", 1, 1), ("a", "x", 1, 8)]
    with caplog.at_level("INFO"):
        kept = imported(tmp_path, rows, "wx", since="2", repeats="last", k_core=1)
    assert kept == [("a", "w", 2, 6), ("a", "x", 1, 8)]
    assert [line for line in caplog.messages if line.startswith(("left out", "mine.csv"))] == [
        "mine.csv: 6 lines, 6 interactions",
        "left out: 1 before 2",
        "left out: 1 exact repeats",
        "left out: 1 not the last of a user and an item",
        "left out: 1 with an item without a title",
    ]


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_bounds_are_dates_in_the_unit_of_the_file(tmp_path, unit):
    days = [int(datetime(2020, 1, day, tzinfo=timezone.utc).timestamp()) * unit for day in (1, 2, 3)]
    rows = [("a", "w", 1, time) for time in days]
    kept = imported(tmp_path, rows, since="2020-01-02", until="2020-01-03")
    assert [row[3] for row in kept] == [days[1]]


DAYS = ["2022-05-05", "2023-06-01", "2024-01-01"]


def of_days(folder: Path, **filters: Any) -> list[str]:
    """The items of three days that stay, which are called like the days."""
    file = text(folder, "days.csv", "user,item,time\n" + "".join(f"u,{day},{day}\n" for day in DAYS))
    out = import_dataset(file, "t", folder / "out", filters=Filters(**filters), overwrite=True, progress=False)
    return [row[1] for row in atomic(out, "inter")[1]]


@pytest.mark.parametrize(
    "bound", ["2023-06-01", "2023", "20230601", "2023-06", 2023, 20230601, date(2023, 6, 1), datetime(2023, 6, 1)]
)
def test_where_times_are_dates_so_are_bounds(tmp_path, bound):
    assert of_days(tmp_path, since=bound) == DAYS[1:]
    assert of_days(tmp_path, until=bound) == DAYS[:1]


@pytest.mark.parametrize(
    ("bound", "kind", "words"),
    [
        ("1600000000", "conflict", "the times are dates, '1600000000' is a number; give a date like 2019-01-31"),
        (2023.5, "conflict", "the times are dates, '2023.5' is a number"),
        ("20231301", "value", "'20231301' is no time"),
        ("9999-12-31", "value", "'9999-12-31' is out of range; give a date from 1678 to 2261"),
        ("99991231", "value", "is out of range"),
        ("3000", "value", "is out of range"),
    ],
)
def test_bounds_that_no_date_can_be_compared_with(tmp_path, bound, kind, words):
    with refused("until", kind, words):
        of_days(tmp_path, until=bound)


def test_a_bound_that_leaves_nothing_out_is_told(tmp_path, caplog):
    rows = [("a", "w", 1, 1_600_000_000), ("a", "x", 1, 1_700_000_000)]
    with caplog.at_level("INFO"):
        assert imported(tmp_path, rows, since="2024") == rows
        assert imported(tmp_path, rows, until=1.8e9) == rows
        assert imported(tmp_path, rows, since=1_650_000_000) == rows[1:]
    assert [line for line in caplog.messages if "leaves out nothing" in line] == [
        "--since=2024 leaves out nothing: the earliest time is 1600000000",
        "--until=1800000000.0 leaves out nothing: the latest time is 1700000000",
    ]


@pytest.mark.parametrize("n_items", [2, 3])
def test_a_data_set_that_no_run_can_use_is_told(tmp_path, caplog, n_items):
    lines = "".join(f"u{user},i{item},{item}\n" for user in range(4) for item in range(n_items))
    import_dataset(text(tmp_path, "mine.csv", f"user,item,time\n{lines}"), "t", tmp_path / "out", progress=False)
    assert ("no user has 3 interactions" in caplog.text) == (n_items < 3)


def test_untitled_items_may_stay(tmp_path):
    rows = [("a", "w", 1, 1), ("a", "z", 1, 2)]
    assert imported(tmp_path, rows, "w") == rows[:1]
    assert imported(tmp_path, rows, "w", untitled="keep") == rows
    assert atomic(tmp_path / "out" / "t", "item")[1] == [["w", "w"], ["z", ""]]


def test_users_are_drawn_whole_by_a_seed(tmp_path):
    rows = [(user, item, 1, time) for user in "abcd" for time, item in enumerate("wxyz")]
    drawn = {}
    for size in (2, 0.5, 1000):
        for seed in range(6):
            found = imported(tmp_path, rows, sample_users=size, seed=seed)
            assert Counter(user for user, *_ in found) == dict.fromkeys({user for user, *_ in found}, 4)
            drawn[size, seed] = frozenset(user for user, *_ in found)
    assert {len(users) for (size, _), users in drawn.items() if size != 1000} == {2}
    assert all(drawn[2, seed] == drawn[0.5, seed] for seed in range(6)) and len(set(drawn.values())) > 3
    assert drawn[1000, 0] == set("abcd")
    backwards = imported(tmp_path, rows[::-1], sample_users=2, seed=3)
    assert {user for user, *_ in backwards} == drawn[2, 3]  # the order of the file has no part in it


@pytest.mark.parametrize(
    ("options", "message", "key"),
    [
        ({"repeats": "none"}, "repeats: 'none' is not allowed; choose one of keep, first, last", "repeats"),
        ({"untitled": "maybe"}, "untitled: 'maybe' is not allowed", "untitled"),
        ({"k_core": "5"}, "k_core: '5' is not allowed; give an integer >= 1", "k_core"),
        ({"k_core": 2.5}, "k_core: 2.5 is not allowed; give an integer >= 1", "k_core"),
        ({"seed": "1"}, "seed: '1' is not allowed; give an integer >= 0", "seed"),
        ({"sample_users": "0.1"}, "sample_users: '0.1' is text; give a share such as 0.1", "sample_users"),
        ({"since": ["2019"]}, "since: \\['2019'\\] is no time; give a date like '2019-01-31'", "since"),
        ({"k_core": 0}, "k_core: 0 is not allowed; give an integer >= 1", "k_core"),
        ({"sample_users": 0}, "sample_users: 0 is not allowed", "sample_users"),
        (
            {"sample_users": 1.5},
            "sample_users: 1.5 is not allowed; give a share such as 0.1 or a number of users",
            "sample_users",
        ),
        ({"since": "yesterday"}, "since: 'yesterday' is no time; give a date like 2019-01-31", "since"),
    ],
)
def test_bad_filters_are_named(tmp_path, options, message, key):
    with refused(key, "value", message):
        imported(tmp_path, [("a", "w", 1, 1)], **options)


def test_without_times_there_is_no_range_and_no_exact_repeat(tmp_path):
    file = text(tmp_path, "mine.csv", "user,item,title\na,w,W\na,w,W\n")
    choices = Choices({"time": "order"})
    out = import_dataset(file, "t", tmp_path / "out", choices=choices, overwrite=True, progress=False)
    assert len(atomic(out, "inter")[1]) == 2
    with refused("since", "conflict", "since: the files have no times"):
        import_dataset(file, "u", tmp_path / "out", choices=choices, filters=Filters(since="1"), progress=False)


@pytest.mark.parametrize("year", [1990, 2020])
@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e-6, 1e-9])
def test_the_unit_of_times_is_told_by_their_size(year, unit):
    assert seconds_per_unit(np.array([(year - 1970) * 365 * 86400 / unit])) == unit


@pytest.mark.parametrize("filters", [{"sample_users": float("inf")}, {"sample_users": float("nan")}, {"seed": -1}])
def test_numbers_that_draw_nothing_are_refused(filters):
    (key,) = filters
    with refused(key, "value", "is not allowed; give "):
        Filters(**filters)
