"""The stage store: computed once, resumed after a kill, rebuilt when damaged, never shared by different facts."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from recbole_llm.stages import StageStore, find_damage, fingerprint, stage_seed
from tests.processes import fresh_python


def writer(text: str, calls: list[str]):
    def compute(folder: Path) -> None:
        calls.append(text)
        (folder / "result.txt").write_text(text)

    return compute


def test_the_same_facts_are_computed_once_in_any_order(tmp_path):
    calls: list[str] = []
    first = StageStore(tmp_path).get("s", {"a": 1, "b": [2]}, writer("x", calls))
    again = StageStore(tmp_path).get("s", {"b": [2], "a": 1}, writer("y", calls))
    assert first == again and calls == ["x"] and (first / "result.txt").read_text() == "x"


def test_other_facts_are_another_stage(tmp_path):
    calls: list[str] = []
    store = StageStore(tmp_path)
    assert store.get("s", {"a": 1}, writer("x", calls)) != store.get("s", {"a": 2}, writer("y", calls))
    assert calls == ["x", "y"]


@pytest.mark.parametrize("damage", ["changed", "removed", "no manifest"])
def test_a_damaged_stage_is_rebuilt_and_the_log_says_so(tmp_path, caplog, damage):
    calls: list[str] = []
    store = StageStore(tmp_path)
    place = store.get("s", {}, writer("x", calls))
    if damage == "changed":
        (place / "result.txt").write_text("z")
    elif damage == "removed":
        (place / "result.txt").unlink()
    else:
        (place / "stage.json").write_text("{")
    assert find_damage(place)
    assert (store.get("s", {}, writer("x", calls)) / "result.txt").read_text() == "x"
    assert calls == ["x", "x"] and "damaged" in caplog.text and find_damage(place) is None


def test_a_failed_stage_leaves_no_result_and_a_resumable_one_goes_on(tmp_path):
    def fails_after_one_file(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("power cut")

    store = StageStore(tmp_path)
    with pytest.raises(RuntimeError):
        store.get("s", {}, fails_after_one_file)
    seen: list[list[str]] = []
    store.get("s", {}, lambda folder: seen.append(sorted(os.listdir(folder))), resumable=True)
    assert seen == [["half.txt"]]


def test_what_is_not_resumable_starts_from_an_empty_folder(tmp_path):
    store = StageStore(tmp_path)
    with pytest.raises(ZeroDivisionError):
        store.get("s", {}, lambda folder: [(folder / "half.txt").write_text("half"), 1 / 0])
    assert not (store.get("s", {}, lambda folder: None) / "half.txt").exists()


def test_a_killed_process_holds_no_lock_and_leaves_no_final_folder(tmp_path):
    program = f"""
        import os, signal
        from recbole_llm.stages import StageStore
        def compute(folder):
            (folder / "half.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        StageStore({str(tmp_path)!r}).get("s", {{"a": 1}}, compute, resumable=True)
    """
    fresh_python(code=program, status=-signal.SIGKILL)
    assert [path.name for path in tmp_path.glob("s-*")] == [f"s-{fingerprint({'a': 1})}.partial"]
    calls: list[str] = []
    place = StageStore(tmp_path).get("s", {"a": 1}, writer("x", calls), resumable=True)
    assert calls == ["x"] and (place / "half.txt").exists()


def test_the_manifest_tells_what_the_stage_depends_on(tmp_path):
    store = StageStore(tmp_path)
    place = store.get("s", {"a": 1}, writer("x", []))
    manifest = json.loads((place / "stage.json").read_text())
    assert (
        manifest["facts"] == {"a": 1} and list(manifest["files"]) == ["result.txt"] and store.used == {"s": place.name}
    )


def test_every_stage_draws_from_its_own_seed():
    seeds = {stage_seed(seed, name, epoch) for seed in (1, 2) for name in ("a", "b") for epoch in (0, 1)}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)
    assert stage_seed(1, "a") == stage_seed(1, "a")


def test_facts_must_be_plain_data():
    with pytest.raises(TypeError):
        fingerprint({"a": object()})
