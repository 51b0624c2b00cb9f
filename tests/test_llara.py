"""LLaRA and iLoRA through the command: what they leave, what equals what, and that a broken run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from recbole_llm.classic.auxiliary import AuxiliaryRecommender
from recbole_llm.model.free_answers import FreeAnswers
from recbole_llm.trainer import finetune
from recbole_llm.trainer.checkpoint import save_state
from tests.processes import forked_python
from tests.runs import Finished, ranked_alike, words_for

QUICK = "--recommender_config={epochs: 1, train_batch_size: 64}"


@pytest.fixture(scope="module")
def words(deep: Path) -> tuple[str, ...]:
    sizes = ("--train_sample_size=20", "--valid_sample_size=4", "--test_sample_size=6", "--distance_rows=4")
    rates = [
        f"--{model}.{word}"
        for model in ("BIGRec", "LLaRA", "iLoRA", "SOFT")
        for word in ("learning_rate=0.05", "train_batch_size=8")
    ]
    return (f"--llm_path={deep}", *sizes, *rates, "--stopping_step=0", "--lora_r=4", QUICK)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "saved"


@pytest.fixture(scope="module")
def go(command: Any, shared: Path, words: tuple[str, ...]) -> Any:
    """``go("iLoRA", "--epochs=1")``: with the stages of this module unless ``saved`` is given."""

    def go(models: str, *more: str, saved: Path = shared) -> Finished:
        named = tuple(f"--{name}." for name in models.split(","))
        mine = [word for word in words if "." not in word.partition("=")[0] or word.startswith(named)]
        finished = command(models, *mine, *more, saved=saved)
        assert finished.status == 0
        return finished

    return go


@pytest.fixture(scope="module")
def ilora(go: Any) -> Finished:
    return go("iLoRA")


def weights_of(finished: Finished, label: str) -> dict[str, torch.Tensor]:
    files = (finished.folders[label] / "adapter").glob("*.safetensors")
    return {f"{file.stem}.{name}": weight for file in files for name, weight in load_file(file).items()}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_ilora_leaves_its_gates_and_their_picture(ilora):
    folder = ilora.folders["iLoRA"]
    assert {file.name for file in (folder / "adapter").glob("*.safetensors")} == {
        "adapter_model.safetensors",
        "projector.safetensors",
    }
    for record in ilora.json("iLoRA", "history.json"):
        usage = record["gate_usage"]
        assert len(usage) == 4 and sum(usage) == pytest.approx(1) and 0 <= record["gate_entropy"] <= 1
    shown = " ".join(f"{share:.3f}" for share in usage)
    assert f"gates: {shown} (entropy {record['gate_entropy']:.4f})" in ilora.log("iLoRA")
    with Image.open(folder / "gates.png") as image:
        assert image.format == "PNG"
    assert {"auxiliary-SASRec", "fine-tune"} <= set(ilora.json("iLoRA", "stages.json"))
    assert "llm_recommender=LLaRA, adapter=ilora" in ilora.log("iLoRA")


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits(ilora, go, tmp_path, monkeypatch):
    def save_and_fail(folder: Path, state: Any) -> None:
        save_state(folder, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "save_state", save_and_fail)
        go("iLoRA", saved=tmp_path / "saved")
    resumed = go("iLoRA", saved=tmp_path / "saved")
    assert "Resuming after epoch 1." in resumed.log("iLoRA")
    assert difference(weights_of(resumed, "iLoRA"), weights_of(ilora, "iLoRA")) == 0
    assert resumed.ranks("iLoRA") == ilora.ranks("iLoRA")


@pytest.mark.slow
def test_memory_knobs_do_not_change_the_result(ilora, go, tmp_path):
    small = go("iLoRA", "--micro_batch_tokens=300", "--generation_batch_tokens=600", saved=tmp_path / "saved")
    assert difference(weights_of(small, "iLoRA"), weights_of(ilora, "iLoRA")) < 2e-3  # Adam enlarges what is tiny
    assert ranked_alike(small, ilora, "iLoRA")


@pytest.mark.slow
def test_a_new_process_answers_the_same_from_the_saved_adapter(ilora, words, world, shared):
    """The stage is found there, its adapter, projector and gates loaded, and every row gets the rank it got."""
    mine = [word for word in words if "." not in word.partition("=")[0] or word.startswith("--iLoRA.")]
    program = f"""
        from recbole_llm import compat
        compat.apply()
        from recbole_llm.quick_start import main
        raise SystemExit(main({words_for("iLoRA", world, shared, *mine)!r}))
    """
    before = set(shared.iterdir())
    forked_python(program, cwd=shared.parent)
    (folder,) = (place for place in set(shared.iterdir()) - before if place.name.startswith("iLoRA"))
    again = Finished(0, {"iLoRA": folder}, None)
    assert again.ranks("iLoRA") == ilora.ranks("iLoRA") and "Stage fine-tune: found" in again.log("iLoRA")


@pytest.mark.slow
def test_one_expert_and_uniform_gates_are_lora(go, monkeypatch):
    """As in whole models, without training: ``tests/adapter/test_ilora.py``."""
    plain = go("BIGRec", "--adapter=lora")
    one = go("BIGRec", "--adapter=ilora", "--ilora_num_experts=1")
    monkeypatch.setattr(
        AuxiliaryRecommender, "sequence_states", lambda self, histories: np.zeros((len(histories), 64), np.float32)
    )
    uniform = go("BIGRec", "--adapter=ilora", "--ilora_gate=mlp")  # a setting of its own: no stage of others is found
    for finished in (one, uniform):
        weights = {name: own for name, own in weights_of(finished, "BIGRec").items() if "gate" not in name}
        assert difference(weights, weights_of(plain, "BIGRec")) < 1e-5
        assert ranked_alike(finished, plain, "BIGRec")
    assert uniform.json("BIGRec", "history.json")[-1]["gate_entropy"] == pytest.approx(1)


def test_llara_ilora_and_re_weighting_share_one_recommender(ilora, go, shared):
    both = go("LLaRA,BIGRec", "--BIGRec.reweight=collaborative", "--BIGRec.gamma=1", "--epochs=1")
    used = {finished.json(label, "stages.json")["auxiliary-SASRec"] for finished, label in (
        (ilora, "iLoRA"), (both, "LLaRA"), (both, "BIGRec")
    )}  # fmt: skip
    assert len(used) == 1 and len(list((shared / "stages").glob("auxiliary-*"))) == 1
    assert not (both.folders["LLaRA"] / "gates.png").exists()
    assert "gate_usage" not in both.json("LLaRA", "history.json")[0]


LLARA = ("--llm_recommender=LLaRA", "--prompt_schedule=linear")


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", [(*LLARA, "--curriculum=adaptive", "--alpha=5"), ("--adapter=ilora", "--curriculum=fixed:0.5")]
)
def test_soft_on_llara_and_with_instance_wise_lora(go, monkeypatch, point):
    hybrid: list[bool] = []
    search = FreeAnswers._search

    def record(self: FreeAnswers, *arguments: Any) -> Any:
        hybrid.append(not hasattr(self._model, "slots") or self._model.slots.hybrid)
        return search(self, *arguments)

    monkeypatch.setattr(FreeAnswers, "_search", record)
    # Not every epoch is validated, so the adaptive curriculum measures a distance right after training steps; a falling
    # rate lets it fall.
    finished = go("SOFT", *point, "--sd_empty=keep", "--eval_step=2", "--lr_scheduler=linear")
    history = finished.json("SOFT", "history.json")
    assert (history[0]["distance"] is None) == ("--curriculum=fixed:0.5" in point)
    assert any(record["real_loss"] is not None for record in history) and hybrid and all(hybrid)
    assert difference(weights_of(finished, "SOFT"), first_stage(finished)) > 1e-3


def first_stage(finished: Finished) -> dict[str, torch.Tensor]:
    files = (finished.stage("SOFT", "fine-tune") / "adapter").glob("*.safetensors")
    return {f"{file.stem}.{name}": weight for file in files for name, weight in load_file(file).items()}
