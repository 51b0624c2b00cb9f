"""Fine-tuning: what decides its result, what does not, which epoch is kept, and that a broken run goes on."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from recbole_llm.errors import InputError
from recbole_llm.trainer import finetune
from recbole_llm.trainer.checkpoint import save_state
from recbole_llm.trainer.finetune import EarlyStopping, FineTuneSettings, FineTuning
from tests.runs import words_for

SETTINGS = {
    "epochs": 7,
    "train_batch_size": 4,
    "learning_rate": 0.1,
    "learner": "sgd",
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "lr_scheduler": "constant",
    "max_grad_norm": None,
    "eval_step": 1,
    "stopping_step": 2,
    "group_by_length": False,
    "enable_amp": False,
    "micro_batch_tokens": 16,
}
EXAMPLES = [([1] * (1 + row % 3), [2] * (1 + row % 2)) for row in range(10)]


class Weights:
    """The adapter of a toy: all its weights."""

    def trainable_state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def load_trainable_state(self, model: nn.Module, state: dict[str, torch.Tensor]) -> None:
        model.load_state_dict(state)


class Toy(nn.Module):
    """What fine-tuning asks of a recommender, with one weight and dropout."""

    device = torch.device("cpu")

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.llm, self.adapter, self.dropout = nn.Linear(1, 1, bias=False), Weights(), dropout
        nn.init.zeros_(self.llm.weight)

    def stage_seed(self, name: str, epoch: int) -> int:
        return epoch

    def answer_loss(self, examples: list[Any]) -> torch.Tensor:
        """Token mean of (w - length of the prompt)^2."""
        weight = nn.functional.dropout(self.llm.weight, self.dropout, self.training)
        losses = [len(answer) * (weight - len(prompt)).square().sum() for prompt, answer in examples]
        return torch.stack(losses).sum() / sum(len(answer) for _, answer in examples)


def tuning(
    model: Toy, scores: list[float] | None, optimizer: torch.optim.Optimizer | None = None, **settings: Any
) -> FineTuning:
    """Fine-tuning whose validation gives planted scores, one per validated epoch."""
    planted = iter(scores or ())
    validate = (lambda: {"hit@10": next(planted)}) if scores is not None else None
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    whole = FineTuneSettings(**{**SETTINGS, **settings})
    return FineTuning(model, EXAMPLES, whole, optimizer, validate, "hit@10", bigger=True)


CASES = [
    ([0.02, 0.03, 0.03, 0.025, 0.05], (4, 2, True)),
    ([0.01, 0.02, 0.02, 0.03, 0.03, 0.03, 0.1], (6, 4, True)),
    ([0, 0, 0], (3, 1, True)),
    ([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07], (7, 7, False)),
    ([0.05, 0.04, 0.06, 0.05, 0.06], (5, 3, True)),
]


# --------------------------------------------------------------------------------------------- which epoch is kept


@pytest.mark.parametrize(("scores", "expected"), CASES)
@pytest.mark.parametrize("bigger", [True, False])
def test_early_stopping_keeps_the_first_strict_best(scores, expected, bigger):
    stopping = EarlyStopping(patience=2, bigger=bigger)
    epoch = 0
    for epoch, score in enumerate(scores[:7], start=1):
        stopping.update(epoch, score if bigger else -score)
        if stopping.stop:
            break
    assert (epoch, stopping.best_epoch, stopping.stop) == expected


def test_patience_of_zero_never_stops():
    stopping = EarlyStopping(patience=0)
    for epoch in range(1, 100):
        stopping.update(epoch, 0.0)
    assert not stopping.stop and stopping.best_epoch == 1


@pytest.mark.parametrize(("scores", "expected"), CASES)
def test_the_model_ends_in_the_state_of_the_best_epoch(tmp_path, scores, expected):
    n_epochs, best, _ = expected
    model, after = Toy(), []
    run = tuning(model, scores)
    run.on_epoch = lambda record, is_best: after.append(model.llm.weight.item())
    history = run.run(tmp_path)
    assert [record["epoch"] for record in history] == list(range(1, n_epochs + 1))
    assert len(set(after)) == n_epochs and model.llm.weight.item() == after[best - 1]


@pytest.mark.parametrize(
    ("settings", "scores", "best"),
    [
        ({"eval_step": 2, "epochs": 5}, [0.1, 0.2], 4),
        ({"eval_step": 2, "epochs": 5}, [0.2, 0.1], 2),
        ({"eval_step": 9, "epochs": 3}, [], 3),  # never validated: the last epoch stands
        ({"eval_step": 0, "epochs": 3}, [], 3),
        ({"epochs": 3}, None, 3),  # nothing to validate on
    ],
)
def test_only_validated_epochs_can_be_best_and_without_any_it_is_the_last(tmp_path, settings, scores, best):
    model, after = Toy(), []
    run = tuning(model, scores, stopping_step=0, **settings)
    run.on_epoch = lambda record, is_best: after.append(model.llm.weight.item())
    run.run(tmp_path)
    assert len(after) == settings["epochs"] and model.llm.weight.item() == after[best - 1]


def test_a_score_of_zero_in_every_epoch_is_warned_about(tmp_path, caplog):
    tuning(Toy(), [0.0, 0.0, 0.0]).run(tmp_path)
    assert "hit@10 was 0 in every epoch" in caplog.text


# --------------------------------------------------------------------------------------------------- steps and rate


@pytest.mark.parametrize(
    ("schedule", "after_warmup"),
    [
        ("linear", lambda left: left),
        ("constant", lambda left: 1.0),
        ("cosine", lambda left: (1 - math.cos(math.pi * left)) / 2),
    ],
)
def test_the_rate_is_hugging_faces_without_its_first_value_of_0(tmp_path, schedule, after_warmup):
    """Step k counted from 1: k / W in the warm-up, then by the share of the steps that is left; none has rate 0."""
    warmup, steps = 3, 10  # the 10 examples, one per step
    run = tuning(Toy(), None, epochs=1, train_batch_size=1, warmup_steps=warmup, lr_scheduler=schedule)
    rates, take_step = [], run._step
    run._step = lambda rows: rates.append(run.optimizer.param_groups[0]["lr"]) or take_step(rows)
    run.run(tmp_path)
    left = [(steps + 1 - k) / (steps + 1 - warmup) for k in range(1, steps + 1)]
    expected = [k / warmup if k < warmup else after_warmup(left[k - 1]) for k in range(1, steps + 1)]
    assert np.allclose(rates, 0.1 * np.array(expected)) and min(rates) > 0


def test_the_loss_of_a_step_is_the_mean_over_its_response_tokens(tmp_path):
    """Against the sum by hand: from w = 0 the weight becomes rate * 2 * mean length, taken over tokens."""
    model = Toy(dropout=0)
    history = tuning(model, None, epochs=1, train_batch_size=10, micro_batch_tokens=5).run(tmp_path)
    lengths = np.array([len(prompt) for prompt, answer in EXAMPLES for _ in answer])
    assert history[0]["train_loss"] == pytest.approx((lengths**2).mean())
    assert model.llm.weight.item() == pytest.approx(0.1 * 2 * lengths.mean())


def test_a_loss_that_is_not_a_number_names_the_learning_rate(tmp_path):
    model = Toy()
    model.answer_loss = lambda examples: model.llm.weight.sum() * math.nan
    with pytest.raises(InputError, match="learning_rate: the training loss is nan in epoch 1"):
        tuning(model, None).run(tmp_path)


@pytest.mark.parametrize("learner", ["Adam", "AdamW", "SGD", "Adagrad", "RMSprop"])
def test_a_broken_run_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch, learner):
    def start(folder: Path, skipped: int = 0) -> tuple[Toy, list[dict[str, Any]]]:
        model = Toy()
        optimizer = getattr(torch.optim, learner)(model.parameters(), lr=0.1)
        scores = [0.1, 0.3, 0.2, 0.3, 0.1][skipped:]
        run = tuning(model, scores, optimizer, epochs=5, stopping_step=0, warmup_steps=2, lr_scheduler="cosine")
        return model, run.run(folder)

    def break_after(epoch: int) -> None:
        def save_and_fail(folder: Path, state: Any) -> None:
            save_state(folder, state)
            if state.epoch == epoch:
                raise KeyboardInterrupt

        monkeypatch.setattr(finetune, "save_state", save_and_fail)

    whole, history = start(tmp_path / "whole")
    for epoch, skipped in ((1, 0), (3, 1)):
        break_after(epoch)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "broken", skipped)
    resumed, again = start(tmp_path / "broken", skipped=3)
    assert torch.equal(resumed.llm.weight, whole.llm.weight)
    assert timeless(again) == timeless(history)


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history without what the clock decides."""
    return [{k: v for k, v in record.items() if k not in ("seconds", "tokens_per_second")} for record in history]


# ------------------------------------------------------------------------------------------ the real model, by command


def adapter_of(finished: Any) -> dict[str, torch.Tensor]:
    return load_file(finished.folders["BIGRec"] / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``fresh()``: a new ``checkpoint_dir``, in which no stage is found."""
    return lambda: tmp_path_factory.mktemp("fresh") / "saved"


@pytest.fixture(scope="module")
def few(llama: Path) -> tuple[str, ...]:
    """One epoch on 20 rows."""
    sizes = ("--train_sample_size=20", "--valid_sample_size=4", "--test_sample_size=4", "--BIGRec.train_batch_size=8")
    return (f"--llm_path={llama}", *sizes, "--epochs=1")


@pytest.fixture(scope="module")
def more(few: tuple[str, ...]) -> tuple[str, ...]:
    """Three epochs, in which chance plays a part."""
    return (*few, "--epochs=3", "--lora_dropout=0.1")


@pytest.fixture(scope="module")
def usual(command: Any, fresh: Any, more: tuple[str, ...]) -> Any:
    """The same, uninterrupted."""
    return command("BIGRec", *more, saved=fresh())


def test_memory_knobs_do_not_change_the_result_and_the_batch_size_does(command, fresh, few):
    usual = command("BIGRec", *few, saved=fresh())
    small = command("BIGRec", *few, "--micro_batch_tokens=300", "--generation_batch_tokens=600", saved=fresh())
    assert largest_difference(usual, small) < 1e-5
    assert usual.result("BIGRec").test == small.result("BIGRec").test
    assert small.json("BIGRec", "history.json")[0]["train_loss"] == pytest.approx(
        usual.json("BIGRec", "history.json")[0]["train_loss"], abs=1e-5
    )
    other = command("BIGRec", *few, "--BIGRec.train_batch_size=5", saved=fresh())
    assert largest_difference(usual, other) > 1e-3


def largest_difference(one: Any, other: Any) -> float:
    return max(float((a - b).abs().max()) for a, b in pairs(adapter_of(one), adapter_of(other)))


def pairs(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    assert one.keys() == other.keys()
    return [(one[name], other[name]) for name in one]


def check_equal_run(finished: Any, usual: Any) -> None:
    assert all(torch.equal(a, b) for a, b in pairs(adapter_of(finished), adapter_of(usual)))
    assert timeless(finished.json("BIGRec", "history.json")) == timeless(usual.json("BIGRec", "history.json"))
    assert finished.result("BIGRec").test == usual.result("BIGRec").test
    assert finished.ranks("BIGRec") == usual.ranks("BIGRec")


def test_an_interrupted_command_goes_on_after_its_last_epoch(command, fresh, more, usual, monkeypatch):
    def save_and_fail(folder: Path, state: Any) -> None:
        save_state(folder, state)
        raise KeyboardInterrupt

    place = fresh()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "save_state", save_and_fail)
        command("BIGRec", *more, saved=place)
    resumed = command("BIGRec", *more, saved=place)
    log = resumed.log("BIGRec")
    assert "Resuming after epoch 1." in log and "epoch 1 training" not in log and "epoch 2 training" in log
    assert any("fine-tune" in note for note in resumed.result("BIGRec").notes)  # the time is not the whole time
    check_equal_run(resumed, usual)


@pytest.mark.slow
def test_a_killed_process_goes_on_after_its_last_epoch(command, fresh, more, usual, world):
    place = fresh()
    words = words_for("BIGRec", world, place, *more)
    program = f"""
        import os, signal
        from recbole_llm.trainer import finetune
        from recbole_llm.trainer.checkpoint import save_state
        from recbole_llm.quick_start import main

        def save_and_die(folder, state):
            save_state(folder, state)
            os.kill(os.getpid(), signal.SIGKILL)

        finetune.save_state = save_and_die
        main({words!r})
    """
    repository = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=place.parent, env=environment, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL
    resumed = command("BIGRec", *more, saved=place)
    assert "Resuming after epoch 1." in resumed.log("BIGRec")
    check_equal_run(resumed, usual)


def test_a_tampered_adapter_is_found_and_trained_again(command, fresh, few):
    place = fresh()
    first = command("BIGRec", *few, saved=place)
    stage = first.stage("BIGRec", "fine-tune")
    weights = stage / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    again = command("BIGRec", *few, saved=place)
    assert f"Stage fine-tune: {stage} is damaged (adapter/adapter_model.safetensors has changed)" in again.log("BIGRec")
    assert all(torch.equal(a, b) for a, b in pairs(adapter_of(first), adapter_of(again)))


def test_fewer_rows_than_a_step_holds_are_learned_from(command, fresh, few):
    words = (*few, "--warmup_steps=20", "--BIGRec.train_batch_size=128", "--epochs=2")
    assert command("BIGRec", *words, saved=fresh()).status == 0


def test_bf16_computes_with_weights_in_float32(command, fresh, few):
    finished = command("BIGRec", *few, "--enable_amp=True", saved=fresh())
    exact = command("BIGRec", *few, saved=fresh())
    assert all(weight.dtype == torch.float32 for weight in adapter_of(finished).values())
    losses = [run.json("BIGRec", "history.json")[0]["train_loss"] for run in (finished, exact)]
    assert largest_difference(finished, exact) > 0 and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_stopping_needs_validation_rows(command, capsys):
    finished = command("BIGRec", "--eval_args={split: {LS: test_only}}")
    assert finished.status == 2
    assert "stopping_step: there are no validation rows to stop by" in capsys.readouterr().err


def test_without_validation_rows_the_last_epoch_stands(command, fresh, few):
    words = (*few, "--epochs=2", "--eval_args={split: {LS: test_only}}", "--stopping_step=0")
    finished = command("BIGRec", *words, saved=fresh())
    result = finished.result("BIGRec")
    assert (result.epochs, result.best_epoch, result.valid) == (2, 2, {})
    assert json.loads((finished.folders["BIGRec"] / "metrics.json").read_text())["valid"] == {}
