"""How long presets and the papers' files train, on how many rows, and by what they choose: the papers' own regimes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from recbole_llm.property_files import find_properties, load_yaml
from recbole_llm.settings.defaults import few_shot_regime
from recbole_llm.settings.resolve import resolve
from recbole_llm.settings.training import FineTuneSettings

LIKES = {"threshold": {"rating": 4}}
PRESETS: dict[str, tuple[dict[str, Any], int, int]] = {  # settings, rows trained on, steps of the paper's run
    "DEALRec": ({}, 1024, 400),
    "GORACS": ({}, 1024, 400),
    "TALLRec": (LIKES, 64, 200),
}
PAPERS: dict[str, tuple[str, dict[str, Any], int, int]] = {  # model, settings, rows, epochs between validations
    "bigrec": ("BIGRec", {}, 1024, 1),
    "dealrec": ("DEALRec", {}, 1024, 10),
    "goracs": ("GORACS", {}, 1024, 10),
    "goracs-click": ("GORACS", {"llm_recommender": "TALLRec"}, 64, 10),
    "tallrec": ("TALLRec", LIKES, 64, 10),
}


def steps_and_warmup(settings: Any, rows: int) -> tuple[int, int]:
    """Optimiser steps of a training on so many rows, and those of its warm-up."""
    steps = math.ceil(rows / settings["train_batch_size"]) * settings["epochs"]
    whole = FineTuneSettings.from_settings(settings)
    assert whole.steps(rows) == steps
    return steps, whole.warmup(steps)


@pytest.mark.parametrize("model", PRESETS)
@pytest.mark.parametrize("llm", ["tiny", "some/llm"])
def test_few_shot_presets_train_as_the_papers_do_with_any_llm(model, llm):
    own, rows, steps = PRESETS[model]
    found = resolve(model, "ml-100k", {**own, "llm_path": llm}).final
    assert (found["coreset_size"] if model != "TALLRec" else found["train_sample_size"]) == rows
    assert steps_and_warmup(found, rows) == (steps, 20) and 20 <= steps / 5
    assert found["valid_metric"] == ("AUC" if model == "TALLRec" else "loss") and found["lr_scheduler"] == "linear"
    assert found["stopping_step"] == (10 if model == "TALLRec" else 0) and found["eval_step"] == 10
    assert found["learning_rate"] == (0.003 if llm == "tiny" else 1e-4)  # what suits the model is the LLM's


def test_with_the_tiny_llm_coresets_choose_from_as_many_rows_as_it_trains_on():
    assert resolve("DEALRec", "ml-100k", {}).final["train_sample_size"] == 8192
    assert resolve("DEALRec", "ml-100k", {"llm_path": "some/llm"}).final["train_sample_size"] is None


def test_only_models_that_say_on_how_many_rows_they_train_keep_their_regime():
    assert few_shot_regime({"epochs": 5}) == {}
    assert few_shot_regime({"epochs": 5, "train_sample_size": None, "lora_r": 4}) == {"epochs": 5}
    tiny = load_yaml(find_properties() / "llm" / "tiny.yaml")
    found = resolve("BIGRec", "ml-100k", {}).final
    assert {key: found[key] for key in tiny} == tiny


def test_what_the_user_sets_wins_over_a_regime():
    assert resolve("DEALRec", "ml-100k", {"epochs": 2, "valid_metric": "NDCG@10"}).final["epochs"] == 2


@pytest.mark.parametrize("llm", ["tiny", "some/llm"])
def test_soft_trains_at_a_constant_rate_and_tries_the_papers_alphas(llm):
    soft, bigrec = (resolve(model, "ml-100k", {"llm_path": llm}).final for model in ("SOFT", "BIGRec"))
    assert soft["lr_scheduler"] == bigrec["lr_scheduler"] == "constant" and soft["alpha"] == [100, 10, 1, 0.1]
    same = ("epochs", "learning_rate", "train_batch_size", "warmup_steps", "valid_metric", "stopping_step")
    assert {key: soft[key] for key in same} == {key: bigrec[key] for key in same}


@pytest.mark.parametrize("paper", PAPERS)
def test_the_papers_files_validate_as_the_authors_did(paper):
    model, own, rows, eval_step = PAPERS[paper]
    settings = {**load_yaml(find_properties() / "paper" / f"{paper}.yaml"), **own}
    found = resolve(model, "ml-100k", settings).final
    steps, warmup = steps_and_warmup(found, rows)
    assert warmup == 20 <= steps / 5 and found["eval_step"] == eval_step
    assert found["valid_metric"] == ("AUC" if paper == "tallrec" else "loss")
    if paper in ("dealrec", "goracs"):
        assert found["stopping_step"] == 0 and 4 <= found["epochs"] // eval_step <= 5


@pytest.mark.parametrize("model", ["BIGRec", "SOFT", "LLaRA", "iLoRA", "TALLRec", "DEALRec", "GORACS"])
@pytest.mark.parametrize("written", ["loss", "Loss"])
def test_every_llm_model_can_be_chosen_by_its_loss(model, written):
    own = LIKES if model == "TALLRec" else {}
    assert resolve(model, "ml-100k", {**own, "valid_metric": written}).final["valid_metric"] == "loss"


def test_among_candidates_too_and_recboles_models_keep_their_own():
    found = resolve("BIGRec", "ml-100k", {"candidates": 20, "valid_metric": "loss"}).final
    assert found["valid_metric"] == "loss"
    assert resolve("SASRec", "ml-100k", {"valid_metric": "loss"}).final["valid_metric"] == "MRR@10"
    assert resolve("SASRec", "ml-100k", {"valid_metric": "loss", "topk": [5]}).final["valid_metric"] == "MRR@5"
    assert resolve("LR", "ml-100k", {"valid_metric": "loss"}).final["valid_metric"] == "AUC"


def test_the_demo_tunes_on_all_rows_in_trunks_and_pays_for_no_beam_that_it_does_not_show():
    demo = load_yaml(find_properties() / "demo.yaml")
    for model in ("BIGRec", "SOFT"):
        found = resolve(model, "ml-100k", demo).final
        assert (found["train_sample_size"], found["train_unit"], found["test_sample_size"]) == (None, "user", None)
        assert found["num_beams"] == max(found["topk"]) and found["valid_metric"] == "loss"
