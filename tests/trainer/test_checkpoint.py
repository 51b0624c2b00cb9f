"""What is written can be read: training states, and the weights a run leaves behind, by others too."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from recbole_llm.data.rows import load_rows
from recbole_llm.settings.config import Config
from recbole_llm.trainer.checkpoint import TrainingState, load_state, save_state
from recbole_llm.trainer.llm_trainer import LLMTrainer
from recbole_llm.training_state import pack_optimizer, random_state, set_random_state, unpack_optimizer
from tests.families import save_family
from tests.processes import forked_python
from tests.refusals import refused
from tests.runs import words_for, working_in

IDS = [[1, 50, 60, 70, 80, 90]]
PEFT_ALONE = """
import sys
given = set(sys.modules)
import numpy, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2])
with torch.no_grad():
    numpy.save(sys.argv[3], model.eval()(input_ids=torch.tensor(eval(sys.argv[4]))).logits.numpy())
assert not any(name.startswith("recbole_llm") for name in sys.modules)
assert not any(name.startswith("recbole") for name in set(sys.modules) - given)
"""


def state(epoch: int) -> TrainingState:
    tensors = {"a.b": torch.randn(3, 2), "c": torch.tensor(float(epoch), dtype=torch.bfloat16)}
    transposed = {"a.b": torch.randn(2, 3).T, "c": torch.randn(2)}
    return TrainingState(epoch, tensors, transposed, {"0.step": torch.tensor(2.0)}, {"history": [{"loss": 0.1}]})


# --------------------------------------------------------------------------------------------------- training states


def test_the_newest_state_comes_back_as_it_was_and_older_ones_go(tmp_path):
    torch.manual_seed(0)
    save_state(tmp_path, state(1))
    save_state(tmp_path, written := state(12))
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0012"]
    found = load_state(tmp_path)
    assert (found.epoch, found.progress) == (12, written.progress)
    for name in ("trainable", "best", "optimizer"):
        before, after = getattr(written, name), getattr(found, name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def test_a_write_that_was_cut_short_does_not_count(tmp_path):
    save_state(tmp_path, state(1))
    save_state(tmp_path / "other", state(2))
    (tmp_path / "other" / "epoch-0002").rename(tmp_path / "epoch-0002")
    (tmp_path / "epoch-0002" / "progress.json").unlink()
    assert load_state(tmp_path).epoch == 1
    save_state(tmp_path, state(2))
    assert load_state(tmp_path).epoch == 2


def test_without_a_state_there_is_none(tmp_path):
    (tmp_path / "history.json").write_text("[]")
    assert load_state(tmp_path) is None and load_state(tmp_path / "missing") is None


def test_a_state_inside_an_epoch_is_newer_than_that_of_the_epoch_and_older_than_the_next(tmp_path):
    names = []
    for epoch, step in ((1, 0), (1, 9), (1, 10), (2, 0)):
        written = state(epoch)
        written.step, written.random = step, random_state() if step else {}
        save_state(tmp_path, written)
        found = load_state(tmp_path)
        assert (found.epoch, found.step, found.random.keys()) == (epoch, step, written.random.keys())
        names += [path.name for path in tmp_path.iterdir()]
    assert names == ["epoch-0001", "epoch-0001-step-0000009", "epoch-0001-step-0000010", "epoch-0002"]


def test_all_generators_go_on_from_their_state(tmp_path):
    def draw() -> list[Any]:
        return [torch.randn(3).tolist(), np.random.standard_normal(3).tolist(), random.gauss(0, 1), random.random()]

    draw()  # one normal number in reserve, in numpy and in Python
    written = state(1)
    written.step, written.random = 1, random_state()
    save_state(tmp_path, written)
    expected = [draw(), draw()]
    for seed in (0, 1):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        set_random_state(load_state(tmp_path).random)
        assert [draw(), draw()] == expected


def test_what_a_cut_off_write_left_goes_with_the_next_state(tmp_path):
    (tmp_path / "epoch-0001-step-0000003").mkdir()
    save_state(tmp_path, state(1))
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


def test_a_state_holds_no_pickle(tmp_path):
    save_state(tmp_path, state(1))
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors", ".json"}


@pytest.mark.parametrize("learner", ["Adam", "AdamW", "SGD", "Adagrad", "RMSprop"])
def test_an_optimiser_goes_on_from_its_packed_state(learner):
    def train(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            weight.grad = torch.full_like(weight, 1.0 + step)
            optimizer.step()

    def start(value: torch.Tensor) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        weight = torch.nn.Parameter(value.clone())
        return weight, getattr(torch.optim, learner)([weight], lr=0.1)

    whole, optimizer = start(torch.ones(3))
    train(whole, optimizer, range(3))
    packed, middle = pack_optimizer(optimizer), whole.detach().clone()
    train(whole, optimizer, range(3, 6))
    resumed, optimizer = start(middle)
    unpack_optimizer(optimizer, packed)
    train(resumed, optimizer, range(3, 6))
    assert torch.equal(resumed, whole)


# ------------------------------------------------------------------------------------------------- a run's weights


def trainer_of(saved: Path, world: Path, *words: str) -> LLMTrainer:
    """A trainer with the LLM of the session, not yet tuned."""
    argv = [word for word in words_for("BIGRec", world, saved, *words) if not word.startswith("--model")]
    config = Config("BIGRec", world.name, argv=argv)
    with working_in(saved.parent):
        return LLMTrainer(config, config.model_class(config, load_rows(config, False).whole))


def logits_in_a_new_process(llm: Path, adapter: Path, folder: Path) -> np.ndarray:
    forked_python(PEFT_ALONE, llm, adapter, folder / "logits.npy", str(IDS), cwd=folder)
    return np.load(folder / "logits.npy")


@torch.no_grad()
def logits(model: Any) -> np.ndarray:
    return model.eval()(input_ids=torch.tensor(IDS)).logits.numpy()


def test_a_runs_adapter_loads_in_a_new_process_by_peft_alone(side_by_side, world, saved, tmp_path):
    trainer = trainer_of(saved, world)
    model, folder = trainer.model, side_by_side.folders["BIGRec"] / "adapter"
    trainer.load_adapter(folder)
    found = logits_in_a_new_process(side_by_side.stage("BIGRec", "tiny-llm"), folder, tmp_path)
    np.testing.assert_allclose(found, logits(model.llm), atol=1e-5)
    with model.untuned() as untuned:
        assert np.abs(found - logits(untuned)).max() > 0.01  # the adapter does something
    assert not [path for path in folder.rglob("*") if path.stat().st_size > 200_000]  # the LLM is not copied


def test_full_fine_tuning_stores_the_tuned_weights_and_grounds_by_the_untuned(command, side_by_side, world, saved):
    words = ("--adapter=full", "--epochs=1", "--train_sample_size=20", "--valid_sample_size=4", "--test_sample_size=4")
    finished = command("BIGRec", *words)
    stage = finished.stage("BIGRec", "item-embeddings")
    assert stage == side_by_side.stage("BIGRec", "item-embeddings")
    trainer = trainer_of(saved, world, "--adapter=full")
    model, folder = trainer.model, finished.folders["BIGRec"] / "adapter"
    trainer.load_adapter(folder)
    tuned = logits(AutoModelForCausalLM.from_pretrained(folder))
    untuned = logits(AutoModelForCausalLM.from_pretrained(side_by_side.stage("BIGRec", "tiny-llm")))
    assert np.array_equal(tuned, logits(model.llm)) and np.abs(tuned - untuned).max() > 0.01
    titles = [title for title in model.catalog.titles if title]
    np.testing.assert_allclose(model.embed(titles), np.load(stage / "embeddings.npy")[1:], atol=1e-5)


def test_an_adapter_of_another_kind_or_llm_is_refused(side_by_side, world, saved, tmp_path):
    folder = side_by_side.folders["BIGRec"] / "adapter"
    with refused("", "conflict", "it holds 'lora', not 'full'; set adapter: lora"):
        trainer_of(saved, world, "--adapter=full").load_adapter(folder)
    other = save_family("llama", tmp_path / "llama")
    with refused("", "conflict", "trained on LLM .* load the LLM it was trained on"):
        trainer_of(saved, world, f"--llm_path={other}").load_adapter(folder)
