"""Weights & Biases: https://docs.wandb.ai."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_llm.callbacks.base import RunCallback, Started


class WandbCallback(RunCallback):
    """A run of W&B for each of ours; its files are in the run folder, and ``WANDB_MODE=offline`` keeps them there."""

    def on_start(self, run: Started) -> None:
        """See :class:`RunCallback`."""
        import wandb

        self._run: Any = wandb.init(
            project=run.project,
            name=run.name,
            dir=str(run.folder),
            config=dict(run.settings),
            reinit="create_new",  # whatever else this process tracks
        )
        # Stages count their epochs from 1 again, and W&B's own steps may only grow.
        self._run.define_metric("epoch", hidden=True)
        self._run.define_metric("*", step_metric="epoch")

    def on_scalar(self, name: str, value: float, step: int) -> None:
        """See :class:`RunCallback`."""
        self._run.log({name: value, "epoch": step})

    def on_end(self, metrics: Mapping[str, float], error: BaseException | None) -> None:
        """See :class:`RunCallback`."""
        self._run.summary.update(dict(metrics))
        self._run.finish(exit_code=1 if error else 0)
