"""The stages of a command's runs by a clock that stands still: which begins when, and the time that is left."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.kept import KeptRows
from recbole_llm.stages import Stage, StageStore
from recbole_llm.timeline import RunPlan, Timeline, in_command, in_run, timeline

STAGES = ("prepare", "fine-tune", "evaluate")


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


def course_of(*plans: RunPlan) -> tuple[Timeline, Clock]:
    clock = Clock()
    return Timeline(plans, clock), clock


def go(course: Timeline, clock: Clock, plan: RunPlan, seconds: Sequence[float]) -> list[str]:
    """Make a run whose stages take so long; returns what was left as each of them began."""
    left = []
    with course.running(plan):
        for stage, own in zip(plan.stages, seconds, strict=True):
            course.begin(stage)
            left.append(course.left())
            clock.work(own)
    return left


def seconds_of(left: str) -> float:
    """What a time left says, in seconds."""
    _, value, unit, _ = left.split()
    return float(value) * {"s": 1, "min": 60, "h": 3600}[unit]


def test_a_line_says_what_is_done_now_and_next(caplog):
    caplog.set_level(logging.INFO)
    plan = RunPlan("SOFT", ["prepare", "curriculum", "curriculum", "evaluate"])
    course, clock = course_of(plan)
    go(course, clock, plan, [1, 1, 1, 1])
    assert caplog.messages == [
        "SOFT, stage 1 of 4: prepare (next: curriculum, curriculum, evaluate)",
        "SOFT, stage 2 of 4: curriculum (done: prepare; next: curriculum, evaluate)",
        "SOFT, stage 3 of 4: curriculum (done: prepare, curriculum; next: evaluate)",
        "SOFT, stage 4 of 4: evaluate (done: prepare, curriculum, curriculum)",
    ]


def test_what_is_not_planned_or_was_said_is_said_no_more(caplog):
    caplog.set_level(logging.INFO)
    timeline().begin("prepare")  # no run
    plan = RunPlan("A", STAGES)
    course, _ = course_of(plan)
    with course.running(plan):
        for name in ("prepare", "prepare", "distil", "fine-tune", "prepare", "evaluate", "evaluate"):
            course.begin(name)
    assert [message.split(":")[0] for message in caplog.messages] == [f"A, stage {n} of 3" for n in (1, 2, 3)]


def test_no_time_is_claimed_before_all_that_is_to_come_was_measured():
    """Another model's runs tell nothing of this one's; the same model's do, also by their mean."""
    a, b = RunPlan("A", STAGES), RunPlan("B", STAGES)
    course, clock = course_of(a, b, a, b)
    assert go(course, clock, a, [10, 100, 20]) == ["", "", ""]
    assert course.left() == "" and (course.n_done, course.n_runs) == (1, 4)
    assert go(course, clock, b, [1, 2, 3]) == ["", "", ""]
    assert course.left() == "about 2 min left"  # 130 + 6
    assert go(course, clock, a, [30, 100, 20]) == ["about 2 min left", "about 2 min left", "about 26 s left"]
    assert go(course, clock, b, [1, 2, 3]) == ["about 6 s left", "about 5 s left", "about 3 s left"]
    assert course.left() == "about 0 s left"


def test_what_an_earlier_command_has_measured_counts_until_this_one_knows_better():
    plan = RunPlan("A", STAGES, {"prepare": 1.0, "fine-tune": 50.0, "evaluate": 4.0})
    course, clock = course_of(plan, plan)
    assert go(course, clock, plan, [2, 20, 6])[0] == "about 2 min left"  # 110
    assert course.left() == "about 28 s left"
    some = RunPlan("B", STAGES, {"prepare": 1.0, "evaluate": 4.0})
    course, clock = course_of(some)
    assert go(course, clock, some, [1, 2, 3]) == ["", "", "about 4 s left"]


def test_a_stage_that_takes_longer_than_expected_has_none_left():
    plan = RunPlan("A", ["train"], {"train": 5.0})
    course, clock = course_of(plan)
    with course.running(plan):
        course.begin("train")
        clock.work(60)
        assert course.left() == "about 0 s left"


@given(total=st.integers(2, 50), resumed=st.integers(0, 48), speed=st.floats(0.1, 5))
def test_a_training_that_goes_on_tells_by_its_own_steps(total, resumed, speed):
    """Steps of an earlier process took none of this one's time."""
    resumed = min(resumed, total - 2)
    plan = RunPlan("A", STAGES, {"evaluate": 7.0})
    course, clock = course_of(plan)
    with course.running(plan):
        course.begin("fine-tune")
        clock.work(1000)  # whatever came before the first step
        with course.computing("fine-tune", "fine-tune-0", has_parts=resumed > 0):
            course.advance(resumed / total)
            assert course.left() == ""
            for done in range(resumed + 1, total + 1):
                clock.work(speed)
                course.advance(done / total)
                expected = speed * (total - done) + 7
                unit = 1 if expected < 59 else 60
                assert abs(seconds_of(course.left()) - expected) <= 0.6 * unit


def test_the_steps_of_a_part_of_a_stage_are_none_of_the_stage():
    plan = RunPlan("A", ["coreset", "evaluate"], {"evaluate": 1.0})
    course, clock = course_of(plan)
    with course.running(plan):
        course.begin("coreset")
        with course.computing("effort", "effort-0", has_parts=False):
            for share in (0.0, 0.5):
                course.advance(share)
                clock.work(10)
            assert course.left() == ""


# ------------------------------------------------------------------------------------------------ found on disk


class Tuning(Stage[None]):
    """A stage by a function; it can be gone on with."""

    name = "fine-tune"
    is_resumable = True

    def __init__(self, compute: Callable[[Path], None]) -> None:
        self._compute = compute

    def facts(self) -> dict[str, Any]:
        return {"lr": 1}

    def compute(self, folder: Path) -> None:
        self._compute(folder)

    def load(self, folder: Path) -> None:
        return None


def store_stage(store: StageStore, clock: Clock, seconds: float = 100.0) -> None:
    """Ask for a stage that takes so long to compute."""

    def compute(folder: Path) -> None:
        clock.work(seconds)
        (folder / "result").write_text("done")

    store.run(Tuning(compute))


def test_what_was_found_is_no_measure_but_what_it_once_took_is(tmp_path, monkeypatch):
    """A stage of an earlier command is found: the other seeds will have to compute theirs."""
    clock = Clock()
    monkeypatch.setattr("recbole_llm.stages.store.time.perf_counter", clock)
    plan = RunPlan("A", ["fine-tune"])
    store_stage(StageStore(tmp_path), clock)
    with in_command([plan, plan]) as course:
        course._clock = clock
        with course.running(plan):
            course.begin("fine-tune")
            store_stage(StageStore(tmp_path), clock)
            clock.work(1)  # reading it
        assert course.left() == "about 2 min left"  # 101 s, and not 1


def test_what_this_command_has_computed_is_found_by_each_later_run(tmp_path):
    """BIGRec has tuned, SOFT finds it: so it will with the next seed."""
    bigrec, soft = RunPlan("BIGRec", ["fine-tune"]), RunPlan("SOFT", ["fine-tune"])
    with in_command([bigrec, soft, soft]) as course:
        clock = course._clock = Clock()
        for plan in (bigrec, soft):
            with course.running(plan):
                course.begin("fine-tune")
                store_stage(StageStore(tmp_path), clock)
                clock.work(2)
        assert course.left() == "about 2 s left"


@pytest.mark.parametrize("rest", ["stage", "rows"])
def test_a_stage_that_was_gone_on_with_tells_nothing_of_a_whole_one(tmp_path, rest):
    plan = RunPlan("A", ["fine-tune"])
    store = StageStore(tmp_path)

    def stop(folder: Path) -> None:
        (folder / "part").write_text("half")
        store.keep("rows", dict).batch([0], lambda rows: {0: 1})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), store.unfinished({}):
        if rest == "stage":
            store.run(Tuning(stop))
        stop(tmp_path)
    with in_command([plan, plan]) as course:
        clock = course._clock = Clock()
        with course.running(plan):
            course.begin("fine-tune")
            if rest == "stage":
                store.run(Tuning(lambda folder: clock.work(3)))
            else:
                from recbole_llm import kept

                kept._written.clear()  # as in a new process
                folder = next(tmp_path.glob(".rows-*"))
                assert KeptRows(folder, "rows", dict).batch([0], lambda rows: {}) == {0: 1}
                clock.work(3)
        assert course.left() == "" and course.measured() == {}


def test_runs_that_were_found_or_left_out_are_not_to_come():
    a, b = RunPlan("A", ["train"], {"train": 30.0}), RunPlan("B", ["train"])
    course, clock = course_of(a, b, a, b)
    course.found("A")
    course.skip("B")
    assert (course.n_done, course.n_runs, course.left()) == (1, 3, "")
    course.found("B")
    assert course.left() == "about 30 s left"
    assert go(course, clock, a, [30]) == ["about 30 s left"] and (course.n_done, course.n_runs) == (3, 3)
    trials, _ = course_of(*[a] * 5)
    trials.limit(2)  # other processes have run three
    assert trials.left() == "about 1 min left"


def test_a_run_that_fails_is_over_and_its_last_stage_measures_nothing():
    plan = RunPlan("A", ["prepare", "train"])
    course, clock = course_of(plan, plan)
    with pytest.raises(ValueError, match="pruned"), course.running(plan):
        course.begin("prepare")
        clock.work(5)
        course.begin("train")
        clock.work(1)
        raise ValueError("pruned")
    assert course.left() == "" and course.n_done == 1
    with course.running(plan):
        assert course.measured() == {"prepare": 5}


def test_a_run_of_its_own_is_a_command_and_leaves_none_behind():
    outside = timeline()
    plan = RunPlan("A", ["train"])
    with in_run(plan) as course:
        assert timeline() is course is not outside
        with in_run(RunPlan("B", ["train"])) as inner:
            assert inner is course and course.n_runs == 2
    assert timeline() is outside and (course.n_done, course.n_runs) == (2, 2)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"like": "x", "seconds": 3}', '{"like": 1, "seconds": {"a": "b"}}']
)
def test_a_damaged_file_of_times_tells_none(content, tmp_path, world, monkeypatch):
    from recbole_llm.experiment import timing
    from recbole_llm.settings.config import Config

    config = Config("Pop", "world", settings={"data_path": str(world.parent), "checkpoint_dir": str(tmp_path)})
    monkeypatch.setattr(timing, "_kind", lambda *_: "x")
    folder = tmp_path / "Pop-world-2026"
    folder.mkdir()
    timing.write_timing(folder, config, False, {"train": 2.0})
    assert timing.plan_of(config, "Pop", False).known == {"train": 2.0}
    later = tmp_path / "Pop-world-2027"
    later.mkdir()
    (later / timing.FILE).write_text(json.dumps({"like": "x", "seconds": {"train": 3.0}}))
    assert timing.plan_of(config, "Pop", False).known == {"train": 3.0}  # the newest
    (later / timing.FILE).write_text(content)
    assert timing.plan_of(config, "Pop", False).known == {"train": 2.0}
