"""MLflow tracking: https://mlflow.org/docs/latest/ml/tracking."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from recbole_llm.callbacks.base import RunCallback, Started

LONGEST = 500  # characters of a parameter's value, which every version takes
BATCH = 100  # parameters of one request
ARTIFACTS = ("config.yaml", "metrics.json")


class MlflowCallback(RunCallback):
    """A run of MLflow for each of ours, where ``MLFLOW_TRACKING_URI`` says; metrics have no ``@`` there."""

    def on_start(self, run: Started) -> None:
        """See :class:`RunCallback`."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client: Any = MlflowClient()
        self._folder = run.folder
        known = self._client.get_experiment_by_name(run.project)
        experiment = known.experiment_id if known else self._client.create_experiment(run.project)
        self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        params = [Param(_name(key), str(value)[:LONGEST]) for key, value in run.settings.items()]
        for start in range(0, len(params), BATCH):
            self._client.log_batch(self._id, params=params[start : start + BATCH])

    def on_scalar(self, name: str, value: float, step: int) -> None:
        """See :class:`RunCallback`."""
        self._client.log_metric(self._id, _name(name), value, step=step)

    def on_end(self, metrics: Mapping[str, float], error: BaseException | None) -> None:
        """See :class:`RunCallback`."""
        for name, value in metrics.items():
            self._client.log_metric(self._id, _name(name), value)
        for name in ARTIFACTS:
            if (self._folder / name).is_file():
                self._client.log_artifact(self._id, str(self._folder / name))
        self._client.set_terminated(self._id, status="FAILED" if error else "FINISHED")


def _name(name: str) -> str:
    """A name as MLflow takes it: ``ndcg@10`` is ``ndcg_10``."""
    return re.sub(r"[^\w/. -]", "_", name)
