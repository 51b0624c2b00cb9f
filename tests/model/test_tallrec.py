"""TALLRec's scores, loss and metrics against independent computations, with a small LLM tuned for two epochs."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from recbole_llm.data.loaders import eval_loader
from recbole_llm.data.rows import Rows, load_rows
from recbole_llm.prompt import Example
from recbole_llm.settings.config import Config
from recbole_llm.trainer.llm_trainer import LLMTrainer
from tests.processes import forked_python
from tests.refusals import refused
from tests.runs import Finished, words_for, working_in
from tests.worlds import make_world

LABELLED = ("--threshold={'rating': 4}", "--valid_metric=AUC")
BESIDE = (*LABELLED, "--eval_args={mode: labeled}", "--train_sample_size=16")


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world in which i3 has no title."""
    folder = make_world(tmp_path_factory.mktemp("data") / "rated", n_users=12, n_items=20, seed=1)
    cells = [line.split("\t") for line in (folder / "rated.item").read_text().splitlines()]
    lines = ["\t".join([row[0], "" if row[0] == "i3" else row[1], *row[2:]]) for row in cells]
    (folder / "rated.item").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def table(command: Callable[..., Finished], rated: Path) -> Finished:
    """LR, SASRec and TALLRec in one table of clicks."""
    return command("LR,SASRec,TALLRec", *BESIDE, world=rated)


def trainer_of(world: Path, saved: Path, *words: str) -> tuple[LLMTrainer, Rows]:
    """An untuned TALLRec with the session's tiny LLM."""
    usual = words_for("TALLRec", world, saved, *LABELLED, "--epochs=0", *words)
    config = Config("TALLRec", world.name, argv=[word for word in usual if not word.startswith("--model=")])
    rows = load_rows(config, True)
    with working_in(saved.parent):
        return LLMTrainer(config, config.model_class(config, rows.whole)), rows


@pytest.fixture(scope="module")
def tuned(table: Finished, rated: Path, saved: Path) -> tuple[LLMTrainer, Rows]:
    """TALLRec with the weights of the table."""
    trainer, rows = trainer_of(rated, saved, "--train_sample_size=16")
    trainer.load_adapter(table.folders["TALLRec"] / "adapter")
    trainer.model.eval()
    return trainer, rows


def batch_of(trainer: LLMTrainer, rows: Rows, phase: str) -> Any:
    """All rows of a phase in one batch."""
    return next(iter(eval_loader(trainer.config, rows, phase)))[0]


def clicks(finished: Finished, label: str, phase: str = "test") -> list[dict[str, str]]:
    with open(finished.folders[label] / f"{phase}_clicks.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------ score and loss


def test_a_score_is_the_log_ratio_of_the_two_answers_after_the_prompt(tuned):
    trainer, rows = tuned
    model, batch = trainer.model, batch_of(trainer, rows, "test")
    items = zip(model.histories(batch), model.likes(batch), batch["item_id"].tolist(), strict=True)
    expected = []
    for history, likes, target in items:
        if model.catalog.titles[target] is None:
            expected.append(0.0)
            continue
        tokenizer = model.backbone.tokenizer
        ids = tokenizer(model.prompts.text(Example(history, target, likes)), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            log_probs = model.llm(input_ids=ids).logits[0, -1].double().log_softmax(-1)
        yes, no = (tokenizer.convert_tokens_to_ids(answer) for answer in ("Yes", "No"))
        expected.append(float(log_probs[yes] - log_probs[no]))
    np.testing.assert_allclose(model.log_ratios(batch), expected, atol=1e-5)
    np.testing.assert_allclose(model.predict(batch), 1 / (1 + np.exp(-np.array(expected))), atol=1e-6)
    assert len(set(expected)) > 6
    assert model.generate_text(batch) == ["Yes." if ratio >= 0 else "No." for ratio in expected]


@pytest.mark.parametrize("tokens", [1, 300])
def test_the_size_of_batches_decides_no_score(tuned, monkeypatch, tokens):
    trainer, rows = tuned
    batch = batch_of(trainer, rows, "valid")
    together = trainer.model.log_ratios(batch)
    monkeypatch.setitem(trainer.config.final_config_dict, "generation_batch_tokens", tokens)
    np.testing.assert_allclose(trainer.model.log_ratios(batch), together, atol=1e-5)


def test_the_loss_is_that_of_the_answers_tokens_alone(tuned):
    trainer, rows = tuned
    model, batch = trainer.model, rows.train.inter_feat
    summed = n_tokens = 0.0
    for example, liked in zip(model.token_pairs(batch), batch["label"].tolist(), strict=True):
        if example is None:
            continue
        prompt, response = example
        assert model.backbone.decode(response[:-1]) == ("Yes." if liked else "No.")
        labels = torch.tensor([[-100] * len(prompt) + response])
        summed += model.llm(input_ids=torch.tensor([prompt + response]), labels=labels).loss.item() * len(response)
        n_tokens += len(response)
    assert model.calculate_loss(batch).item() == pytest.approx(summed / n_tokens, abs=1e-4)


def test_a_row_without_a_titled_target_is_neither_trained_on_nor_told(tuned):
    trainer, rows = tuned
    model, batch = trainer.model, rows.whole.inter_feat
    untitled = torch.tensor([model.catalog.titles[item] is None for item in batch["item_id"].tolist()])
    assert untitled.any()
    assert [example is None for example in model.token_pairs(batch)] == untitled.tolist()
    ratios = model.log_ratios(batch)
    assert (ratios[untitled] == 0).all() and (ratios[~untitled] != 0).all()


@pytest.mark.slow
def test_instance_wise_lora_runs_too(rated, saved):
    trainer, rows = trainer_of(rated, saved, "--adapter=ilora", "--train_sample_size=16")
    scores = trainer.model.eval().predict(batch_of(trainer, rows, "test"))
    assert len(set(scores.tolist())) > 6


# ------------------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("label", ["LR", "LR (16 rows)", "SASRec", "SASRec (16 rows)", "TALLRec"])
def test_the_tables_numbers_are_those_of_its_clicks(table, label):
    for phase, metrics in (("valid", table.result(label).valid), ("test", table.result(label).test)):
        told = clicks(table, re.sub("[ ()]", "-", label), phase)  # as the run folder is named
        labels, scores = (np.array([float(row[column]) for row in told]) for column in ("label", "score"))
        liked, others = scores[labels == 1], scores[labels == 0]
        wins = (liked[:, None] > others).sum() + 0.5 * (liked[:, None] == others).sum()
        assert metrics["auc"] == pytest.approx(wins / (len(liked) * len(others)), abs=1e-12)
        assert metrics["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert metrics["logloss"] == pytest.approx(log_loss(labels, scores), abs=1e-6)
        assert set(metrics) == {"auc", "logloss"}


def test_all_models_are_judged_on_each_users_last_item_and_its_label(table, rated):
    last: dict[str, tuple[float, str, int]] = {}
    for line in (rated / "rated.inter").read_text().splitlines()[1:]:
        user, item, rating, time = line.split("\t")
        last[user] = max(last.get(user, (0.0, "", 0)), (float(time), item, int(rating)))
    expected = sorted((user, item, str(int(rating >= 4))) for user, (_, item, rating) in last.items())
    for label in ("LR", "SASRec", "TALLRec"):
        found = sorted((row["user_id"], row["item_id"], row["label"]) for row in clicks(table, label))
        assert found == expected


def test_the_threshold_stands_in_log_and_table(table):
    for label in ("LR", "SASRec", "TALLRec"):
        assert "A like is rating >= 4: " in table.log(label)
        assert "a like is rating >= 4" in table.result(label).notes
    text = (table.results / "results.md").read_text(encoding="utf-8")
    assert "a like is rating >= 4" in text and "| AUC | LogLoss |" in text
    assert "TALLRec (adapter=lora, coreset=none)" in text and "grounding" not in table.result("TALLRec").point


def test_the_epoch_is_chosen_by_auc(table):
    history = table.json("TALLRec", "history.json")
    best = max(history, key=lambda record: record["valid"]["auc"])
    assert table.result("TALLRec").best_epoch == best["epoch"]
    assert table.result("TALLRec").valid == pytest.approx(best["valid"], abs=1e-12)


def test_a_saved_adapter_gives_the_same_scores_in_a_new_process(table, tuned):
    trainer, rows = tuned
    batch, model = batch_of(trainer, rows, "test"), trainer.model
    prompts = [prompt for prompt in model.row_prompts(batch) if prompt is not None]
    code = (
        "import json, sys, torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n"
        "base, adapter, prompts, (no, yes) = json.loads(sys.argv[1])\n"
        "llm = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()\n"
        "with torch.no_grad():\n"
        "    logits = [llm(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in prompts]\n"
        "print(json.dumps([float(row[yes] - row[no]) for row in logits]))\n"
    )
    folders = [str(table.stage("TALLRec", "tiny-llm")), str(table.folders["TALLRec"] / "adapter")]
    asked = [*folders, prompts, model.prompts.answer_token_ids]
    done = forked_python(code, json.dumps(asked))
    ratios = np.array(json.loads(done.stdout.splitlines()[-1]))
    scores = [float(row["score"]) for row in clicks(table, "TALLRec") if float(row["score"]) != 0.5]
    np.testing.assert_allclose(1 / (1 + np.exp(-ratios)), scores, atol=1e-5)


def test_other_labels_are_another_fine_tuning(command, table, rated):
    other = command("TALLRec", *LABELLED, "--threshold={'rating': 3}", "--train_sample_size=16", world=rated)
    assert other.stage("TALLRec", "fine-tune") != table.stage("TALLRec", "fine-tune")
    assert "a like is rating >= 3" in other.result("TALLRec").notes


def test_the_tiny_llm_has_single_tokens_for_both_answers(tuned):
    tokenizer = tuned[0].model.backbone.tokenizer
    for answer in ("Yes", "No"):
        assert len(tokenizer(answer, add_special_tokens=False)["input_ids"]) == 1


# --------------------------------------------------------------------------------------------------------------- config


def test_ml_100k_has_a_threshold_for_clicks_alone():
    config = Config("TALLRec", "ml-100k")
    assert (config["threshold"], config["valid_metric"], config["metrics"]) == (
        {"rating": 4},
        "AUC",
        ["AUC", "LogLoss"],
    )
    assert Config("SASRec", "ml-100k")["threshold"] is None
    asked = Config("SASRec", "ml-100k", config_dict={"eval_args": {"mode": "labeled"}})
    assert (asked.task, asked["threshold"], asked["valid_metric"]) == ("click", {"rating": 4}, "AUC")
    assert asked["train_neg_sample_args"]["distribution"] == "none"
    assert Config("FM", "ml-100k", config_dict={"threshold": {"rating": 3}})["threshold"] == {"rating": 3}


def test_the_papers_setting_is_complete():
    config = Config("TALLRec", "ml-100k", config_file_list=["paper/tallrec.yaml"])
    expected = {"lora_r": 8, "train_batch_size": 128, "epochs": 200, "train_sample_size": 64, "stopping_step": 10}
    assert {key: config[key] for key in expected} == expected and config["llm_path"] == "huggyllama/llama-7b"


def test_a_click_model_ranks_no_catalogue(tuned):
    trainer, rows = tuned
    with refused("eval_args", "conflict", "TALLRec predicts clicks"):
        trainer.model.full_sort_predict(batch_of(trainer, rows, "test"))
