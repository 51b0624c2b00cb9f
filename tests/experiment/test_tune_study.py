"""The trials of a search: the same whenever it is stopped, shared by processes, ended early as ASHA says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_llm.experiment.tune_plan import Plan
from recbole_llm.experiment.tune_space import as_space
from recbole_llm.experiment.tune_study import Attempt, Pruned, Study, falls_behind, is_rung
from recbole_llm.settings.command import Command

SPACE = {"rate": "logrange 0.001,1", "size": [4, 8, "x"], "depth": "quniform 1,4,1"}
EPOCHS = 4


class Killed(BaseException):
    """Stands for the end of a process."""


class Clock:
    """Kills at the given moments, counted over all that happens in a search."""

    def __init__(self, at: set[int]) -> None:
        self.at, self.now = set(at), 0

    def tick(self) -> None:
        self.now += 1
        if self.now in self.at:
            raise Killed


def plan(sampler: str = "tpe", pruner: str = "asha", trials: int = 6, space: dict[str, Any] = SPACE) -> Plan:
    space = space if sampler != "grid" else {"size": [4, 8, "x"], "depth": "quniform 1,2,1"}
    return Plan(Command(["SASRec"], "world"), as_space(space), sampler, pruner, trials, 1, 2)


def scores_of(attempt: Attempt) -> Iterator[float]:
    """What a training would give after each epoch: decided by the values alone."""
    depth, size = attempt.values["depth"], {4: 1, 8: 2, "x": 3}[attempt.values["size"]]
    peak = np.exp(-((np.log(attempt.values.get("rate", 0.1)) + 3) ** 2)) + size * depth / 20
    yield from (float(peak * epoch / (epoch + 1)) for epoch in range(1, EPOCHS + 1))


def search(folder: Path, of: Plan, clock: Clock, bigger: bool = True) -> Study:
    """One process's part of a search, until it ends or is killed."""
    study = Study(folder, of, bigger, seed=7)
    with closing(study.attempts()) as attempts:
        for attempt in attempts:
            clock.tick()
            try:
                for epoch, score in enumerate(scores_of(attempt), start=1):
                    clock.tick()
                    attempt.report(epoch, score)
                    clock.tick()
            except Pruned:
                clock.tick()
                attempt.prune()
            else:
                clock.tick()
                attempt.finish(score, epochs=EPOCHS)
            clock.tick()
    return study


def table(study: Study) -> list[tuple]:
    return [
        (trial.number, trial.state.name, trial.value, trial.params, dict(trial.intermediate_values))
        for trial in study.trials
    ]


@pytest.fixture(
    scope="module", params=[("tpe", True), pytest.param(("grid", False), marks=pytest.mark.slow)], ids=("tpe", "grid")
)
def whole(request, tmp_path_factory) -> tuple[str, bool, tuple]:
    """What a search finds that nothing stops, by a sampler, for the largest score or the smallest."""
    sampler, bigger = request.param
    return sampler, bigger, found_by(search(tmp_path_factory.mktemp("whole"), plan(sampler), Clock(set()), bigger))


def found_by(study: Study) -> tuple:
    return table(study), study.best.number, study.importances()


@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moments=st.sets(st.integers(1, 40), min_size=1, max_size=3))
def test_a_search_that_is_killed_at_any_moments_ends_with_the_same_trials(tmp_path_factory, whole, moments):
    sampler, bigger, whole = whole
    folder, clock, study = tmp_path_factory.mktemp("killed"), Clock(moments), None
    while study is None:
        try:
            study = search(folder, plan(sampler), clock, bigger)
        except Killed:
            continue
    assert found_by(study) == whole and len(study.trials) == 6
    assert {trial.state.name for trial in study.trials} <= {"COMPLETE", "PRUNED"}


@pytest.mark.parametrize("drawn", [0, 1, 2])
@pytest.mark.parametrize("before", [2, 11])
def test_a_search_that_is_killed_while_it_draws_ends_with_the_same_trials(tmp_path, monkeypatch, before, drawn):
    """Before a trial's first setting is drawn, and between two; after ten trials TPE draws all settings at once."""
    of, sampler = plan("tpe", "none", before + 2, {**SPACE, "depth": "uniform 1,4"}), Study._sampler
    whole = table(search(tmp_path / "whole", of, Clock(set())))
    draws = Clock({before * (1 + len(of.space)) + 2 + drawn})
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Study, "_sampler", lambda self, *given: draws.tick() or sampler(self, *given))
        search(tmp_path / "killed", of, Clock(set()))
    assert table(search(tmp_path / "killed", of, Clock(set()))) == whole


def test_more_trials_go_on_with_the_search(tmp_path):
    first = table(search(tmp_path, plan(trials=3), Clock(set())))
    more = table(search(tmp_path, plan(trials=6), Clock(set())))
    assert more[:3] == first and len(more) == 6


def test_two_processes_take_different_trials_and_a_trial_is_held_by_one(tmp_path):
    studies = [Study(tmp_path, plan("random", "none", 3), True, seed=7) for _ in range(2)]
    with closing(studies[0].attempts()) as one, closing(studies[1].attempts()) as other:
        first, second = next(one), next(other)
        assert (first.number, second.number) == (0, 1)
        first.finish(0.1)
        third = next(one)
        assert third.number == 2
        second.finish(0.2)
        third.release()  # as its process ends before the trial does
        again = next(other)
        assert again.number == 2 and again.values == third.values
        again.finish(0.3)
        assert next(other, None) is None and next(one, None) is None
    assert [trial.value for trial in studies[0].trials] == [0.1, 0.2, 0.3]
    alone = search(tmp_path / "alone", plan("random", "none", 3), Clock(set()))
    assert [trial.params for trial in alone.trials] == [trial.params for trial in studies[0].trials]


def test_a_trial_that_ends_while_another_process_looks_for_one_is_not_taken_up(tmp_path, monkeypatch):
    """It is listed as running, ends and is released, and only then is its lock asked for."""
    mine, theirs = (Study(tmp_path, plan("random", "none", 2), True, seed=7) for _ in range(2))
    with closing(theirs.attempts()) as attempts, closing(mine.attempts()) as others:
        first, ask = next(attempts), mine._try

        def end_first(number):
            if number == 0:
                first.finish(0.5)
            return ask(number)

        monkeypatch.setattr(mine, "_try", end_first)
        assert next(others).number == 1


@given(
    scores=st.lists(st.integers(0, 6), min_size=1, max_size=30),
    reduction=st.integers(2, 5),
    bigger=st.booleans(),
    at=st.integers(0, 29),
)
def test_asha_keeps_the_best_share_and_equals_alike(scores, reduction, bigger, at):
    at %= len(scores)
    others = [score for index, score in enumerate(scores) if index != at]
    better = sum(other > scores[at] if bigger else other < scores[at] for other in others)
    assert falls_behind(scores[at], others, reduction, bigger) == (better >= max(1, len(scores) // reduction))


def test_rungs_are_powers():
    for first, reduction in ((1, 2), (2, 3), (3, 4)):
        expected = {first * reduction**power for power in range(12)}
        assert {step for step in range(1, 500) if is_rung(step, first, reduction)} == {s for s in expected if s < 500}


def test_a_trial_that_falls_behind_is_ended_at_a_rung_and_is_never_the_best(tmp_path):
    study = search(tmp_path, plan("random", "asha", 12), Clock(set()))
    pruned = [trial for trial in study.trials if trial.state.name == "PRUNED"]
    assert pruned and all(max(trial.intermediate_values) in (1, 2, 4) for trial in pruned)
    for trial in pruned:
        step = max(trial.intermediate_values)
        before = [one.intermediate_values.get(step) for one in study.trials[: trial.number]]
        before = [score for score in before if score is not None]
        assert falls_behind(trial.intermediate_values[step], before, 2, True)
    assert study.best.state.name == "COMPLETE"
    assert study.best.value == max(trial.value for trial in study.trials if trial.state.name == "COMPLETE")
    without = search(tmp_path / "all", plan("random", "none"), Clock(set()))
    assert {trial.state.name for trial in without.trials} == {"COMPLETE"}


def test_a_failed_trial_is_no_best_one_and_keeps_its_reason(tmp_path):
    study = Study(tmp_path, plan("random", "none", 2), True, seed=7)
    with closing(study.attempts()) as attempts:
        next(attempts).fail("learning_rate: too high")
        next(attempts).finish(0.5)
        assert next(attempts, None) is None
    assert study.best.number == 1 and study.trials[0].user_attrs["reason"] == "learning_rate: too high"
    assert study.importances() == {}
