"""Candidates through the command: one list per row for all models, answers judged, and nothing ranked."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_llm.data.candidates import Candidates
from recbole_llm.evaluation import candidate_choice
from recbole_llm.evaluation.answers import answer_metrics
from recbole_llm.evaluation.candidate_choice import CandidateChoice, Picks
from recbole_llm.model.base import LLMRecommender
from recbole_llm.model.free_answers import FreeAnswers
from recbole_llm.prompt import Example
from recbole_llm.prompt.layout import Layout, slot_mark
from recbole_llm.settings.config import Config
from tests.refusals import refused
from tests.runs import Finished, histories_in

RATIOS = ("hit_ratio", "hit_ratio_valid", "valid_ratio")
NAMES = {name + rule for name in RATIOS for rule in ("", "_reference")}


@pytest.fixture(scope="module")
def words(llama: Path) -> tuple[str, ...]:
    return (f"--llm_path={llama}", "--candidates=5", "--epochs=1")


@pytest.fixture(scope="module")
def side_by_side(command: Callable[..., Finished], words: tuple[str, ...]) -> Finished:
    """LLaRA, SASRec and Pop in one command."""
    return command("LLaRA,SASRec,Pop", *words)


def answers(finished: Finished, label: str, phase: str = "test") -> list[dict[str, str]]:
    with open(finished.folders[label] / f"{phase}_answers.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lists(finished: Finished, label: str, phase: str = "test") -> dict[str, list[str]]:
    return {row["user_id"]: row["candidates"].split() for row in answers(finished, label, phase)}


@pytest.fixture(scope="module")
def titles(world: Path) -> dict[str, str]:
    lines = (world / f"{world.name}.item").read_text().splitlines()[1:]
    return {line.split("\t")[0]: line.split("\t")[1] for line in lines}


def test_one_table_of_models_that_choose(side_by_side):
    assert side_by_side.status == 0
    assert [result.model for result in side_by_side.table.results] == ["LLaRA", "SASRec", "Pop"]
    assert side_by_side.table.title == "Results among 5 candidates"
    for result in side_by_side.table.results:
        assert set(result.test) == set(result.valid) == NAMES
        assert "evaluated among 5 candidates per row, the target one of them" in result.notes
        assert list(side_by_side.folders[result.model].glob("*ranks*")) == []
    assert "candidates=5" in side_by_side.result("LLaRA").point
    head = side_by_side.table.text().splitlines()[0]
    assert re.search(r"HitRatio@1 +ValidRatio", head)


@pytest.mark.parametrize("phase", ["valid", "test"])
def test_all_models_choose_among_the_same_candidates(side_by_side, world, phase):
    listed = lists(side_by_side, "LLaRA", phase)
    assert listed == lists(side_by_side, "SASRec", phase) == lists(side_by_side, "Pop", phase)
    histories = histories_in(world)
    for row in answers(side_by_side, "LLaRA", phase):
        own, target = listed[row["user_id"]], row["item_id"]
        before = histories[row["user_id"]][: -1 if phase == "test" else -2][-10:]
        assert target == histories[row["user_id"]][-1 if phase == "test" else -2]
        assert own.count(target) == 1 and len(own) == len(set(own)) == 5
        assert not (set(own) - {target}) & set(before)


@pytest.mark.parametrize("label", ["LLaRA", "SASRec", "Pop"])
def test_metrics_are_those_of_the_written_answers(side_by_side, titles, label):
    rows = answers(side_by_side, label)
    texts = [row["answer"] for row in rows]
    listed = [[titles[item] for item in row["candidates"].split()] for row in rows]
    targets = [titles[row["item_id"]] for row in rows]
    for rule, ending in (("strict", ""), ("reference", "_reference")):
        expected = answer_metrics(texts, listed, targets, rule)
        result = side_by_side.result(label).test
        assert {name: result[name + ending] for name in RATIOS} == {name: expected[name] for name in RATIOS}
        assert sum(int(row["hit" + ending]) for row in rows) == expected["hits"]
        assert sum(int(row["valid" + ending]) for row in rows) == expected["valid"]
    if label != "LLaRA":
        assert side_by_side.result(label).test["valid_ratio"] == 1


def test_the_epoch_is_chosen_by_the_hit_ratio(command, words, monkeypatch):
    """Planted answers: only after the second epoch are they right."""
    calls: list[int] = []

    def right_the_second_time(self: Any, rows: Interaction) -> list[str]:
        calls.append(len(rows))
        return [self.catalog.titles[item] if len(calls) == 2 else "" for item in rows[self.ITEM_ID].tolist()]

    monkeypatch.setattr(LLMRecommender, "generate_text", right_the_second_time)
    more = ("--epochs=3", "--stopping_step=0", "--valid_metric=hit_ratio", "--train_sample_size=8", "--seed=3")
    finished = command("BIGRec", *words, *more)
    history = finished.json("BIGRec", "history.json")
    assert [record["valid"]["hit_ratio"] for record in history] == [0, 1, 0]
    assert all(set(record["valid"]) == NAMES for record in history)
    assert finished.result("BIGRec").best_epoch == 2 and finished.result("BIGRec").valid["hit_ratio"] == 1


def test_the_untuned_llm_and_a_sample_of_rows_see_the_same_lists(side_by_side, command, words):
    finished = command("BIGRec", *words, "--epochs=0", "--test_sample_size=4")
    assert finished.status == 0 and finished.result("BIGRec").best_epoch == 0
    listed, whole = lists(finished, "BIGRec"), lists(side_by_side, "LLaRA")
    assert len(listed) == 4 and listed == {user: whole[user] for user in listed}
    assert lists(command("BIGRec", *words, "--epochs=0", "--seed=7"), "BIGRec") == whole
    assert lists(command("BIGRec", *words, "--epochs=0", "--sample_seed=7"), "BIGRec") != whole


def test_prompts_list_the_candidates_of_their_row(command, words, titles, monkeypatch):
    """History, candidates, and behind each title of LLaRA's the slot of its item."""
    seen: list[Any] = []
    search = FreeAnswers._search

    def spy(self: Any, prompts: Any, histories: Any, all_beams: bool) -> Any:
        seen.append((self._model, prompts, histories))
        return search(self, prompts, histories, all_beams)

    monkeypatch.setattr(FreeAnswers, "_search", spy)
    finished = command("LLaRA", *words, "--epochs=0")
    model, prompts, histories = seen[-1]
    ids = model.catalog.tokens
    for prompt, history, own in zip(prompts, histories, answers(finished, "LLaRA"), strict=True):
        listed = own["candidates"].split()
        assert [ids[-token] for token in prompt if token < 0] == [ids[item] for item in history] + listed
        text = model.backbone.decode([token for token in prompt if token >= 0])
        quoted = [f'"{titles[item]}"' for item in listed]
        assert text.endswith(f"The new item is one of these items: {', '.join(quoted)}\n\n")
    model.config["candidates"] = None
    plain = model._make_prompts(model.config["max_prompt_tokens"])
    assert not any(
        set(plain.prompt(Example(history))) & {-i for i in range(1, 21) if i not in history} for history in histories
    )


def test_naming_the_target_is_a_hit_and_naming_another_is_not(command, words, monkeypatch):
    """Planted answers go through training, judge and table."""

    def target(self: Any, rows: Interaction) -> list[str]:
        return [f'"{self.catalog.titles[item]}"' for item in rows[self.ITEM_ID].tolist()]

    def another(self: Any, rows: Interaction) -> list[str]:
        pairs = zip(self.candidates.of(rows).tolist(), rows[self.ITEM_ID].tolist(), strict=True)
        return [self.catalog.titles[next(item for item in own if item != target)].upper() for own, target in pairs]

    for answer, hit_ratio, valid_ratio in (
        (target, 1, 1),
        (another, 0, 1),
        (lambda self, rows: [""] * len(rows), 0, 0),
    ):
        monkeypatch.setattr(LLMRecommender, "generate_text", answer)
        result = command("BIGRec", *words, "--epochs=0").result("BIGRec").test
        assert [result[name] for name in ("hit_ratio", "valid_ratio")] == [hit_ratio, valid_ratio]
        assert [result[name + "_reference"] for name in ("hit_ratio", "valid_ratio")] == [hit_ratio, valid_ratio]


@pytest.mark.parametrize("model", ["BIGRec", pytest.param("LLaRA", marks=pytest.mark.slow)])
def test_by_likelihood_every_answer_is_a_candidate(command, words, titles, model):
    finished = command(model, *words, "--grounding=likelihood", "--train_sample_size=16", "--max_new_tokens=1")
    assert finished.status == 0
    result = finished.result(model).test
    assert result["valid_ratio"] == result["valid_ratio_reference"] == 1
    assert result["hit_ratio"] == result["hit_ratio_reference"] == result["hit_ratio_valid"]
    for row in answers(finished, model):
        assert row["answer"] in [titles[item] for item in row["candidates"].split()]
    assert "item-embeddings" not in finished.json(model, "stages.json")
    assert finished.result(model).point.endswith("grounding=likelihood, candidates=5)")


@pytest.mark.slow
def test_soft_distils_prompts_with_candidates(command, words):
    finished = command("SOFT", *words, "--distance_rows=6", "--train_sample_size=16", "--SOFT.learning_rate=0.05")
    assert finished.status == 0
    assert {"distil", "initial-distance", "curriculum", "candidates-train"} <= set(finished.json("SOFT", "stages.json"))
    assert set(finished.result("SOFT").test) == NAMES
    assert "hit_ratio" in finished.json("SOFT", "history.json")[0]["valid"]
    assert (finished.folders["SOFT"] / "curriculum.png").is_file()
    stages = (finished.folders["SOFT"] / "stage_table.md").read_text()
    assert "HitRatio@1" in stages and "NDCG" not in stages


def test_nothing_can_be_ranked_by_prompts_with_candidates(command, words, monkeypatch):
    seen: list[Any] = []
    original = CandidateChoice.evaluate

    def spy(self: Any, trainer: Any, data: Any, show_progress: bool = False) -> Any:
        seen.append((trainer, data))
        return original(self, trainer, data, show_progress)

    monkeypatch.setattr(CandidateChoice, "evaluate", spy)
    assert command("BIGRec", *words, "--epochs=0").status == 0
    trainer, data = seen[-1]
    rows = data.dataset.inter_feat
    for ranks in (
        lambda: trainer.model.full_sort_predict(rows),
        lambda: trainer.model.predict(rows),
        lambda: trainer.evaluate(data),
    ):
        with pytest.raises(ValueError, match="prompts that hold the target rank nothing"):
            ranks()
    trainer.model.candidates = None
    with pytest.raises(ValueError, match="none were drawn: call set_candidates first"):
        trainer.model.token_pairs(rows)


def test_fewer_titles_than_candidates_are_all_listed_and_reported(command):
    finished = command("SASRec", "--candidates=20", "--epochs=1")
    sizes = [len(own) for own in lists(finished, "SASRec").values()]
    assert finished.status == 0 and max(sizes) < 20 and min(sizes) > 1
    message = f"12 test rows have fewer than 20 candidates (shortest list: {min(sizes)})"
    assert message in finished.log("SASRec")


def test_a_stored_list_without_its_target_is_refused(command, tmp_path, monkeypatch):
    def without(pairs: np.ndarray, *_: Any) -> np.ndarray:
        return np.repeat(1 + pairs[:, 1:] % 20, 5, axis=1)

    monkeypatch.setattr("recbole_llm.data.candidates.draw_candidates", without)
    with pytest.raises(ValueError, match="row 0 of valid: the target is not among the candidates"):
        command("SASRec", "--candidates=5", "--epochs=1", saved=tmp_path / "saved")


@pytest.mark.parametrize(
    ("models", "more", "message"),
    [
        ("BIGRec", ["--candidates=1"], "candidates: 1 is not allowed; give an integer >= 2 and <= 10000, or ~"),
        ("BIGRec", ["--candidates=many"], "candidates: 'many' is not allowed"),
        (
            "BIGRec",
            ["--grounding=constrained"],
            "grounding: 'constrained' ranks the catalogue.*set --grounding=embedding or likelihood, or leave",
        ),
        ("BIGRec", ["--reweight=popularity"], "reweight: 'popularity' ranks the catalogue.*set --reweight=none, or"),
        ("SASRec", ["--eval_args={mode: uni5}"], "eval_args: mode: 'uni5' samples items to rank.*leave candidates out"),
        ("SASRec,LLaRA", ["--LLaRA.candidates=~"], "candidates: SASRec has 5 and LLaRA None; .*give both the same"),
        ("LLaRA,SASRec", ["--SASRec.candidates=6"], "candidates: LLaRA has 5 and SASRec 6"),
        (
            "LLaRA,SASRec",
            ["--SASRec.sample_seed=6"],
            "sample_seed: LLaRA has 2020 and SASRec 6; .*candidates",
        ),
        ("LLaRA,Pop", ["--Pop.title_with=release_year"], "title_with: LLaRA has None and Pop release_year"),
        ("SASRec", ["--title_field=name"], "title_field: .* has no item field 'name'"),
        ("BIGRec", ["--max_prompt_tokens=215"], "max_prompt_tokens: 215 is too short for a prompt with its candidates"),
    ],
)
def test_what_does_not_go_together_is_one_line(command, words, capsys, models, more, message):
    own = words if {"LLaRA", "BIGRec"} & set(models.split(",")) else words[1:]
    finished = command(models, *own, *more)
    error = capsys.readouterr().err.rstrip("\n").split("\n")[-1]
    assert finished.status == 2 and finished.results is None
    assert re.search(message, error), error


def test_click_models_choose_among_nothing(world):
    with refused("candidates", "conflict"):
        Config("FM", world.name, None, {"data_path": str(world.parent), "candidates": 5})


def test_a_classic_model_picks_the_lower_id_among_equals():
    candidates = Candidates(np.arange(4), np.array([[3, 1, 2], [3, 1, 0], [2, 3, 1], [0, 0, 0]]))
    picks = Picks(candidates)
    scores = torch.tensor([[9.0, 1.0, 1.0, 0.0], [9.0, 0.0, 5.0, 1.0], [9.0, -9.0, -9.0, -9.0], [9.0, 1.0, 2.0, 3.0]])
    scores[2, 1:] = -torch.inf
    picks.eval_batch_collect(scores, Interaction({"sample_id": torch.arange(4)}), None, None)
    assert picks.items[0].tolist() == [1, 3, 0, 0]
    scores[0, 1] = torch.nan
    with pytest.raises(ValueError, match="not a number"):
        picks.eval_batch_collect(scores, Interaction({"sample_id": torch.arange(4)}), None, None)


def test_answers_on_lines_are_as_diverse_as_the_titles_that_they_name(monkeypatch):
    """What goes on behind the first line is no part of an answer; nor are quotes of a title its format."""
    titles, candidates = [None, "Heat", "Babe"], np.array([[1, 2], [1, 2]])
    model = SimpleNamespace(
        eval=lambda: None,
        candidates=SimpleNamespace(of=lambda rows: candidates),
        catalog=SimpleNamespace(titles=titles),
        grounding=SimpleNamespace(chooses=False),
        generate_text=lambda rows: ["Babe\nHeat", "Babe\nBabe"],
        prompts=SimpleNamespace(layout=Layout.of_blocks(["", "", "Watched: " + slot_mark("history")], "lines")),
    )
    ids = np.array(["[PAD]", "1", "2"])
    dataset = SimpleNamespace(
        inter_feat=None, uid_field="user_id", iid_field="item_id", field2id_token={"user_id": ids, "item_id": ids}
    )
    monkeypatch.setattr(candidate_choice, "row_pairs", lambda dataset: np.array([[1, 1], [2, 2]]))
    found = candidate_choice._let_answer(model, SimpleNamespace(dataset=dataset))
    assert found.summary == {"distinct_answers": 0.5, "top_answer": 1.0}
    assert found.rows["hit"].tolist() == [0, 1]
