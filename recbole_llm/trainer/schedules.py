"""Learning rates by step: Hugging Face's schedules, a floor under them, and the unshifted cosine."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from recbole_llm.settings.training import FineTuneSettings

Share = Callable[[int], float]
"""Learning rate at a step, counted from 0, as a share of the largest."""


def make_schedule(optimizer: torch.optim.Optimizer, settings: FineTuneSettings, steps: int) -> LambdaLR:
    """The learning rate by step, from the first value that is not 0.

    Without a floor the schedules are Hugging Face's from their second value on: the first is 0 and would waste a step.
    In a few-shot run an epoch can be that one step, and its weights would be the untuned ones. With a floor the rate
    rises from it over the warm-up and, unless it is constant, falls to it at the last step.

    Args:
        optimizer: over the weights that learn.
        settings: ``lr_scheduler``, ``lr_floor`` and the warm-up are read.
        steps: steps of the whole training.
    """
    floor, first = settings.lr_floor, 0 if settings.lr_floor > 0 else 1
    share = share_of_step(settings.lr_scheduler, settings.warmup(steps), steps + first)
    return LambdaLR(optimizer, lambda step: floor + (1 - floor) * share(step + first))


def share_of_step(schedule: str, warmup: int, steps: int) -> Share:
    """A schedule as a function of the step.

    Args:
        schedule: ``constant``, ``linear`` and ``cosine`` are Hugging Face's: over the steps after the warm-up.
            ``cosine_unshifted`` is a cosine over all steps, which drops a little where the warm-up ends (the code of
            LLaRA, arXiv 2312.02445).
        warmup: steps of warm-up.
        steps: steps of the whole training.
    """
    if schedule == "cosine_unshifted":
        return lambda step: step / warmup if step < warmup else (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2
    # Hugging Face gives the function only together with an optimiser's schedule.
    unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    if schedule == "constant":
        made = get_constant_schedule_with_warmup(unused, warmup)
    else:
        make = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}[schedule]
        made = make(unused, warmup, steps)
    share: Share = made.lr_lambdas[0]
    return share
