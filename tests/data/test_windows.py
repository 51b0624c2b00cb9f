"""Full windows and one cut in time: the arithmetic, and the rows of a data set against the raw file."""

from __future__ import annotations

import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.data.loaders import eval_loader, train_loader
from recbole_llm.data.rows import Rows, load_rows, row_histories, row_pairs, rows_digest
from recbole_llm.data.windows import is_full_window, temporal_cuts
from recbole_llm.settings.config import Config
from tests.processes import forked_python
from tests.refusals import refused

ONE_CUT = {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "none", "order": "TO"}
SOON = 1_549_866_158_000  # milliseconds; single precision does not tell apart what is within a minute

Event = tuple[str, str, int]  # user, item, time
Window = tuple[str, tuple[str, ...], str]  # user, history, target


# --------------------------------------------------------------------------------------------------- the arithmetic


@given(n=st.integers(0, 60), longest=st.integers(1, 12))
def test_windows_slide_by_one(n, longest):
    sequence = range(n)
    width = longest + 1
    by_hand = [sequence[start : start + width] for start in range(n - width + 1)] if n > width else [sequence]
    by_hand = [window for window in by_hand if len(window) > 1]
    # Among RecBole's prefixes: those that end a window.
    histories = np.minimum(np.arange(1, n), longest)
    full = is_full_window(np.full(len(histories), 7), histories, longest)
    assert [(end - size, end + 1) for end, size in zip(np.flatnonzero(full) + 1, histories[full], strict=True)] == [
        (window[0], window[-1] + 1) for window in by_hand
    ]


def test_full_windows_of_several_users():
    users = np.array([3, 3, 3, 1, 2, 2])
    histories = np.array([1, 2, 2, 1, 1, 2])
    assert is_full_window(users, histories, 2).tolist() == [False, True, True, True, False, True]
    assert is_full_window(users[:0], histories[:0], 2).tolist() == []


@pytest.mark.parametrize(("n", "sizes"), [(23, [18, 2, 3]), (10, [8, 1, 1]), (0, [0, 0, 0]), (1, [0, 0, 1])])
def test_cuts_at_the_floor_of_the_cumulative_share(n, sizes):
    ends = temporal_cuts(n, [0.8, 0.1, 0.1])
    assert np.diff([0, *ends]).tolist() == sizes
    assert temporal_cuts(n, [8, 1, 1]) == ends


@given(n=st.integers(0, 10**7), shares=st.lists(st.integers(0, 100), min_size=3, max_size=3).filter(any))
def test_cuts_are_exact_for_any_shares(n, shares):
    total = sum(shares)
    expected = [n * sum(shares[: part + 1]) // total for part in range(3)]
    assert temporal_cuts(n, shares) == expected
    assert temporal_cuts(n, [float(Decimal(share) / 1000) for share in shares]) == expected  # 0.3 is three tenths


# ------------------------------------------------------------------------------------------------- rows of a data set


def write_events(folder: Path, events: list[Event]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, event)) for event in events)]
    (folder / f"{folder.name}.inter").write_text("\n".join(lines) + "\n")
    items = sorted({item for _, item, _ in events})
    lines = ["item_id:token\ttitle:token", *(f"{item}\tTitle {item}" for item in items)]
    (folder / f"{folder.name}.item").write_text("\n".join(lines) + "\n")
    return folder


def make_events(seed: int, step: int = 7_000) -> list[Event]:
    """Users who come and go, 1 to 12 interactions each, in a file without order; many times are equal."""
    rng = np.random.default_rng(seed)
    events = []
    for user in range(24):
        start = rng.integers(0, 60)
        for _ in range(rng.integers(1, 13)):
            events.append((f"u{user}", f"i{rng.integers(0, 15)}", SOON + step * int(start + rng.integers(0, 12))))
    return [events[place] for place in rng.permutation(len(events))]


def by_hand(events: list[Event], longest: int) -> list[Window]:
    """All full windows in the order of their targets' times, equal times as in the file."""
    in_time = sorted(events, key=lambda event: event[2])
    own: dict[str, list[tuple[int, str]]] = {}
    for place, (user, item, _) in enumerate(in_time):
        own.setdefault(user, []).append((place, item))
    windows = []
    for user, sequence in own.items():
        width = longest + 1
        starts = range(len(sequence) - width + 1) if len(sequence) > width else [0]
        for window in (sequence[start : start + width] for start in starts):
            if len(window) > 1:
                *history, (place, target) = window
                windows.append((place, (user, tuple(item for _, item in history), target)))
    return [window for _, window in sorted(windows)]


def cut(windows: list[Window]) -> list[list[Window]]:
    ends = [0, len(windows) * 8 // 10, len(windows) * 9 // 10, len(windows)]
    return [windows[start:end] for start, end in zip(ends, ends[1:], strict=False)]


def load(folder: Path, model: str, few_shot: bool = False, **settings: Any) -> Rows:
    return load_rows(config_of(folder, model, **settings), few_shot)


def config_of(folder: Path, model: str, **settings: Any) -> Config:
    given = {"windows": "full", "eval_args": ONE_CUT, "MAX_ITEM_LIST_LENGTH": 4, "data_path": str(folder.parent)}
    return Config(model, folder.name, config_dict={**given, **settings})


def described(rows: Rows, part: Any) -> list[Window]:
    """The rows in their order, in the file's names."""
    users, names = rows.whole.field2id_token["user_id"], rows.whole.field2id_token["item_id"]
    items, lengths = row_histories(part)
    histories = [tuple(names[item] for item in line[:n]) for line, n in zip(items, lengths, strict=True)]
    pairs = zip(row_pairs(part), histories, strict=True)
    return [(users[user], history, names[target]) for (user, target), history in pairs]


def learned(rows: Rows) -> list[tuple[str, str]]:
    users, names = rows.whole.field2id_token["user_id"], rows.whole.field2id_token["item_id"]
    return sorted((users[user], names[item]) for user, item in row_pairs(rows.train))


def told_by(windows: list[Window], events: list[Event]) -> list[tuple[str, str]]:
    """The interactions that windows tell of, each once: a user's first ones, up to the last target."""
    own: dict[str, list[str]] = {}
    for user, item, _ in sorted(events, key=lambda event: event[2]):
        own.setdefault(user, []).append(item)
    told = []
    for user, sequence in own.items():
        mine = [window for window in windows if window[0] == user]
        n_told = len(mine[0][1]) + len(mine) if mine else 0  # a whole first window, and one more for each further one
        told += [(user, item) for item in sequence[:n_told]]
    return sorted(told)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return write_events(tmp_path / "world", make_events(0))


@pytest.mark.parametrize("model", ["SASRec", "BIGRec", "DIEN"])
@pytest.mark.parametrize("seed", [0, 1])
def test_rows_are_the_windows_of_the_file(tmp_path, model, seed):
    events = make_events(seed)
    folder = write_events(tmp_path / "world", events)
    if model == "DIEN":  # its data set adds to RecBole's rows; it predicts clicks, so the class is tried on its own
        from recbole.data.dataset import DIENDataset

        from recbole_llm.data.windows import with_full_windows

        config = config_of(folder, "SASRec")
        parts = with_full_windows(DIENDataset)(config).build()
        rows = Rows(*parts, parts[0])
        assert "neg_item_id_list" in parts[0].inter_feat
    else:
        rows = load(folder, model)
    parts = cut(by_hand(events, 4))
    assert all(parts)
    assert [described(rows, part) for part in (rows.train, rows.valid, rows.test)] == parts


SPLITS = [
    ONE_CUT,
    {},
    {"split": {"RS": [0.5, 0.2, 0.3]}},
    {"split": {"TS": [0.6, 0.2, 0.2]}},
]


@pytest.mark.parametrize("model", ["Pop", "BPR", "BIGRec"])
@pytest.mark.parametrize("eval_args", SPLITS)
def test_every_model_is_judged_on_the_same_rows(tmp_path, model, eval_args):
    folder = write_events(tmp_path / "world", make_events(0, step=300_000))
    assert (
        load(folder, model, eval_args=eval_args).evaluated() == load(folder, "SASRec", eval_args=eval_args).evaluated()
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_general_model_learns_what_training_windows_tell_of(tmp_path, seed):
    events = make_events(seed)
    folder = write_events(tmp_path / "world", events)
    assert learned(load(folder, "Pop")) == told_by(cut(by_hand(events, 4))[0], events)


@pytest.mark.parametrize("settings", [{"windows": "full"}, {"windows": "all"}])
@pytest.mark.parametrize("model", ["Pop", "BPR", "SASRec", "BIGRec"])
def test_nothing_after_the_cut_is_learned(tmp_path, settings, model):
    # Items are named by the minute in which they are had, and minutes are two float steps apart.
    events = [(user, f"m{(time - SOON) // 300_000:03}", time) for user, _, time in make_events(3, step=300_000)]
    folder = write_events(tmp_path / "world", events)
    rows = load(folder, model, **settings)
    if model in ("SASRec", "BIGRec"):
        seen = {item for _, history, target in described(rows, rows.train) for item in (*history, target)}
    else:
        seen = {item for _, item in learned(rows)}
    sequential = load(folder, "SASRec", **settings)
    last = max(target for _, _, target in described(sequential, sequential.train))
    first_judged = min(target for _, _, target in described(sequential, sequential.valid))
    assert max(seen) == last <= first_judged
    late = {user for user in {user for user, _, _ in events} if min(e[1] for e in events if e[0] == user) > last}
    assert late  # users who come after the cut, whose first interaction is nobody's target
    assert not late & {user for user, _ in learned(rows)}


def test_leave_one_out_of_full_windows(tmp_path):
    events = make_events(2)
    world = write_events(tmp_path / "world", events)
    expected: dict[str, list[Window]] = {"train": [], "valid": [], "test": []}
    for user in {user for user, _, _ in events}:
        own = [window for window in by_hand(events, 4) if window[0] == user]
        for part in ("test", "valid"):
            expected[part] += [own.pop()] if len(own) > 1 else []  # one row at least is for training
        expected["train"] += own
    rows = load(world, "SASRec", eval_args={})
    assert {part: sorted(described(rows, getattr(rows, part))) for part in expected} == {
        part: sorted(windows) for part, windows in expected.items()
    }
    single = [(user, item) for user, item, _ in events if sum(event[0] == user for event in events) == 1]
    assert single and learned(load(world, "Pop", eval_args={})) == sorted(told_by(expected["train"], events) + single)


def test_a_history_is_as_long_as_the_setting_says(world):
    for longest in (1, 3, 50):
        rows = load(world, "SASRec", MAX_ITEM_LIST_LENGTH=longest)
        parts = [described(rows, part) for part in (rows.train, rows.valid, rows.test)]
        assert parts == cut(by_hand(make_events(0), longest))


def test_all_windows_stay_recboles_rows(world):
    rows = load(world, "SASRec", windows="all")
    n_events = {user: sum(event[0] == user for event in make_events(0)) for user, _, _ in make_events(0)}
    n_rows = sum(n - 1 for n in n_events.values())
    n_valid, n_test = int(0.1 * n_rows), int(0.1 * n_rows)
    assert [len(rows.train), len(rows.valid), len(rows.test)] == [n_rows - n_valid - n_test, n_valid, n_test]


def test_samples_come_from_full_windows(world):
    sizes = {"train_sample_size": 9, "valid_sample_size": 3, "test_sample_size": 2}
    rows, everything = load(world, "BIGRec", few_shot=True, **sizes), cut(by_hand(make_events(0), 4))
    assert [len(rows.train), len(rows.valid), len(rows.test)] == [9, 3, 2]
    for part, windows in zip((rows.train, rows.valid, rows.test), everything, strict=True):
        assert set(described(rows, part)) <= set(windows)
    told = {(user, item) for user, past, target in described(rows, rows.train) for item in (*past, target)}
    assert learned(load(world, "Pop", few_shot=True, **sizes)) == sorted(told)


@pytest.mark.parametrize("model", ["Pop", "SASRec"])
def test_the_loaders_take_them(world, model):
    config = config_of(world, model)
    rows = load_rows(config, False)
    assert sum(len(batch) for batch in train_loader(config, rows)) == len(rows.train)
    for phase in ("valid", "test"):
        assert sum(len(batch[0]) for batch in eval_loader(config, rows, phase)) == len(getattr(rows, phase))


def test_sampled_candidates_stay_refused(world):
    config = config_of(world, "SASRec", eval_args={**ONE_CUT, "mode": "uni3"}, MAX_ITEM_LIST_LENGTH=1)
    with refused("eval_args", "conflict"):
        eval_loader(config, load_rows(config, False), "test")


def test_benchmark_files_have_rows_already(world):
    for part in ("train", "valid", "test"):
        (world / f"world.{part}.inter").write_text("user_id:token\titem_id_list:token_seq\titem_id:token\nu1\ti1\ti2\n")
    with refused("windows", "conflict"):
        load(world, "SASRec", benchmark_filename=["train", "valid", "test"], alias_of_item_id=["item_id_list"])


def test_a_saved_data_set_is_read_in_a_new_process(world, tmp_path):
    rows = load(world, "SASRec", save_dataset=True, checkpoint_dir=str(tmp_path / "saved"))
    (file,) = (tmp_path / "saved").glob("*.pth")
    code = "import pickle, sys; print(*map(len, pickle.load(open(sys.argv[1], 'rb')).build()))"
    finished = forked_python(code, file)
    assert finished.stdout.split() == [str(len(part)) for part in (rows.train, rows.valid, rows.test)]
    again = pickle.loads(pickle.dumps(rows.train))
    assert type(again) is type(rows.train) and rows_digest(again) == rows_digest(rows.train)
