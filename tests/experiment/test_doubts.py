"""Runs with a planted fault warn in log, folder and table; a sound one does not; the epoch by the loss alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recbole_llm
from recbole_llm import Run
from recbole_llm.data.rows import load_rows
from recbole_llm.experiment.load import load_run
from recbole_llm.model import free_answers
from tests.refusals import refused
from tests.runs import working_in
from tests.worlds import ADJECTIVES

TINY = {"llm_path": "tiny", "tiny_steps": 30, "tiny_n_layers": 1, "tiny_hidden_size": 32, "tiny_vocab_size": 512}
SOUND = {**TINY, "adapter": "full", "learning_rate": 0.01, "lr_scheduler": "constant", "warmup_steps": 0, "epochs": 14}


@pytest.fixture(scope="module")
def start(small_llm: dict[str, Any], saved: Path) -> Any:
    """``start(**settings)``: a BIGRec on the world."""
    saved.mkdir(parents=True, exist_ok=True)

    def start(model: str = "BIGRec", **settings: Any) -> Run:
        with working_in(saved.parent):
            return recbole_llm.run(model, "world", **{**small_llm, "train_batch_size": 8, **settings})

    return start


def test_a_sound_run_is_not_doubted(start, monkeypatch):
    """It learns, and answers each row with another title."""
    titles = itertools.cycle(f'"{adjective} River"' for adjective in ADJECTIVES)
    monkeypatch.setattr(free_answers.FreeAnswers, "_text_of", lambda self, answer: next(titles))
    run = start(**SOUND, eval_step=0, stopping_step=0)
    assert run.warnings == () and run.summary["valid_loss"] > 0
    assert run.summary["top_answer"] == pytest.approx(2 / 12)
    assert run.summary["distinct_answers"] == pytest.approx(10 / 12)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"learning_rate": 1e-9, "warmup_steps": 0}, "fine-tune: the training loss never fell below 0.97 of"),
        ({**SOUND, "epochs": 1, "warmup_steps": 20}, "fine-tune: warmup_steps takes 20 of"),
        ({"model": "SOFT", "alpha": 0, "distance_rows": 4}, "curriculum: the weight of the distilled answers never"),
    ],
)
def test_a_planted_fault_is_told_in_log_folder_and_table(start, caplog, settings, expected):
    run = start(**settings)
    (told,) = [line for line in run.warnings if line.startswith(expected)]
    assert f"{run.result.model}: {told}" in next(run.folder.glob("*.log")).read_text(encoding="utf-8")
    again = load_run(run.folder)
    assert again.warnings == run.warnings and again.summary == run.summary and again.result == run.result
    table = recbole_llm.ResultTable((run.result,))
    assert f"{run.result.model} !" in table.text() and f"! {run.result.model}: {told}" in table.text()
    assert f"- ! {run.result.model}: {told}" in table.markdown() and told in table.csv()
    assert recbole_llm.ResultTable.from_json(table.json()) == table


def test_answers_that_are_all_the_same_are_told_and_pop_is_not_blamed(start, small, saved, monkeypatch):
    monkeypatch.setattr(free_answers.FreeAnswers, "_text_of", lambda self, answer: '"Silent River"')
    run = start(epochs=0)
    assert run.summary["distinct_answers"] == 1 / 12 and run.summary["top_answer"] == 1
    assert run.warnings == ("one answer is given to 100% of 12 rows, more than 30%",)
    with working_in(saved.parent):
        pop = recbole_llm.run("Pop", "world", **small)
    assert pop.summary == {"distinct_answers": 1 / 12, "top_answer": 1.0} and pop.warnings == ()


# ---------------------------------------------------------------------------------------------- the epoch by its loss


def row_by_row(run: Run) -> float:
    """Loss per token of the validation rows' answers, each row in a pass of its own over the whole sequence."""
    model = run.model
    rows = load_rows(run.config, few_shot=True).valid.inter_feat
    total, n_tokens = 0.0, 0
    for (prompt, response), history in zip(model.token_pairs(rows), model.histories(rows), strict=True):
        with torch.no_grad(), model.conditioned_on([history]):
            logits = model.llm(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        total -= logits.double().log_softmax(-1)[range(len(response)), response].sum().item()
        n_tokens += len(response)
    return total / n_tokens


@pytest.mark.parametrize(
    "model", ["BIGRec", *(pytest.param(name, marks=pytest.mark.slow) for name in ("TALLRec", "SOFT"))]
)
def test_the_epoch_is_chosen_by_the_loss_and_nothing_is_generated_meanwhile(start, monkeypatch, model):
    asked, search = [], free_answers.beam_search
    monkeypatch.setattr(
        free_answers, "beam_search", lambda *args, **options: asked.append(1) or search(*args, **options)
    )
    own: dict[str, Any] = {"SOFT": {"curriculum": "fixed:0.5", "distance_rows": 4}}.get(model, {})
    own |= {**TINY, "threshold": {"rating": 4}} if model == "TALLRec" else {}
    settings = {
        "valid_metric": "loss",
        "epochs": 3,
        "eval_step": 1,
        "stopping_step": 0,
        "learning_rate": 0.05,
        "warmup_steps": 0,
    }
    run = start(model, **{**settings, **own})
    losses = [record["valid"]["loss"] for record in run.history]
    assert [list(record["valid"]) for record in run.history] == [["loss"]] * 3 and len(set(losses)) == 3
    before = 3 if model == "SOFT" else 0
    assert run.result.best_epoch == before + 1 + int(np.argmin(losses))
    assert run.summary["valid_loss"] == min(losses) == pytest.approx(row_by_row(run), rel=1e-5)
    # Validation and test of each stage; ten rows for the report, once; SOFT distils as well.
    n_searches = {"BIGRec": 2 + 1, "TALLRec": 0, "SOFT": 5 + 1}[model]
    assert len(asked) == n_searches
    assert json.loads((run.folder / "metrics.json").read_text())["summary"]["valid_loss"] == min(losses)


def test_by_a_metric_the_loss_is_told_beside_it(start):
    run = start(epochs=1, valid_metric="NDCG@10")
    assert run.history[0]["valid_loss"] == run.summary["valid_loss"] == pytest.approx(row_by_row(run), rel=1e-5)
    untuned = start(epochs=0)
    assert untuned.summary["valid_loss"] == pytest.approx(row_by_row(untuned), rel=1e-5)
    assert "loss" not in run.valid_metrics


@pytest.mark.slow
def test_among_candidates_the_loss_chooses_too(start):
    run = start(epochs=2, candidates=4, valid_metric="loss", stopping_step=0, learning_rate=0.05, warmup_steps=0)
    assert [list(record["valid"]) for record in run.history] == [["loss"]] * 2 and "hit_ratio" in run.metrics


def test_models_without_a_prompt_keep_their_own_metric(small, saved):
    with working_in(saved.parent):
        run = recbole_llm.run("SASRec", "world", **{**small, "valid_metric": "loss", "epochs": 1})
    assert run.config["valid_metric"] == "MRR@10" and run.config["valid_metric_bigger"] is True


def test_rows_without_titles_cannot_be_chosen_by(start, monkeypatch):
    monkeypatch.setattr("recbole_llm.trainer.valid_loss.ValidLoss.measure", lambda self: None)
    with refused("valid_metric", "data", "valid_metric: no validation row has a titled history"):
        start(epochs=1, valid_metric="loss", seed=7)
