"""The steps of an epoch, over stubs of what takes them."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np

from recbole_llm.trainer.checkpoint import EpochSoFar
from recbole_llm.trainer.epoch import EpochSteps


def test_the_steps_of_a_training_are_counted_through_its_epochs():
    told = list[tuple[int, int]]()

    @contextmanager
    def training_step(place: int, n_steps: int) -> Any:
        told.append((place, n_steps))
        yield

    model = SimpleNamespace(training_step=training_step, stage_seed=lambda *names: 0)
    draws = SimpleNamespace(step=lambda seed: nullcontext())
    passes = SimpleNamespace(draws=draws, answer_lengths={"real": np.ones(4)})
    loss, step = SimpleNamespace(scheduled_prompts=True, tokens=0), SimpleNamespace(take=lambda *_: np.zeros(1))
    settings: Any = SimpleNamespace(epochs=2)
    one = EpochSteps(model, passes, loss, step, settings, None, False, after_step=lambda so_far: None)  # type: ignore[arg-type]
    for epoch in (1, 2):
        rows, so_far = [np.array([0, 1]), np.array([2, 3])], EpochSoFar(np.zeros(1), np.zeros(1))
        one._take(rows, epoch, 2, {"real": 1.0}, np.ones(4, dtype=int), so_far, 0.0)
    assert told == [(place, 4) for place in range(4)]
