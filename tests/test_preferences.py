"""The axis ``preference`` through the command: its stages, their first step, a broken run that goes on, rounds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import recbole_llm
from recbole_llm.trainer import finetune
from tests.runs import Finished

ALL_ROWS = "--BIGRec.train_batch_size=64"  # one step per epoch


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``checkpoint_dir`` of this module, whose stages its tests share."""
    return tmp_path_factory.mktemp("preferences") / "saved"


@pytest.fixture(scope="module")
def tuned(command: Any, stages: Path, llama: Path) -> Callable[..., Finished]:
    """``tuned("--preference=dpo")``: BIGRec, tuned for an epoch and then by preference."""
    sizes = ("--train_sample_size=24", "--valid_sample_size=6", "--test_sample_size=6", "--lr_scheduler=constant")
    own = ("--BIGRec.learning_rate=0.05", "--BIGRec.train_batch_size=8", "--epochs=1", "--stopping_step=0")

    def run(*more: str, saved: Path = stages) -> Finished:
        finished = command("BIGRec", f"--llm_path={llama}", *sizes, *own, "--pref_epochs=2", *more, saved=saved)
        assert finished.status == 0
        return finished

    return run


def adapter_of(finished: Finished) -> dict[str, torch.Tensor]:
    return load_file(finished.folders["BIGRec"] / "adapter" / "adapter_model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def count(saved: Path, stage: str) -> int:
    return len([folder for folder in (saved / "stages").glob(f"{stage}-*") if folder.is_dir()])


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        ("rpo", math.log(2)),
        pytest.param("rpo_diagonal", math.log(2), marks=pytest.mark.slow),
        pytest.param("dpo", math.log(2), marks=pytest.mark.slow),
        pytest.param("sdpo", math.log(4), marks=pytest.mark.slow),
    ],
)
def test_the_first_step_of_the_real_stage_is_log_2_per_term(preference, expected, tuned):
    finished = tuned(f"--preference={preference}", ALL_ROWS, "--rpo_prompts=llm")
    first, second = finished.json("BIGRec", "history.json")
    assert first["train_loss"] == pytest.approx(expected, abs=1e-4)
    assert second["train_loss"] < first["train_loss"] and second["right_ratio"] > second["wrong_ratio"]
    assert abs(first["right_ratio"]) < 1e-3 and f"preference={preference}" in finished.result("BIGRec").point


@pytest.mark.slow
def test_likeness_of_histories_is_the_recommenders_by_default(tuned):
    finished = tuned("--preference=rpo", ALL_ROWS)
    assert finished.json("BIGRec", "history.json")[0]["train_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert "auxiliary-SASRec" in finished.json("BIGRec", "stages.json")


def test_strengths_share_the_fine_tuning_and_the_reference_and_the_best_is_kept(tuned, tmp_path):
    saved = tmp_path / "saved"
    finished = tuned("--preference=sdpo", "--pref_beta=[0.05,2.0]", saved=saved)
    assert [count(saved, stage) for stage in ("fine-tune", "reference", "preference")] == [1, 1, 2]
    kept = finished.json("BIGRec", "preference.json")
    found = {}
    for folder in (saved / "stages").glob("preference-*"):
        beta = json.loads((folder / "stage.json").read_text())["facts"]["preference"]["beta"]
        history = json.loads((folder / "history.json").read_text())
        found[beta] = (max(record["valid"]["ndcg@10"] for record in history), folder)
    best = max(found, key=lambda beta: found[beta][0])
    assert found[kept["beta"]][0] == found[best][0]
    assert equal(load_file(found[kept["beta"]][1] / "adapter" / "adapter_model.safetensors"), adapter_of(finished))
    lines = (finished.folders["BIGRec"] / "stage_table.md").read_text()
    assert "fine-tune, test" in lines and "preference, test" in lines


@pytest.mark.parametrize(
    "more",
    [
        ("--negatives_resample=True", "--mask_user_train=True", "--pref_nll_weight=0.5"),
        pytest.param((), marks=pytest.mark.slow),
    ],
)
def test_a_stage_that_stops_after_an_epoch_goes_on_as_if_nothing_had_been(more, tuned, tmp_path, monkeypatch):
    words = ("--preference=dpo", "--pref_negatives=popular", *more)
    whole, save, calls = tuned(*words), finetune.save_state, []

    def save_and_stop(folder: Path, state: Any) -> None:
        save(folder, state)
        calls.append(folder.parent.name)
        if folder.parent.name.startswith("preference"):
            raise KeyboardInterrupt

    saved = tmp_path / "saved"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "save_state", save_and_stop)
        tuned(*words, saved=saved)
    assert len(calls) == 2
    resumed = tuned(*words, saved=saved)
    assert "Resuming after epoch 1" in resumed.log("BIGRec")
    assert equal(adapter_of(whole), adapter_of(resumed)) and whole.ranks("BIGRec") == resumed.ranks("BIGRec")
    loaded = recbole_llm.load_run(resumed.folders["BIGRec"])
    best = loaded.recommend(users=loaded.users[:2], k=3)
    assert len(best) == 6
    assert best.equals(recbole_llm.load_run(whole.folders["BIGRec"]).recommend(users=loaded.users[:2], k=3))


def test_rounds_answer_tune_and_prefer_one_after_the_other(tuned, stages):
    finished = tuned("--preference=sprec", "--pref_rounds=2", "--pref_round_rows=10", "--pref_epochs=1")
    used = finished.json("BIGRec", "stages.json")
    each = ("answers-{}", "round-{}-fine-tune", "round-{}-reference", "round-{}")
    assert {name.format(number) for number in (1, 2) for name in each} < set(used)
    facts = {
        name: json.loads((stages / "stages" / used[name] / "stage.json").read_text())["facts"] for name in sorted(used)
    }
    assert facts["answers-1"]["from"] == used["fine-tune"] == facts["round-1-fine-tune"]["from"]
    assert facts["round-1"]["preference"]["from"] == used["round-1-fine-tune"]
    assert facts["answers-2"]["from"] == used["round-1"] == facts["round-2-fine-tune"]["from"]
    wrong = np.load(stages / "stages" / used["answers-1"] / "values.npy")
    assert wrong.shape == (10, 1) and (wrong > 0).any()
    assert finished.json("BIGRec", "preference.json")["stage"] in ("round-1", "round-2")


def test_without_fine_tuning_the_bare_llm_is_start_and_reference(tuned):
    finished = tuned("--preference=dpo", ALL_ROWS, "--epochs=0")
    first, second = finished.json("BIGRec", "history.json")
    assert first["train_loss"] == pytest.approx(math.log(2), abs=1e-4) and second["train_loss"] < first["train_loss"]
    used = finished.json("BIGRec", "stages.json")
    assert {"reference", "preference"} <= set(used) and "fine-tune" not in used
    run = recbole_llm.load_run(finished.folders["BIGRec"])
    trained = {name: weight for name, weight in adapter_of(finished).items() if "lora_B" in name}
    assert any(weight.any() for weight in trained.values())
    assert run.metrics == pytest.approx(dict(finished.result("BIGRec").test))


@pytest.mark.slow
def test_candidates_of_a_prompt_are_its_wrong_answers(tuned, stages):
    words = ("--candidates=4", "--preference=sdpo", "--pref_negatives=in_prompt", ALL_ROWS)
    finished = tuned(*words)
    first = finished.json("BIGRec", "history.json")[0]
    assert first["train_loss"] == pytest.approx(math.log(4), abs=1e-4)  # each row has three others in its prompt
    assert (finished.folders["BIGRec"] / "test_answers.csv").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preference", "kind"),
    [("dpo", "raw"), pytest.param("sdpo", "grounded", marks=pytest.mark.slow), ("rpo", "grounded")],
)
def test_own_answers_are_wrong_ones_without_rounds_too(preference, kind, tuned, stages):
    words = (f"--preference={preference}", "--pref_negatives=self_generated", f"--self_negative={kind}", ALL_ROWS)
    finished = tuned(*words, "--rpo_prompts=none")
    used = finished.json("BIGRec", "stages.json")
    wrong = np.load(stages / "stages" / used["answers"] / "values.npy")
    assert wrong.shape == (24, 1) and (wrong > 0).any() is np.bool_(kind == "grounded")
    assert finished.json("BIGRec", "history.json")[0]["train_loss"] == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.slow
def test_rounds_against_texts_as_they_are(tuned, stages):
    finished = tuned("--preference=sprec", "--self_negative=raw", "--pref_rounds=1", "--pref_round_rows=8")
    folder = stages / "stages" / finished.json("BIGRec", "stages.json")["answers-1"]
    texts = json.loads((folder / "texts.json").read_text())
    assert len(texts) == 8 and any(texts)
    assert finished.json("BIGRec", "preference.json")["stage"] == "round-1"


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--adapter=full",), ("--adapter=ilora", "--lora_r=4", "--ilora_num_experts=2")])
def test_other_adapters_keep_no_second_copy_and_begin_at_log_2(words, tuned):
    finished = tuned("--preference=dpo", ALL_ROWS, *words)
    assert finished.json("BIGRec", "history.json")[0]["train_loss"] == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.slow
def test_soft_is_a_start_too(tuned):
    finished = tuned("--preference=dpo", "--curriculum=sd_only", ALL_ROWS)
    used = finished.json("BIGRec", "stages.json")
    assert {"fine-tune", "distil", "curriculum", "reference", "preference"} < set(used)
    assert (finished.folders["BIGRec"] / "curriculum.json").is_file()
    assert finished.json("BIGRec", "history.json")[0]["train_loss"] == pytest.approx(math.log(2), abs=1e-4)
