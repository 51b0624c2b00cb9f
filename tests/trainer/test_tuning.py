"""What fine-tuning depends on: another value is another stage."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from recbole_llm.settings.config import Config
from recbole_llm.trainer import tuning
from recbole_llm.trainer.tuning import Tuning


@pytest.fixture
def facts(monkeypatch):
    """``facts("--candidates=20")``: of a run of BIGRec with these words."""
    monkeypatch.setattr(tuning, "rows_digest", lambda rows: "rows")
    draws = SimpleNamespace(facts=dict)
    adapter = SimpleNamespace(trainable_groups=lambda llm: {})
    model: Any = SimpleNamespace(facts=dict, draws=draws, adapter=adapter, llm=None)

    def found(*words: str) -> dict[str, Any]:
        config = Config("BIGRec", "ml-100k", argv=list(words))
        protocol: Any = SimpleNamespace(has_labels=False, valid_metric="ndcg@10")
        rows: Any = SimpleNamespace(data=None, trunks=None)
        return Tuning(model, config, protocol, rows, None, None, lambda: None, lambda *_: None).facts  # type: ignore[arg-type, return-value]

    return found


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
def test_the_seed_of_what_validation_rows_are_ranked_among_decides(facts, words, decides):
    """The epoch is chosen by ranks among the candidates that were drawn, and prompts may list them."""
    assert (facts(*words, "--sample_seed=1") != facts(*words, "--sample_seed=2")) is decides
