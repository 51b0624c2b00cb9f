"""A step whose passes do not fit into memory is computed anew in smaller ones, with the same result."""

from __future__ import annotations

import copy
import logging
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from recbole_llm.curriculum import DISTILLED, REAL
from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.objective import BEARObjective, MSLObjective
from recbole_llm.objective.preferences import DPOPreference, RPOPreference
from recbole_llm.trainer.preference_loss import ContrastRows, PreferenceLoss
from recbole_llm.trainer.step_loss import ObjectiveMeans
from tests.members import in_threads
from tests.trainer.test_finetune import Toy, tuning
from tests.trainer.test_objective_loss import PROMPTS, Reads, gradients, passes_of, reader_of, trie
from tests.trainer.test_preference_loss import MASK, across_of
from tests.trainer.test_preference_loss import passes_of as passes_of_preference

__all__ = ["trie"]  # a fixture


class Tight(Toy):
    """A toy on a device that has memory for passes of so many tokens."""

    def __init__(self, most: int) -> None:
        super().__init__(dropout=0.0)
        self.most, self.failed = most, 0

    def answer_loss(self, prompts: list[Any], answers: list[Any]) -> torch.Tensor:
        if len(prompts) * max(len(p) + sum(map(len, own)) for p, own in zip(prompts, answers, strict=True)) > self.most:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().answer_loss(prompts, answers)


def test_training_goes_on_in_smaller_passes(tmp_path, caplog):
    found = []
    for most in (10**6, 8):
        model = Tight(most)
        with caplog.at_level(logging.WARNING):
            run = tuning(model, [0.1, 0.2, 0.3], epochs=3, micro_batch_tokens=1000)
            history = run.run(tmp_path / str(most))
        found.append((model.llm.weight.item(), [record["train_loss"] for record in history], run.loss.tokens))
        assert bool(model.failed) == (most == 8)
    assert model.failed <= 8  # what was learned stays for the steps to come
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5) and found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    assert found[0][2] == found[1][2]  # tokens of passes that failed are not counted
    assert len([own for own in caplog.records if "memory ran out" in own.getMessage()]) == 1


def test_a_row_that_does_not_fit_alone_ends_the_training(tmp_path):
    with pytest.raises(torch.OutOfMemoryError):
        tuning(Tight(2), None, epochs=1, micro_batch_tokens=1000).run(tmp_path)


@pytest.fixture(scope="module")
def model() -> Reads:
    return Reads("llama")


def fail_at(model: Reads, number: int) -> Any:
    """A forward pass that runs out of memory, the others do not."""
    passes = iter(range(1000))

    def look(*_: Any) -> None:
        if next(passes) == number:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return model.llm.register_forward_pre_hook(look)


def note(_losses: np.ndarray) -> None:
    """Nothing is made of them."""


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("update", ["after", "before"])
def test_what_a_step_notes_is_noted_once(model, trie, update, number):
    """The logits that an adaptive temperature follows, and the ratios that a preference tells of."""
    objective, rows = MSLObjective(temperature="adaptive", tau_update=update), np.arange(len(PROMPTS))

    def objective_step() -> Any:
        passes = passes_of(model, 60)
        loss = ObjectiveMeans(passes, objective, reader_of(model, trie, objective), [])
        lengths = loss.lengths([REAL])
        passes.within_memory(rows, lengths, lambda: note(loss.backward(rows, {REAL: 1.0}, lengths)))
        loss.after_step()
        return loss.tau

    def preference_step() -> Any:
        passes = passes_of_preference(model, 120)
        contrast_rows = ContrastRows(MASK, np.zeros((len(PROMPTS), 3), dtype=np.float32))
        loss = PreferenceLoss(passes, DPOPreference(), 1.0, 1.0, [contrast_rows], AnswerReader(model.scorer))
        lengths = loss.lengths([REAL])
        run = lambda: note(loss.backward(rows, {REAL: 1.0}, lengths))  # noqa: E731
        passes.within_memory(rows, lengths, run, loss.undo_step)
        return loss.record()

    for step in (objective_step, preference_step):
        usual = step()
        handle = fail_at(model, number)
        try:
            assert step() == pytest.approx(usual, abs=1e-5)
        finally:
            handle.remove()


SHARING = ("llm.budget", "trainer.passes", "trainer.step_loss", "trainer.preference_loss")


FAST = {("after", 0), ("before", 1), ("bear", 1), ("dpo", 0), ("in two", 1)}  # each kind, each process
CASES = [
    pytest.param(kind, number, marks=[] if (kind, number) in FAST else pytest.mark.slow)
    for kind in ("after", "before", "bear", "dpo", "in two")
    for number in (0, 1)
]


@pytest.mark.parametrize(("kind", "number"), CASES)
def test_where_one_process_runs_out_of_memory_all_begin_anew_with_the_same_passes(model, trie, kind, number):
    """In a step of one mean, of two whose sums come first, of a preference, and of one whose rows stand together.

    The temperature of the one mean follows the logits of the step, after it or before.
    """

    def step(failing: int) -> Any:
        own, rows, weights = copy.deepcopy(model), np.arange(len(PROMPTS)), {REAL: 1.0}
        me = import_module("recbole_llm.llm.budget").process()
        if kind in ("dpo", "in two"):
            passes = passes_of_preference(own, 50)
            preference, across = (RPOPreference(), across_of) if kind == "in two" else (DPOPreference(), None)
            contrast_rows = ContrastRows(MASK, np.zeros((len(PROMPTS), 3), dtype=np.float32), across)
            loss: Any = PreferenceLoss(passes, preference, 1.0, 1.0, [contrast_rows], AnswerReader(own.scorer))
        else:
            weights = {REAL: 0.5, DISTILLED: 0.5} if kind == "bear" else weights
            unknown = BEARObjective(k=1, xi=0.7, weight=0.6)
            objective = unknown if kind == "bear" else MSLObjective(temperature="adaptive", tau_update=kind)
            passes = passes_of(own, 40)
            loss = ObjectiveMeans(passes, objective, reader_of(own, trie, objective), list(own.parameters()))
        if me.rank == failing:
            fail_at(own, number)
        lengths, found, before = loss.lengths(weights), [], passes.budget.tokens

        def run() -> None:
            own.llm.zero_grad(set_to_none=True)
            found.append(loss.backward(rows, weights, lengths))

        passes.within_memory(rows, lengths, run, loss.undo_step)
        assert len(found) <= 2
        loss.after_step()
        return found[-1], gradients(own), loss.record(), passes.budget.tokens / before

    modules = [import_module(f"recbole_llm.{name}") for name in SHARING]
    (usual,) = in_threads(1, modules, lambda: step(-1))
    for failing in (-1, 0, 1):
        found = in_threads(2, modules, lambda: step(failing))  # noqa: B023
        assert [share for *_, share in found] == [1 if failing < 0 else 0.5] * 2
        np.testing.assert_allclose(sum(losses for losses, *_ in found), usual[0], atol=1e-5)
        for ours, theirs, expected in zip(found[0][1], found[1][1], usual[1], strict=True):
            torch.testing.assert_close(ours + theirs, expected, atol=1e-5, rtol=1e-4)
        for _, _, record, _ in found:
            assert record == pytest.approx(usual[2], abs=1e-5)
