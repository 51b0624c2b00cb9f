"""What trackers are told of a run, by stand-ins for their packages that write down every call."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import recbole_llm
from recbole_llm import registry
from recbole_llm.callbacks import Callbacks, RunCallback
from recbole_llm.callbacks.base import NAMES
from recbole_llm.experiment import run as module
from tests.runs import working_in


class WandbRun:
    """A run of W&B that remembers."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.logged, self.summary = options, [], {}
        self.by: dict[str, dict[str, Any]] = {}
        self.exit_code: int | None = None

    def define_metric(self, name: str, **options: Any) -> None:
        self.by[name] = options

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class MlflowServer:
    """A tracking server of MLflow that takes what MLflow takes."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.params: dict[str, str] = {}
        self.metrics: list[tuple[str, float, int]] = []
        self.artifacts: list[str] = []
        self.name = self.status = ""

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def create_run(self, experiment: str, run_name: str) -> Any:
        assert experiment in self.experiments.values()
        self.name = run_name
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def log_batch(self, run_id: str, params: list[Any]) -> None:
        assert run_id == "r1" and len(params) <= 100
        assert all(len(one.value) <= 500 and "@" not in one.key for one in params)
        self.params |= {one.key: one.value for one in params}

    def log_metric(self, run_id: str, key: str, value: float, step: int = 0) -> None:
        assert run_id == "r1" and "@" not in key
        self.metrics.append((key, value, step))

    def log_artifact(self, run_id: str, path: str) -> None:
        self.artifacts.append(Path(path).name)

    def set_terminated(self, run_id: str, status: str) -> None:
        self.status = status


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> list[WandbRun]:
    """The runs that a stand-in for wandb has begun."""
    runs: list[WandbRun] = []
    stand_in = ModuleType("wandb")
    stand_in.__spec__ = ModuleSpec("wandb", None)
    stand_in.init = lambda **options: runs.append(WandbRun(options)) or runs[-1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return runs


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> MlflowServer:
    """What a stand-in for mlflow has been told."""
    found = MlflowServer()
    stand_in, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    stand_in.__spec__ = ModuleSpec("mlflow", None, is_package=True)
    stand_in.MlflowClient = lambda: found  # type: ignore[attr-defined]
    entities.Param = lambda key, value: SimpleNamespace(key=key, value=value)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return found


@pytest.fixture
def start(world: Path, llama: Path, tmp_path: Path) -> Callable[..., Any]:
    """``start("Pop")``: a small run in a folder of its own."""

    def run(model: str, **settings: Any) -> Any:
        own = {"data_path": str(world.parent), "checkpoint_dir": str(tmp_path / "saved"), "epochs": 2, "topk": [5]}
        own |= {"valid_metric": "NDCG@5", "show_progress": False, "test_sample_size": 4, "valid_sample_size": 3}
        if model == "BIGRec":
            own |= {"llm_path": str(llama), "lora_target_modules": "auto", "train_sample_size": 8, "num_beams": 1}
        with working_in(tmp_path):
            return recbole_llm.run(model, "world", **{**own, **settings})

    return run


def scalars_of(folder: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard got."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {(name, event.step): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)}


@pytest.mark.parametrize("model", ["SASRec", "BIGRec"])
def test_both_are_told_settings_scalars_and_metrics(start, wandb_runs, server, model):
    run = start(model, callbacks=["wandb", "mlflow"], callback_project="mine")
    (told,) = wandb_runs
    assert (told.options["project"], told.options["name"]) == ("mine", run.folder.name) and told.exit_code == 0
    assert told.options["dir"] == str(run.folder) and told.options["config"]["epochs"] == 2
    assert told.by["*"] == {"step_metric": "epoch"}
    kept = {(NAMES.get(name, name), step): value for (name, step), value in scalars_of(run.folder).items()}
    logged = {(name, own["epoch"]): own[name] for own in told.logged for name in own if name != "epoch"}
    assert {name for name, _ in logged} >= {"Loss/Train"} and {step for _, step in logged} >= {1}
    assert logged == pytest.approx(kept, rel=1e-6)
    expected = {f"test/{name}": value for name, value in run.metrics.items()}
    expected |= {f"valid/{name}": value for name, value in run.valid_metrics.items()}
    expected |= {f"summary/{name}": value for name, value in run.summary.items()}
    assert told.summary == expected
    assert server.name == run.folder.name and server.status == "FINISHED" and "mine" in server.experiments
    assert server.params["epochs"] == "2" and server.artifacts == ["config.yaml", "metrics.json"]
    assert len(server.metrics) == len(logged) + len(expected)
    assert ("test/ndcg_5", run.metrics["ndcg@5"], 0) in server.metrics


def test_settings_of_trackers_change_no_result_and_no_stage(start, wandb_runs):
    plain, told = start("BIGRec"), start("BIGRec", callbacks="wandb", callback_project="other")
    stages = [json.loads((run.folder / "stages.json").read_text()) for run in (plain, told)]
    assert stages[0] == stages[1] and plain.metrics == told.metrics and len(wandb_runs) == 1


def test_a_run_that_fails_is_told_as_one(start, wandb_runs, server, monkeypatch):
    def stopped(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train_classic", stopped)
    with pytest.raises(KeyboardInterrupt):
        start("Pop", callbacks="wandb,mlflow")
    assert wandb_runs[0].exit_code == 1 and wandb_runs[0].summary == {} and server.status == "FAILED"


def test_a_tracker_that_fails_leaves_the_run_alone(start, wandb_runs, server, monkeypatch, caplog):
    def broken(self: WandbRun, values: dict[str, Any]) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(WandbRun, "log", broken)
    with caplog.at_level(logging.WARNING):
        run = start("SASRec", callbacks="wandb,mlflow")
    warned = [record.getMessage() for record in caplog.records if "is not called again" in record.getMessage()]
    assert warned == ["WandbCallback failed and is not called again: ConnectionError: no network"]
    assert run.metrics and server.status == "FINISHED" and wandb_runs[0].exit_code is None


class Counting(RunCallback):
    """Of another package."""

    ends: list[tuple[set[str], bool]] = []

    def on_end(self, metrics: Any, error: BaseException | None) -> None:
        self.ends.append(({name.partition("/")[0] for name in metrics}, error is None))


def test_another_package_adds_its_own(start, monkeypatch):
    entry = EntryPoint("counting", f"{__name__}:Counting", "recbole_llm.callback")
    monkeypatch.setattr(registry, "_entries", lambda group, path: (entry,) if group == "recbole_llm.callback" else ())
    start("Pop", callbacks="counting")
    assert Counting.ends == [({"test", "valid", "summary"}, True)]


def test_nobody_is_told_by_default():
    assert not Callbacks() and Callbacks([RunCallback()])
    with Callbacks([RunCallback()]) as callbacks:
        callbacks.scalar("Loss/Train", 0.5, 1)
