"""Finished batches are not computed again, whatever was killed when; others' batches and torn lines do not count."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_llm.kept import KeptRows
from recbole_llm.stages import StageStore
from tests.stages import run_stage

BATCHES = [[3, 0], [1], [4, 2]]


class Computation:
    """What rows give, and which were asked for."""

    def __init__(self, dies_at: int = 99) -> None:
        self.asked: list[list[int]] = []
        self.dies_at = dies_at

    def __call__(self, rows: Sequence[int]) -> dict[int, Any]:
        if len(self.asked) == self.dies_at:
            raise KeyboardInterrupt
        self.asked.append(list(rows))
        return {row: [0.1 * row, -math.inf, "\u2028é"] for row in rows}

    def run(self, kept: KeptRows) -> dict[int, Any]:
        found: dict[int, Any] = {}
        for batch in BATCHES:
            found |= kept.batch(batch, self)
        return found


def kept_in(folder: Path | None, **facts: Any) -> KeptRows:
    return KeptRows(folder, "rows", lambda: facts)


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_a_broken_computation_goes_on_behind_its_last_whole_batch(tmp_path, dies_at, caplog):
    caplog.set_level("INFO")
    with pytest.raises(KeyboardInterrupt):
        Computation(dies_at).run(kept_in(tmp_path, a=1))
    second = Computation()
    assert second.run(kept_in(tmp_path, a=1)) == Computation().run(KeptRows())
    assert second.asked == BATCHES[dies_at:]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 400), junk=st.binary(max_size=5))
def test_a_file_cut_anywhere_gives_what_is_whole_in_it(tmp_path_factory, cut, junk):
    folder = tmp_path_factory.mktemp("kept")
    expected = Computation().run(kept_in(folder, a=1))
    (file,) = folder.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:cut] + (junk.replace(b"\n", b"") if cut < len(content) else b""))
    again = Computation()
    assert again.run(kept_in(folder, a=1)) == expected
    assert again.asked == BATCHES[content[:cut].count(b"\n") :]
    assert file.read_bytes() == content


def test_other_facts_or_names_are_other_rows(tmp_path):
    Computation().run(kept_in(tmp_path, a=1))
    for kept in (kept_in(tmp_path, a=2), KeptRows(tmp_path, "others", lambda: {"a": 1})):
        other = Computation()
        other.run(kept)
        assert other.asked == BATCHES


def test_a_batch_of_which_a_row_is_missing_is_computed_whole(tmp_path):
    kept_in(tmp_path).batch([0, 1], Computation())
    again = Computation()
    kept_in(tmp_path).batch([1, 2], again)
    assert again.asked == [[1, 2]]


def test_without_a_folder_nothing_is_kept_and_facts_are_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = KeptRows(None, "rows", lambda: 1 / 0)
    for _ in range(2):
        own = Computation()
        own.run(kept)
        assert own.asked == BATCHES
    assert not list(tmp_path.iterdir())


def test_rows_of_another_process_of_the_command_are_read_and_left_as_they_are(tmp_path):
    Computation().run(kept_in(tmp_path))
    (file,) = tmp_path.iterdir()
    other = file.with_name(file.name.replace(".0.", ".1."))
    file.rename(other)
    other.write_bytes(other.read_bytes() + b'{"7": 1')  # it is writing right now
    again = Computation()
    again.run(kept_in(tmp_path))
    assert not again.asked and other.read_bytes().endswith(b'{"7": 1')


# ------------------------------------------------------------------------------------------------- in stages and runs


def test_a_stage_keeps_rows_while_it_is_computed_and_no_longer(tmp_path):
    store = StageStore(tmp_path)

    def compute(own: Computation) -> Any:
        return lambda folder: (folder / "sum.json").write_text(json.dumps(len(own.run(store.keep("rows", dict)))))

    with pytest.raises(KeyboardInterrupt):
        run_stage(store, "s", {}, compute(Computation(2)))
    second = Computation()
    place = run_stage(store, "s", {}, compute(second))
    assert second.asked == BATCHES[2:] and sorted(path.name for path in place.iterdir()) == ["stage.json", "sum.json"]
    third = Computation()
    third.run(store.keep("rows", dict))  # outside
    assert third.asked == BATCHES


def test_a_run_keeps_rows_until_it_ends_without_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), (first := StageStore(tmp_path)).unfinished({"seed": 1}):
        Computation(1).run(first.keep("rows", dict))
    for facts, asked in (({"seed": 2}, BATCHES), ({"seed": 1}, BATCHES[1:]), ({"seed": 1}, BATCHES)):
        store, own = StageStore(tmp_path), Computation()
        with store.unfinished(facts):
            own.run(store.keep("rows", dict))
        assert own.asked == asked
    assert not [path for path in tmp_path.iterdir() if path.is_dir() or path.suffix == ".lock"]


def test_of_two_runs_with_the_same_settings_one_keeps_rows(tmp_path):
    one, other = StageStore(tmp_path), StageStore(tmp_path)
    with one.unfinished({}):
        with other.unfinished({}):
            Computation().run(other.keep("rows", dict))
            assert not list(tmp_path.glob(".rows-*/*"))
        Computation().run(one.keep("rows", dict))
        assert len(list(tmp_path.glob(".rows-*/*"))) == 1


def test_answers_of_a_run_that_has_ended_are_found_by_runs_with_other_settings(tmp_path):
    def asked(run: str, name: str = "answers", dies_at: int = 99, **facts: Any) -> tuple[list[list[int]], list[str]]:
        store, own = StageStore(tmp_path), Computation(dies_at)
        with store.unfinished({"run": run}):
            assert own.run(store.keep(name, lambda: facts)) == Computation().run(KeptRows())
        return own.asked, store.reused

    with pytest.raises(KeyboardInterrupt):
        asked("broken", dies_at=2, weights=1)
    assert asked("first", weights=1) == (BATCHES, [])
    assert asked("second", weights=1) == ([], ["answers"])
    assert asked("broken", weights=1) == ([], ["answers"])
    assert asked("second", weights=2) == (BATCHES, [])
    for _ in range(2):  # numbers of every item take room
        assert asked("first", "likelihoods", weights=1) == (BATCHES, [])


def test_what_is_found_of_answers_counts_as_reused_in_a_stage_too(tmp_path):
    store, own = StageStore(tmp_path), Computation()
    with store.unfinished({}):
        Computation().run(store.keep("answers", dict))
    run_stage(StageStore(tmp_path), "s", {}, lambda folder: None)
    stage = StageStore(tmp_path)
    run_stage(stage, "t", {}, lambda folder: own.run(stage.keep("answers", dict)) and None)
    assert not own.asked and stage.reused == ["answers"]
