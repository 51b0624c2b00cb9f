"""What the stages of a training depend on: another value that decides is another stage."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recbole_llm.curriculum import AdaptiveCurriculum
from recbole_llm.objective.preference_settings import PreferenceSettings
from recbole_llm.settings.config import Config
from recbole_llm.trainer import distil_stages, pipeline, tuning
from recbole_llm.trainer.distil_stages import DistanceStage, DistilStage
from recbole_llm.trainer.negatives import WrongAnswers
from recbole_llm.trainer.pipeline import Pipeline
from recbole_llm.trainer.preference_loss import ContrastRows
from recbole_llm.trainer.preference_stages import Preference, PreferenceStage
from recbole_llm.trainer.self_play import OwnAnswersStage, RoundTuneStage
from recbole_llm.trainer.tuning import Tuning
from recbole_llm.trainer.tuning_stages import ContinuedStage, CurriculumStage, Start

START = Start("start", lambda: None)
ONE = np.arange(3)


@pytest.fixture
def tuned(monkeypatch) -> Callable[..., Tuning]:
    """``tuned("--distance_rows=7")``: what the stages of such a run of SOFT share, over a stub of its model."""
    for module in (tuning, distil_stages):
        monkeypatch.setattr(module, "rows_digest", str)
    adapter = SimpleNamespace(trainable_groups=lambda llm: {})
    model: Any = SimpleNamespace(facts=dict, draws=SimpleNamespace(facts=dict), adapter=adapter, llm=None)
    model.prompts = SimpleNamespace(layout=SimpleNamespace(style="alpaca"))

    def make(*words: str, model_name: str = "SOFT", valid_rows: Any = "valid") -> Tuning:
        config = Config(model_name, "ml-100k", argv=list(words))
        protocol: Any = SimpleNamespace(has_labels=False, valid_metric="ndcg@10")
        rows: Any = SimpleNamespace(data="rows", trunks=None, examples=[([1], [2])] * len(ONE))
        return Tuning(model, config, protocol, rows, valid_rows, None, lambda: None, lambda *_: None)  # type: ignore[arg-type, return-value]

    return make


@pytest.mark.parametrize(
    ("words", "decides"),
    [
        ((), False),
        (("--candidates=20",), True),
        (("--eval_args={mode: uni9}",), True),
        (("--eval_args={mode: {valid: pop9, test: full}}",), True),
        (("--eval_args={mode: {valid: full, test: uni9}}",), False),
    ],
)
def test_the_seed_of_what_validation_rows_are_ranked_among_decides(tuned, words, decides):
    """The epoch is chosen by ranks among the candidates that were drawn, and prompts may list them."""
    one, other = (tuned(*words, f"--sample_seed={seed}", model_name="BIGRec").facts for seed in (1, 2))
    assert (one != other) is decides


def curriculum(own: Tuning) -> Any:
    return CurriculumStage(own, AdaptiveCurriculum(1.0), [], "source", {}, object(), 1.0).facts()  # type: ignore[arg-type]


def distilled(own: Tuning) -> Any:
    return DistilStage(own, None, ONE).facts()  # type: ignore[arg-type]


def distance(own: Tuning) -> Any:
    return DistanceStage(own, None, {}).facts()  # type: ignore[arg-type]


def test_an_epoch_is_chosen_by_these_validation_rows(tuned):
    assert len({str(tuned(valid_rows=rows).facts) for rows in ("valid", "others", None)}) == 3


@pytest.mark.parametrize("word", ["--sd_empty=keep", "--distance_rows=7", "--curriculum_epochs=3"])
def test_what_decides_a_curriculum_is_a_fact_of_it(tuned, word):
    assert curriculum(tuned(word)) != curriculum(tuned())
    assert tuned(word).facts == tuned().facts  # and not of the fine-tuning before


@pytest.mark.parametrize("facts", [curriculum, distilled, distance])
def test_titles_that_are_distilled_are_no_raw_answers(tuned, facts):
    assert facts(tuned("--distil_on_trie=True")) != facts(tuned())


def test_distances_beside_a_file_of_answers_are_of_the_runs_own_search(tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "read_answers", lambda *_: [])
    (file := tmp_path / "answers.jsonl").touch()

    def source(*words: str) -> Any:
        own = tuned(f"--sd_file={file}", *words)
        own.model.stages = None
        return Pipeline(own, [])._distilled_answers(ONE)[1]

    assert source("--num_beams=7") != source("--num_beams=2")


def preference(own: Tuning) -> Preference:
    settings = PreferenceSettings.from_settings(own.config.final_config_dict)
    return Preference(own, own.rows, START, WrongAnswers(ONE[:, None]), settings)


@pytest.mark.parametrize("word", ["--pref_nll_weight=0.5", "--rpo_temperature=0.25"])
def test_what_decides_a_preference_is_a_fact_of_it(tuned, word):
    def facts(*words: str) -> Any:
        own = preference(tuned("--preference=rpo", "--rpo_prompts=llm", *words, model_name="BIGRec"))
        draw = ContrastRows(
            own.wrong.mask, np.zeros((3, 2), np.float32), lambda rows: rows, np.eye(3, dtype=np.float32)
        )
        return PreferenceStage(own, 0.1, [draw]).facts()

    assert facts(word) != facts()


@pytest.mark.parametrize("word", ["--self_negative=raw", "--mask_user_train=True"])
def test_what_decides_the_models_own_answers_is_a_fact_of_them(tuned, word):
    def facts(*words: str) -> Any:
        own = preference(tuned("--preference=sprec", *words, model_name="BIGRec"))
        return OwnAnswersStage(own.tuning, own.rows, START, ONE, own.settings, "answers").facts()

    assert facts(word) != facts()


def test_a_round_is_of_the_rows_that_it_has_drawn(tuned):
    own = preference(tuned("--preference=sprec", model_name="BIGRec"))
    assert RoundTuneStage(own, ONE, "round").facts() != RoundTuneStage(own, ONE[:2], "round").facts()


def test_a_preference_learns_at_a_tenth_of_the_rate_unless_told_otherwise(tuned):
    own = tuned("--learning_rate=0.002", model_name="BIGRec")
    rates = [ContinuedStage(own, START, 1, rate).settings.learning_rate for rate in (None, 0.5)]
    assert rates == [pytest.approx(0.0002), 0.5]
