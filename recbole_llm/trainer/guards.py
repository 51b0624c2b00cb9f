"""Warnings about a finished tuning: a loss, schedule or weight that suggests nothing was learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from recbole_llm.distributed import process
from recbole_llm.errors import InputError

if TYPE_CHECKING:
    import torch

PLATEAU_SHARE = 0.97
MOST_WARMUP = 1 / 5  # of the optimiser steps
LEAST_FALL = 0.5


def plateau(n_answers: int, answer_lengths: Sequence[int]) -> float:
    """Loss per token of a model that tells all answers to be equally likely, whatever the history.

    Args:
        n_answers: different answers, such as the rankable titles.
        answer_lengths: tokens of the answers trained on, EOS included.

    Returns:
        ``ln(n_answers)`` over the mean length, in nats per token: as sure as one can be of the tokens behind the first
        that tells the title from all others.

    Example:
        >>> round(plateau(1664, [8, 10, 12]), 3)
        0.742
    """
    return math.log(n_answers) * len(answer_lengths) / sum(answer_lengths)


def warmup_warning(warmup: int, steps: int) -> list[str]:
    """A line where the learning rate rises for more than a fifth of the optimiser steps.

    Example:
        >>> warmup_warning(20, 28)
        ['warmup_steps takes 20 of 28 optimiser steps, more than a fifth: little is trained at the full learning rate']
        >>> warmup_warning(20, 100)
        []
    """
    if warmup <= MOST_WARMUP * steps:
        return []
    told = f"warmup_steps takes {warmup} of {steps} optimiser steps, more than a fifth"
    return [told + ": little is trained at the full learning rate"]


def check_alike(weights: Sequence[torch.nn.Parameter]) -> None:
    """Make sure that all processes have the same weights, on which everything that they share rests.

    Raises:
        InputError: they differ: the processors or libraries compute differently.
    """
    if process().count == 1:
        return
    own = [float(weight.detach().double().sum()) for weight in weights]
    found = process().gather(own)
    different = [rank for rank, others in enumerate(found) if str(others) != str(found[0])]
    if different:
        message = f"process {different[0]} of {len(found)} has other weights than the main one after the same steps"
        raise InputError("", f"{message}; use machines with the same hardware and packages", kind="environment")


def plateau_warning(history: Sequence[Mapping[str, Any]], level: float) -> list[str]:
    """A line where the loss on true answers stayed at the plateau, or above, in every epoch.

    The training loss of an epoch is a mean over it, and a first epoch begins far above the plateau; the loss of the
    validation rows, where it is measured, is of the epoch's end.

    Args:
        history: one record per epoch; see :meth:`recbole_llm.trainer.finetune.FineTuning.run`.
        level: result of :func:`plateau`.
    """
    losses = [record.get("real_loss", record["train_loss"]) for record in history]
    known = [loss for loss in losses if loss is not None]  # an epoch on distilled answers alone tells nothing
    at_end = [record["valid_loss"] for record in history if record.get("valid_loss") is not None]
    if not known or min([*known, *at_end]) < PLATEAU_SHARE * level:
        return []
    return [
        f"the training loss never fell below {PLATEAU_SHARE} of ln(answers) / tokens per answer = {level:.4f} (lowest "
        f"{min(known):.4f}): the LLM has learned little more than the list of answers"
    ]


def weight_warning(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line where the weight of distilled answers never fell below a half.

    Args:
        history: history of a stage whose curriculum lets the weight fall by itself.
    """
    weights = [record["weight"] for record in history]
    if not weights or min(weights) < LEAST_FALL:
        return []
    told = f"the weight of the distilled answers never fell below {LEAST_FALL} (lowest {min(weights):.3f})"
    return [told + ": the true titles were the smaller part throughout; set a larger alpha"]
