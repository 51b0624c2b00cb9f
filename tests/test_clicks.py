"""Models of clicks through the command: which stand side by side, and what is refused in one line."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_llm.classic.by_labels import by_labels
from recbole_llm.settings.models import CLICK_IF_ASKED, find_model, task_of
from tests.worlds import side_file_settings

LABELLED = ("--eval_args={mode: labeled}", "--valid_metric=AUC")
THRESHOLD = "--threshold={'rating': 4}"


def clicks(folder: Path) -> list[list[str]]:
    with open(folder / "test_clicks.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


@pytest.mark.parametrize("asked", [("DIN", "SASRec"), pytest.param(CLICK_IF_ASKED, marks=pytest.mark.slow)])
def test_recboles_models_of_clicks_stand_side_by_side(command: Callable[..., Any], asked: tuple[str, ...]):
    columns = side_file_settings("DIN")["load_col"]
    models = ",".join(["LR", "FM", *asked])
    done = command(models, *LABELLED, THRESHOLD, f"--load_col={columns}", "--train_sample_size=16", "--epochs=1")
    assert done.status == 0
    labels = {f"{name}{rows}" for name in models.split(",") for rows in ("", " (16 rows)")}
    assert {result.model for result in done.table.results} == labels
    rows = [[row[:3] for row in clicks(folder)] for folder in done.folders.values()]
    assert all(own == rows[0] for own in rows)
    for result in done.table.results:
        assert set(result.test) == {"auc", "logloss"} and all(map(math.isfinite, result.test.values()))


@pytest.mark.parametrize("name", CLICK_IF_ASKED)
def test_a_sequential_model_predicts_clicks_only_if_asked(name):
    model_class = find_model(name)
    assert (task_of(model_class), task_of(model_class, by_labels=True)) == ("next-item", "click")


def test_a_sequential_models_own_score_is_the_logit_of_a_like():
    class Scores(torch.nn.Module):
        """A model whose score is a column of the rows."""

        type = find_model("SASRec").type

        def __init__(self, config: Any, dataset: Any) -> None:
            super().__init__()

        def predict(self, interaction: Any) -> torch.Tensor:
            return interaction["score"]

    rows = {"score": torch.tensor([0.3, -2.0, 40.0]), "label": torch.tensor([1.0, 0.0, 0.0])}
    model = by_labels(Scores)({"LABEL_FIELD": "label"}, None)
    chances = [1 / (1 + math.exp(-score)) for score in rows["score"].tolist()]
    assert model.predict(rows).tolist() == pytest.approx(chances, abs=1e-12)
    expected = (math.log1p(math.exp(-0.3)) + math.log1p(math.exp(-2.0)) + 40) / 3
    assert model.calculate_loss(rows).item() == pytest.approx(expected, abs=1e-6)
    assert by_labels(Scores) is by_labels(Scores) and by_labels(find_model("FM")) is find_model("FM")


@pytest.mark.parametrize(
    ("models", "words", "message"),
    [
        (
            "SASRec,TALLRec",
            [THRESHOLD, "--TALLRec.valid_metric=AUC"],
            'TALLRec predicts clicks and SASRec ranks items: .*--eval_args="{mode: labeled}',
        ),
        (
            "BIGRec,TALLRec",
            [THRESHOLD, "--TALLRec.valid_metric=AUC"],
            "model: TALLRec predicts clicks and BIGRec ranks items: they cannot share a table",
        ),
        ("FM,Pop", [THRESHOLD, "--FM.valid_metric=AUC"], "model: FM predicts clicks and Pop ranks items"),
        (
            "Pop",
            LABELLED,
            "mode: Pop ranks items, so 'labeled' does not apply; .*by labels are evaluated: TALLRec, FM, LR",
        ),
        ("BPR,TALLRec", [*LABELLED, THRESHOLD], "mode: BPR ranks items, so 'labeled' does not apply"),
        ("BIGRec", LABELLED, "mode: BIGRec ranks items, so 'labeled' does not apply"),
        (
            "SASRec",
            LABELLED,
            "LABEL_FIELD: SASRec predicts clicks, and 'world' has no column 'label' for them; name the",
        ),
        ("TALLRec", [], "LABEL_FIELD: TALLRec predicts clicks, .*--threshold=\"{'rating': 4}\""),
        ("TALLRec", ["--threshold={'stars': 4}"], "threshold: world.inter has no column 'stars', it has user_id"),
        ("TALLRec", ["--threshold={'user_id': 4}"], "threshold: column 'user_id' .* has type token, not float"),
        ("TALLRec", ["--threshold={'rating': high}"], "threshold: {'rating': 'high'} is not allowed; give one column"),
        ("TALLRec", ["--threshold={}"], "threshold: {} is not allowed; give one column and a number"),
        ("TALLRec", ["--threshold=4"], "threshold: 4 is not allowed; give one column and a number"),
        ("TALLRec", ["--threshold={'rating': 0}"], "threshold: with rating >= 0 all 12 valid rows have the label 1"),
        ("TALLRec", [THRESHOLD, "--curriculum=adaptive"], "curriculum: TALLRec .*'adaptive' does not apply; leave cur"),
        ("TALLRec", [THRESHOLD, "--grounding=likelihood"], "grounding: TALLRec .*does not apply; leave grounding out"),
        ("TALLRec", [THRESHOLD, "--grounding=embedding"], "grounding: TALLRec .*does not apply; leave grounding out"),
        ("TALLRec", [THRESHOLD, "--reweight=popularity"], "reweight: TALLRec .*does not apply; leave reweight out"),
        ("SOFT", [THRESHOLD, "--llm_recommender=TALLRec"], "curriculum: SOFT .*does not apply; leave curriculum out"),
        ("TALLRec", [THRESHOLD, "--metrics=NDCG"], "metrics: TALLRec predicts clicks, so 'NDCG' does not apply"),
        ("TALLRec", [THRESHOLD, "--eval_args={mode: full}"], "mode: TALLRec predicts clicks, so 'full' does not apply"),
        (
            "SASRec",
            [THRESHOLD, "--eval_args={mode: {valid: labeled, test: full}}"],
            "so 'full' does not apply; give labe",
        ),
        (
            "FM",
            [THRESHOLD, "--train_neg_sample_args={distribution: uniform}"],
            "train_neg_sample_args: FM learns from lab",
        ),
        ("FM,LR", [THRESHOLD, "--LR.threshold={'rating': 3}"], "LR would be evaluated on other rows than FM"),
        ("TALLRec", [THRESHOLD, "--prompt_style=chat"], "prompt_style: .*no chat template; choose alpaca or plain"),
        (
            "TALLRec",
            [THRESHOLD, "--prompt_style=list"],
            "prompt_style: list needs the history at the end of the prompt; choose plain",
        ),
        ("TALLRec", [THRESHOLD, "--max_prompt_tokens=20"], "max_prompt_tokens: 20 is too short .*; raise it"),
    ],
)
def test_what_does_not_go_together_is_told_in_one_line(command, capsys, models, words, message):
    usual = ("--valid_metric=AUC",) if models in ("TALLRec", "SOFT", "FM", "SASRec", "FM,LR") else ()
    done = command(models, *usual, *words)
    lines = capsys.readouterr().err.rstrip("\n").split("\n")
    assert done.status == 2 and done.results is None
    assert lines[-1].startswith("recbole-llm: error: ") and "Traceback" not in "".join(lines)
    assert re.search(message, lines[-1])


def test_an_llm_that_splits_the_answers_is_refused(command, capsys, llama):
    done = command("TALLRec", THRESHOLD, "--valid_metric=AUC", f"--llm_path={llama}")
    assert done.status == 2
    assert "llm_path: its tokenizer needs single tokens for Yes and No" in capsys.readouterr().err
