"""SARA's ranks, RecLoRA and Mo-SARA through the command: both tasks, what they leave, and a way back from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig

import recbole_llm.adapter.mosara_peft
import recbole_llm.adapter.reclora_peft  # noqa: F401
from recbole_llm.trainer import finetune
from recbole_llm.trainer.checkpoint import save_state
from tests.processes import forked_python
from tests.runs import Finished
from tests.worlds import make_world

QUICK = "--recommender_config={epochs: 1, train_batch_size: 64}"
FEW = ("--train_sample_size=16", "--valid_sample_size=4", "--test_sample_size=6", "--stopping_step=0", QUICK)
CLICKS = ("--threshold={'rating': 4}", "--valid_metric=AUC", "--valid_sample_size=~", "--test_sample_size=~")
POINTS = {
    "BIGRec": ("--lora_rank_rule=sara", "--sara_budget=20"),
    "RecLoRA": ("--llm_recommender=BIGRec", "--reclora_num_loras=3"),
    "MoSARA": ("--mosara_gates=sequence", "--sara_threshold=0.3"),
}


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("data") / "rated", n_users=12, n_items=20, seed=1)


@pytest.fixture(scope="module")
def go(command: Any, deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``go("RecLoRA", ...)``, with the stages of this module unless ``saved`` is given."""
    shared = tmp_path_factory.mktemp("runs") / "saved"

    def go(model: str, *more: str, saved: Path = shared, **options: Any) -> Finished:
        rates = (f"--{model}.learning_rate=0.05", f"--{model}.train_batch_size=8")
        llm = () if "world" in options else (f"--llm_path={deep}",)  # whose tokenizer splits Yes and No
        done = command(model, *llm, *FEW, *rates, "--lora_r=4", *more, saved=saved, **options)
        assert done.status == 0
        return done

    return go


@pytest.fixture(scope="module")
def whole(go: Any) -> Callable[[str], Finished]:
    """The usual run of each point."""
    return cache(lambda model: go(model, *POINTS[model]))


def recommended(folder: Path) -> str:
    """What a run folder recommends, asked in a process of its own."""
    return forked_python(
        """
        import sys
        import recbole_llm
        run = recbole_llm.load_run(sys.argv[1])
        print(run.recommend(users=run.users[:2], k=3)[["user_id", "item_id", "score"]].round(3).to_csv(index=False))
        """,
        folder,
        cwd=folder.parent.parent,
    ).stdout


@pytest.mark.parametrize(
    "model", ["BIGRec", *(pytest.param(name, marks=pytest.mark.slow) for name in ("RecLoRA", "MoSARA"))]
)
def test_a_run_recommends_from_its_folder_in_a_new_process(go, whole, model):
    import recbole_llm

    done = whole(model)
    folder = done.folders[model]
    config = PeftConfig.from_pretrained(str(folder / "adapter"))
    assert str(config.peft_type).rpartition(".")[2] == {"BIGRec": "LORA"}.get(model, model.upper())
    assert bool(config.rank_pattern) == (model != "RecLoRA")
    run = recbole_llm.load_run(folder)
    mine = run.recommend(users=run.users[:2], k=3)[["user_id", "item_id", "score"]].round(3).to_csv(index=False)
    assert recommended(folder).strip().endswith(mine.strip())
    assert "Stage spectra: found" in go(model, *POINTS[model], "--epochs=1").log(model) or model == "RecLoRA"
    records = json.loads((folder / "history.json").read_text())
    assert ("gate_usage" in records[0]) == (model != "BIGRec")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["RecLoRA", "MoSARA"])
def test_an_interrupted_run_ends_with_the_same_ranks(go, whole, model, tmp_path, monkeypatch):
    def save_and_fail(folder: Path, state: Any) -> None:
        save_state(folder, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "save_state", save_and_fail)
        go(model, *POINTS[model], saved=tmp_path / "saved")
    resumed = go(model, *POINTS[model], saved=tmp_path / "saved")
    assert "Resuming after epoch 1." in resumed.log(model)
    assert resumed.ranks(model) == whole(model).ranks(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--reclora_mix=factors", "--reclora_gate_top_k=2", "--reclora_num_loras=3"),
    ],
)
def test_reclora_predicts_clicks(go, rated, words):
    done = go("RecLoRA", *CLICKS, *words, world=rated)
    assert set(done.result("RecLoRA").test) == {"auc", "logloss"}
    assert "llm_recommender=TALLRec, adapter=reclora" in done.log("RecLoRA")
    assert "gate_usage" in done.json("RecLoRA", "history.json")[0]


def test_mosara_predicts_clicks_with_token_gates_and_without_a_recommender(go, rated):
    done = go("MoSARA", "--llm_recommender=TALLRec", *CLICKS, world=rated)
    assert set(done.result("MoSARA").test) == {"auc", "logloss"}
    assert not any(name.startswith("auxiliary") for name in done.json("MoSARA", "stages.json"))
