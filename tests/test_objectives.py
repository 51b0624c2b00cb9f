"""The axis ``objective`` through the command: stages, equal runs, a broken run that goes on, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import recbole_llm
from recbole_llm.trainer import finetune
from tests.runs import Finished

TITLES = ("--grounding=constrained", "--title_renormalize=True", "--num_beams=10")
POINTS = {
    "msl": ("--objective=msl", "--msl_temperature=adaptive", *TITLES),
    "bear": ("--objective=bear", *TITLES),
    "cft": ("--objective=cft",),
}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``checkpoint_dir`` of this module, whose stages its tests share."""
    return tmp_path_factory.mktemp("objectives") / "saved"


@pytest.fixture(scope="module")
def tuned(command: Any, stages: Path, llama: Path) -> Callable[..., Finished]:
    """``tuned("--objective=bear")``: a model fine-tuned for two epochs."""
    words = ("train_sample_size=24", "valid_sample_size=6", "test_sample_size=6", "stopping_step=0")

    def run(*more: str, models: str = "BIGRec", saved: Path = stages, status: int = 0) -> Finished:
        rates = [f"--{model}.{word}" for model in models.split(",") for word in ("learning_rate=0.05",)]
        rates += [f"--{model}.train_batch_size=8" for model in models.split(",")]
        finished = command(models, f"--llm_path={llama}", *(f"--{w}" for w in words), *rates, *more, saved=saved)
        assert finished.status == status
        return finished

    return run


def adapter_of(finished: Finished, label: str) -> dict[str, torch.Tensor]:
    return load_file(finished.folders[label] / "adapter" / "adapter_model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def facts_of(finished: Finished, label: str, stage: str) -> dict[str, Any]:
    return json.loads((finished.stage(label, stage) / "stage.json").read_text())["facts"]


@pytest.mark.slow
def test_nll_is_what_a_run_without_the_axis_is(tuned):
    plain, named = tuned(), tuned("--objective=nll")
    assert plain.json("BIGRec", "stages.json") == named.json("BIGRec", "stages.json")
    assert "objective" not in facts_of(plain, "BIGRec", "fine-tune") and "objective" not in plain.result("BIGRec").point


@pytest.mark.parametrize(
    "objective", ["cft", pytest.param("bear", marks=pytest.mark.slow), pytest.param("msl", marks=pytest.mark.slow)]
)
def test_a_tuning_that_stops_after_an_epoch_goes_on_as_if_nothing_had_been(objective, tuned, tmp_path, monkeypatch):
    whole = tuned(*POINTS[objective])
    assert f"objective={objective}" in whole.result("BIGRec").point
    assert facts_of(whole, "BIGRec", "fine-tune")["objective"]["objective"] == objective
    save = finetune.save_state

    def save_and_stop(folder: Path, state: Any) -> None:
        save(folder, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "save_state", save_and_stop)
        tuned(*POINTS[objective], saved=tmp_path / "saved")
    resumed = tuned(*POINTS[objective], saved=tmp_path / "saved")
    assert "Resuming after epoch 1" in resumed.log("BIGRec")
    assert equal(adapter_of(whole, "BIGRec"), adapter_of(resumed, "BIGRec"))
    assert whole.ranks("BIGRec") == resumed.ranks("BIGRec")
    loaded = recbole_llm.load_run(resumed.folders["BIGRec"])
    assert loaded.metrics == recbole_llm.load_run(whole.folders["BIGRec"]).metrics
    users = loaded.users[:2]
    best = loaded.recommend(users=users, k=3)
    assert best.equals(recbole_llm.load_run(whole.folders["BIGRec"]).recommend(users=users, k=3)) and len(best) == 6


@pytest.mark.slow
def test_another_temperature_is_another_stage_and_another_model(tuned):
    one, other = tuned(*POINTS["bear"]), tuned(*POINTS["bear"], "--bear_weight=5", "--bear_k=1")
    assert one.json("BIGRec", "stages.json")["fine-tune"] != other.json("BIGRec", "stages.json")["fine-tune"]
    assert not equal(adapter_of(one, "BIGRec"), adapter_of(other, "BIGRec"))
    assert facts_of(one, "BIGRec", "fine-tune")["objective"]["k"] == 10


@pytest.mark.slow
def test_soft_with_bear_distils_titles_and_trains_towards_both(tuned):
    words = [*POINTS["bear"], "--distil_on_trie=True", "--curriculum=fixed:0.5"]
    soft = tuned(*words, "--distance_rows=6", models="SOFT")
    answers = (soft.stage("SOFT", "distil") / "answers.jsonl").read_text().splitlines()
    texts = {json.loads(line)["answer"] for line in answers}
    item_lines = (Path(soft.folders["SOFT"]) / "distilled.json").read_text()
    assert json.loads(item_lines)["catalogue_title"] == 1.0 and all(text[0] == text[-1] == '"' for text in texts)
    history = soft.json("SOFT", "history.json")
    assert all(record["real_loss"] > 0 and record["distilled_loss"] > 0 for record in history)
    bear = tuned(*POINTS["bear"])
    assert bear.json("BIGRec", "stages.json")["fine-tune"] == soft.json("SOFT", "stages.json")["fine-tune"]


@pytest.mark.parametrize("adapter", ["ilora", "full"])
@pytest.mark.parametrize("objective", ["bear", "cft"])
@pytest.mark.slow
def test_every_adapter_learns_every_objective(adapter, objective, tuned):
    own = ("--lora_r=4", "--ilora_num_experts=2") if adapter == "ilora" else ()
    finished = tuned(*POINTS[objective], f"--adapter={adapter}", *own, "--epochs=1", models="LLaRA")
    assert finished.json("LLaRA", "history.json")[0]["train_loss"] > 0


@pytest.mark.slow
def test_presets_are_points_of_the_axis(tuned):
    msl = tuned("--msl_temperature=adaptive", "--topk=[1,5,10]", "--num_beams=10", models="MSL")
    one = tuned(*POINTS["msl"])
    assert msl.json("MSL", "stages.json")["fine-tune"] == one.json("BIGRec", "stages.json")["fine-tune"]
