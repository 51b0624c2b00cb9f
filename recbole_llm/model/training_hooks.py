"""Hooks of a recommender that the trainer calls; subclasses override those they need."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from recbole_llm.model.rows import TokenPair


class TrainingHooks:
    """The part of a recommender that is called in the course of a training; by default nothing is added to it."""

    def more_examples(self) -> list[TokenPair]:
        """Prompts and responses to be trained on beside those of rows, once in every epoch."""
        return []

    @property
    def n_more_examples(self) -> int:
        """How many :meth:`more_examples` gives."""
        return len(self.more_examples())

    def prepare_training(self, rows: Any) -> None:  # noqa: B027
        """Learn what depends on the training rows before any is read as a prompt.

        Args:
            rows: the training rows, a RecBole data set.
        """

    @property
    def has_side_loss(self) -> bool:
        """Whether a step has a loss beside that of its answers, :meth:`side_loss`."""
        return False

    def side_loss(self, histories: Sequence[Sequence[int]], more: Sequence[int]) -> torch.Tensor | None:
        """A scalar added to the loss of an optimiser step; None where the step has none.

        Args:
            histories: item ids of the step's rows.
            more: indices of the step's examples among :meth:`more_examples`.
        """
        return None

    def training_step(self, step: int, n_steps: int) -> AbstractContextManager[None]:
        """A context for one of a training's optimiser steps, counted from 0, in which prompts may be others."""
        return nullcontext()

    @property
    def changes_examples(self) -> bool:
        """Whether examples may change between epochs, so that they are made again then."""
        return False

    def end_epoch(self, epoch: int, n_epochs: int) -> dict[str, Any] | None:
        """Called after an epoch, its validation included; may change what examples look like.

        Args:
            epoch: number of the epoch, from 1.
            n_epochs: number of epochs of the training.

        Returns:
            What there is to tell of it, as JSON values; None where nothing has changed.
        """
        return None
