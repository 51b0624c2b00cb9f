"""Fine-tuning: what decides its result, what does not, which epoch is kept, and that a broken run goes on."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaModel

from recbole_llm.adapter.dropout import TokenDraws
from recbole_llm.curriculum import AdaptiveCurriculum, FixedCurriculum, adaptive_weight
from recbole_llm.llm import capabilities, probe
from recbole_llm.model import base
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.trainer import finetune
from recbole_llm.trainer.checkpoint import load_state, save_state
from recbole_llm.trainer.early_stopping import EarlyStopping
from recbole_llm.trainer.finetune import DistilledTargets, FineTuning
from recbole_llm.trainer.schedules import make_schedule, share_of_step
from recbole_llm.trainer.validation import Validation, best_epoch
from tests.processes import forked_python
from tests.refusals import refused
from tests.runs import ranked_alike, words_for

SETTINGS = {
    "epochs": 7,
    "train_batch_size": 4,
    "learning_rate": 0.1,
    "learner": "sgd",
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "lr_scheduler": "constant",
    "clip_grad_norm": None,
    "eval_step": 1,
    "stopping_step": 2,
    "group_by_length": False,
    "enable_amp": False,
    "micro_batch_tokens": 16,
}
EXAMPLES = [([1] * (1 + row % 3), [2] * (1 + row % 2)) for row in range(10)]
HISTORIES = [[row + 1] for row in range(10)]
DISTILLED = [[5] * (1 + row % 4) for row in range(10)]  # other lengths and other last tokens


class Weights:
    """The adapter of a toy: all its weights."""

    def trainable_state(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def load_trainable_state(self, model: nn.Module, state: dict[str, torch.Tensor]) -> None:
        model.load_state_dict(state)

    def row_facts(self, model: nn.Module, histories: list[Any]) -> dict[str, Any]:
        return {}


@dataclass
class Scored:
    """What a validation found."""

    metrics: dict[str, float]


class Trained(nn.Module):
    """What fine-tuning asks of a recommender whose rows differ in their prompts alone."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.draws = TokenDraws()

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    def stage_seed(self, *names: str | int) -> int:
        return int(names[1])

    def training_step(self, step: int, n_steps: int) -> AbstractContextManager[None]:
        return nullcontext()

    def conditioned_on(self, histories: list[Any]) -> AbstractContextManager[None]:
        return nullcontext()


class Toy(Trained):
    """One weight and dropout."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.llm, self.adapter, self.dropout = nn.Linear(1, 1, bias=False), Weights(), dropout
        nn.init.zeros_(self.llm.weight)

    def answer_loss(self, prompts: list[Any], answers: list[Any]) -> torch.Tensor:
        """(w - length of the prompt - last token + 2)^2 for every token, summed by the kind of answer."""
        weight = nn.functional.dropout(self.llm.weight, self.dropout, self.training)
        rows = zip(prompts, answers, strict=True)
        losses = [
            torch.stack([len(answer) * (weight - len(prompt) - sum(answer[-1:]) + 2).square().sum() for answer in own])
            for prompt, own in rows
        ]
        return torch.stack(losses).sum(dim=0)


def tuning(
    model: Toy,
    scores: list[float] | None,
    optimizer: torch.optim.Optimizer | None = None,
    distilled: DistilledTargets | None = None,
    **settings: Any,
) -> FineTuning:
    """Fine-tuning whose validation gives planted scores, one per validated epoch."""
    planted = iter(scores or ())
    validation = Validation(lambda: Scored({"hit@10": next(planted)}), "hit@10") if scores is not None else None
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    whole = FineTuneSettings(**{**SETTINGS, **settings})
    return FineTuning(model, EXAMPLES, HISTORIES, whole, optimizer, validation, distilled)


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


@pytest.mark.parametrize("bigger", [True, False])
def test_a_score_that_is_no_number_is_never_the_best(bigger):
    stopping = EarlyStopping(patience=0, bigger=bigger)
    better = [stopping.update(epoch, score) for epoch, score in enumerate([math.nan, 0.5, math.nan], start=1)]
    assert stopping.best_epoch == 2 and stopping.best_score == 0.5 and better[1:] == [True, False]
    stopping = EarlyStopping(patience=2, bigger=bigger)
    for epoch in (1, 2, 3):
        stopping.update(epoch, math.nan)
    assert stopping.stop and stopping.best_epoch == 1


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
    run.on_epoch = lambda record: after.append(model.llm.weight.item())
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
    run.on_epoch = lambda record: after.append(model.llm.weight.item())
    run.run(tmp_path)
    assert len(after) == settings["epochs"] and model.llm.weight.item() == after[best - 1]


@pytest.mark.parametrize(("scores", "best"), [([0.1, 0.3, 0.3, 0.2], 0.3), ([0.4, 0.1], 0.4), (None, None)])
def test_the_evaluation_of_the_best_epoch_is_kept(tmp_path, scores, best):
    run = tuning(Toy(), scores, epochs=len(scores or [0]), stopping_step=0)
    assert run.best_evaluation is None
    run.run(tmp_path / "whole")
    assert (run.best_evaluation and run.best_evaluation.metrics["hit@10"]) == best
    again = tuning(Toy(), [], epochs=len(scores or [0]), stopping_step=0)  # every epoch is found
    again.run(tmp_path / "whole")
    assert again.best_evaluation is None and len(again.history) == len(run.history)


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
    rates, take_step = [], run.step.take
    run.step.take = lambda *step: rates.append(run.optimizer.param_groups[0]["lr"]) or take_step(*step)
    run.run(tmp_path)
    left = [(steps + 1 - k) / (steps + 1 - warmup) for k in range(1, steps + 1)]
    expected = [k / warmup if k < warmup else after_warmup(left[k - 1]) for k in range(1, steps + 1)]
    assert np.allclose(rates, 0.1 * np.array(expected)) and min(rates) > 0


PEAK, FLOOR, STEPS, WARMUP = 7e-4, 0.01, 1870, 93
RATES = [  # step, cosine, cosine without shift
    (0, 7e-6, 7e-6),
    (46, 3.4977419e-4, 3.4977419e-4),
    (93, 7e-4, 6.9577942e-4),
    (981, 3.5380629e-4, 3.2674919e-4),
    (1870, 7e-6, 7e-6),
]


@pytest.mark.parametrize(("step", "shifted", "unshifted"), RATES)
def test_the_rates_of_llara_and_ilora(step, shifted, unshifted):
    """5 epochs of 47,872 rows in steps of 128, a twentieth of them warm-up, from and to a hundredth of the peak."""
    for name, expected in (("cosine", shifted), ("cosine_unshifted", unshifted)):
        share = FLOOR + (1 - FLOOR) * share_of_step(name, WARMUP, STEPS)(step)
        assert PEAK * share == pytest.approx(expected, rel=1e-7)
        settings = {"warmup_steps": 0.05, "lr_scheduler": name, "lr_floor": FLOOR, "learning_rate": PEAK}
        optimizer = torch.optim.SGD([{"params": nn.Linear(1, 1).parameters()}], lr=PEAK)
        optimizer.add_param_group({"params": nn.Linear(1, 1).parameters(), "lr": 0.3 * PEAK})
        schedule = make_schedule(optimizer, FineTuneSettings(**{**SETTINGS, **settings}), STEPS)
        for _ in range(step):
            optimizer.step()
            schedule.step()
        assert schedule.get_last_lr() == pytest.approx([expected, 0.3 * expected], rel=1e-7)


@pytest.mark.parametrize(("share", "steps", "expected"), [(0.05, 1870, 93), (0.29, 100, 29), (7, 100, 7), (1.0, 9, 9)])
def test_a_decimal_warmup_is_a_share_of_the_steps(share, steps, expected):
    assert FineTuneSettings(**{**SETTINGS, "warmup_steps": share}).warmup(steps) == expected


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_unshifted", "constant"])
@pytest.mark.parametrize("floor", [0.0, 0.01, 0.5])
def test_rates_stay_between_floor_and_peak_and_never_waste_a_step(name, floor):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    settings = {**SETTINGS, "warmup_steps": 5, "lr_scheduler": name, "lr_floor": floor}
    schedule, rates = make_schedule(optimizer, FineTuneSettings(**settings), 20), []
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    top = rates.index(max(rates))
    assert all(floor <= rate <= 1 and rate > 0 for rate in rates) and top == (5 if floor else 4)
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)


class GatedWeights(Weights):
    """Tells how many rows there are, once no step is under way."""

    def __init__(self, model: Rows) -> None:
        self.model = model

    def row_facts(self, model: nn.Module, histories: list[Any]) -> dict[str, Any]:
        assert self.model.step is None
        return {"gate_entropy": len(histories)}


class Rows(Toy):
    """A toy that is told which rows it sees, and in which step; the loss is that of the named step's rows."""

    def __init__(self) -> None:
        super().__init__(dropout=0)
        self.adapter = GatedWeights(self)
        self.steps: list[tuple[int, int]] = []
        self.seen: list[tuple[int | None, list[Any], list[Any]]] = []
        self.step: int | None = None
        self.rows: list[Any] = []

    @contextmanager
    def training_step(self, step: int, n_steps: int) -> Iterator[None]:
        self.steps.append((step, n_steps))
        self.step = step
        yield
        self.step = None

    @contextmanager
    def conditioned_on(self, histories: list[Any]) -> Iterator[None]:
        self.rows = histories
        yield
        self.rows = []

    def answer_loss(self, prompts: list[Any], answers: list[Any]) -> torch.Tensor:
        self.seen.append((self.step, self.rows, prompts))
        return super().answer_loss(prompts, answers)


def tuning_of_rows(model: Rows, scores: list[float], **settings: Any) -> FineTuning:
    """Fine-tuning in which a row's history is its number, and so is its prompt."""
    planted = iter(scores)

    def validate() -> Scored:
        assert model.step is None  # what a training step changes is over
        return Scored({"hit@10": next(planted)})

    examples = [([1] * (row + 1), [2]) for row in range(10)]
    whole = FineTuneSettings(**{**SETTINGS, "stopping_step": 0, **settings})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    return FineTuning(model, examples, HISTORIES, whole, optimizer, Validation(validate, "hit@10"))


@pytest.mark.parametrize("budget", [1, 20, 1000])
@pytest.mark.parametrize("by_length", [False, True])
def test_a_batch_is_computed_for_the_histories_of_its_own_rows_in_a_numbered_step(tmp_path, budget, by_length):
    model = Rows()
    run = tuning_of_rows(model, [0.1, 0.2], epochs=2, micro_batch_tokens=budget, group_by_length=by_length)
    history = run.run(tmp_path)
    assert model.steps == [(step, 6) for step in range(6)]
    assert all([len(prompt) for prompt in prompts] == [own[0] for own in rows] for _, rows, prompts in model.seen)
    by_step = [sum(len(rows) for at, rows, _ in model.seen if at == step) for step in range(6)]
    assert sorted(by_step[:3]) == sorted(by_step[3:]) == [2, 4, 4]
    assert [record["gate_entropy"] for record in history] == [10, 10]


def test_the_steps_of_a_resumed_run_go_on_counting(tmp_path, monkeypatch):
    def save_and_fail(folder: Path, state: Any) -> None:
        save_state(folder, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "save_state", save_and_fail)
        tuning_of_rows(Rows(), [0.1], epochs=3).run(tmp_path)
    model = Rows()
    tuning_of_rows(model, [0.2, 0.3], epochs=3).run(tmp_path)
    assert model.steps == [(step, 9) for step in range(3, 9)]


def test_the_loss_of_a_step_is_the_mean_over_its_response_tokens(tmp_path):
    """Against the sum by hand: from w = 0 the weight becomes rate * 2 * mean length, taken over tokens."""
    model = Toy(dropout=0)
    history = tuning(model, None, epochs=1, train_batch_size=10, micro_batch_tokens=5).run(tmp_path)
    lengths = np.array([len(prompt) for prompt, answer in EXAMPLES for _ in answer])
    assert history[0]["train_loss"] == pytest.approx((lengths**2).mean())
    assert model.llm.weight.item() == pytest.approx(0.1 * 2 * lengths.mean())


def test_a_loss_that_is_not_a_number_names_the_learning_rate(tmp_path):
    model = Toy()
    model.answer_loss = lambda prompts, answers: model.llm.weight.sum() * torch.full((1,), math.nan)
    with refused("learning_rate", "numeric", "learning_rate: the training loss is nan in epoch 1"):
        tuning(model, None).run(tmp_path)


def test_a_loss_that_is_not_a_number_names_its_rows_and_the_state_before(tmp_path):
    """Of ten rows the fourth turns bad in the second epoch; the state of the first stays where the message says."""
    model, calls = Toy(dropout=0), []
    whole = model.answer_loss

    def answer_loss(prompts, answers):
        losses = whole(prompts, answers)
        calls.append(len(prompts))
        spoiled = any(prompt is EXAMPLES[3][0] for prompt in prompts) and sum(calls) > len(EXAMPLES)
        return losses * math.nan if spoiled else losses

    model.answer_loss = answer_loss
    with refused(
        "learning_rate", "numeric", r"nan in epoch 2 \(training rows 3\); .*the state of epoch 1 is in "
    ) as caught:
        tuning(model, None, micro_batch_tokens=1).run(tmp_path)
    assert str(tmp_path) in str(caught.value) and load_state(tmp_path).epoch == 1


def test_a_gradient_that_is_not_a_number_ends_before_it_spoils_the_weights(tmp_path):
    model = Toy(dropout=0)
    model.llm.weight.register_hook(lambda gradient: gradient * math.inf)
    before = model.llm.weight.detach().clone()
    with refused("learning_rate", "numeric", "the norm of the gradient is (inf|nan) in epoch 1"):
        tuning(model, None, clip_grad_norm={"max_norm": 1.0}).run(tmp_path)
    assert torch.equal(model.llm.weight, before)


def test_weights_that_went_astray_in_the_last_step_name_the_learning_rate(tmp_path):
    def fail() -> Scored:
        raise FloatingPointError("no continuation has a finite score")

    run = tuning(Toy(), [])
    run.validation = Validation(fail, "hit@10")
    with refused(
        "learning_rate", "numeric", "learning_rate: after epoch 1, no continuation has a finite score; set a lower"
    ):
        run.run(tmp_path)


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


@pytest.mark.parametrize("learner", ["AdamW", "RMSprop"])
@pytest.mark.parametrize("minutes", [0.0, None])
def test_a_run_broken_at_any_step_goes_on_from_the_last_state(tmp_path, learner, minutes):
    """With dropout, whose numbers go on where they were: three epochs of three steps, broken before each in turn."""
    taken: list[int] = []

    def start(folder: Path, dies_at: int = 0) -> tuple[Toy, FineTuning]:
        def step_or_die(*arguments: Any) -> np.ndarray:
            if len(taken) == dies_at - 1:
                raise KeyboardInterrupt
            taken.append(run.epoch)
            return step(*arguments)

        model, saved = Toy(dropout=0.5), load_state(folder)
        optimizer = getattr(torch.optim, learner)(model.parameters(), lr=0.1)
        scores = [0.1, 0.3, 0.2][saved.epoch if saved else 0 :]
        options = {"warmup_steps": 2, "lr_scheduler": "cosine", "checkpoint_minutes": minutes}
        run = tuning(model, scores, optimizer, epochs=3, stopping_step=0, **options)
        taken.clear()
        step, run.step.take = run.step.take, step_or_die
        run.run(folder)
        return model, run

    whole, run = start(tmp_path / "whole")
    assert taken == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    steps = []
    for _ in range(8 if minutes == 0 else 2):
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "broken", dies_at=2 if minutes == 0 else 5)
        steps.append(len(taken))
    resumed, again = start(tmp_path / "broken")
    assert len(taken) == (1 if minutes == 0 else 3) and steps == ([1] * 8 if minutes == 0 else [4, 4])
    assert torch.equal(resumed.llm.weight, whole.llm.weight) and timeless(again.history) == timeless(run.history)


@pytest.mark.parametrize(("losses", "best"), [([0.5, 0.3, 0.3, 0.4], 2), ([0.1, 0.2, 0.3, 0.4], 1)])
def test_by_its_loss_the_first_smallest_epoch_is_kept_by_a_broken_run_too(tmp_path, monkeypatch, losses, best):
    def start(folder: Path, left: list[float]) -> tuple[Toy, FineTuning]:
        model, planted = Toy(), iter(left)
        run = tuning(model, None, epochs=4)
        run.validation = Validation(None, "loss", False, lambda: next(planted))
        run.stopping = EarlyStopping(0, bigger=False)
        run.run(folder)
        return model, run

    def save_and_fail(folder: Path, state: Any) -> None:
        save_state(folder, state)
        if state.epoch == 3:
            raise KeyboardInterrupt

    whole, run = start(tmp_path / "whole", losses)
    assert [record["valid"] for record in run.history] == [{"loss": loss} for loss in losses]
    assert (run.stopping.best_epoch, run.best_evaluation) == (best, None)
    assert best_epoch(run.history, run.validation) == best
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "save_state", save_and_fail)
        start(tmp_path / "broken", losses)
    resumed, again = start(tmp_path / "broken", losses[3:])
    assert torch.equal(resumed.llm.weight, whole.llm.weight) and timeless(again.history) == timeless(run.history)


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history without what the clock decides."""
    return [{k: v for k, v in record.items() if k not in ("seconds", "tokens_per_second")} for record in history]


# ------------------------------------------------------------------------------------------------- distilled targets


class Logits(Trained):
    """One row of learnable logits per answer token, chosen by how long the answer is."""

    def __init__(self) -> None:
        super().__init__()
        self.llm, self.adapter = nn.Module(), Weights()
        self.llm.real = nn.Parameter(torch.tensor([[2.0, 0, 0], [0, 1, 0]]))
        self.llm.distilled = nn.Parameter(torch.tensor([[0, 0, 3.0], [1, 0, 0], [0, 2, 0]]))

    def answer_loss(self, prompts: list[Any], answers: list[Any]) -> torch.Tensor:
        logits = {2: self.llm.real, 3: self.llm.distilled}
        rows = [
            torch.stack([nn.functional.cross_entropy(logits[len(a)], torch.tensor(a), reduction="sum") for a in own])
            for own in answers
        ]
        return torch.stack(rows).sum(dim=0)


@pytest.mark.parametrize(
    ("weight", "loss", "real", "distilled"),
    [
        (1.0, 0.9619708122, None, 0.9619708122),
        (math.exp(-1), 0.6038896409, 0.3954947401, 0.9619708122),
        (0.0, 0.3954947401, 0.3954947401, None),
        (1e-13, 0.3954947401, 0.3954947401, None),
    ],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_the_loss_of_an_epoch_of_a_worked_example(tmp_path, weight, loss, real, distilled, rows):
    model, examples = Logits(), [([1], [0, 1])] * rows
    targets = DistilledTargets(FixedCurriculum(weight), [[2, 0, 0]] * rows)
    settings = FineTuneSettings(**{**SETTINGS, "epochs": 1, "micro_batch_tokens": 6})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = FineTuning(model, examples, [[1]] * rows, settings, optimizer, None, targets)
    (record,) = run.run(tmp_path)
    assert record["train_loss"] == pytest.approx(loss, abs=1e-6) and record["weight"] == weight
    assert record["distance"] is None
    for name, expected in (("real_loss", real), ("distilled_loss", distilled)):
        assert record[name] == (expected if expected is None else pytest.approx(expected, abs=1e-6))


def mean_over_tokens(answers: list[list[int]]) -> tuple[float, float]:
    """The toy's loss at weight 0 and its slope there, as means over the tokens of all answers."""
    gaps = [2 - len(prompt) - token for (prompt, _), own in zip(EXAMPLES, answers, strict=True) for token in own]
    return float(np.mean(np.square(gaps))), float(np.mean(gaps)) * 2


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.999, 1.0])
def test_each_target_is_averaged_over_its_own_tokens_however_rows_are_cut(tmp_path, weight):
    found = []
    for budget in (1, 12, 25, 1000):
        model, distilled = Toy(dropout=0), DistilledTargets(FixedCurriculum(weight), DISTILLED)
        run = tuning(model, None, distilled=distilled, epochs=1, train_batch_size=10, micro_batch_tokens=budget)
        (record,) = run.run(tmp_path / str(budget))
        found.append((record["train_loss"], model.llm.weight.item()))
    (real, real_slope), (distilled, slope) = (
        mean_over_tokens(answers) for answers in ([answer for _, answer in EXAMPLES], DISTILLED)
    )
    for loss, moved in found:
        assert loss == pytest.approx((1 - weight) * real + weight * distilled, rel=1e-5)
        assert moved == pytest.approx(-0.1 * ((1 - weight) * real_slope + weight * slope), rel=1e-5)


SOME = [answer if row in (2, 3, 7) else [] for row, answer in enumerate(DISTILLED)]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("budget", [1, 25, 1000])
def test_a_loss_is_the_mean_over_the_rows_that_have_such_an_answer(tmp_path, weight, budget):
    model, targets = Toy(dropout=0), DistilledTargets(FixedCurriculum(weight), SOME)
    run = tuning(model, None, distilled=targets, epochs=1, train_batch_size=10, micro_batch_tokens=budget)
    (record,) = run.run(tmp_path)
    (real, real_slope), (distilled, slope) = (
        mean_over_tokens(answers) for answers in ([answer for _, answer in EXAMPLES], SOME)
    )
    assert record["train_loss"] == pytest.approx((1 - weight) * real + weight * distilled, rel=1e-5)
    assert model.llm.weight.item() == pytest.approx(-0.1 * ((1 - weight) * real_slope + weight * slope), rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 10])
def test_an_epoch_on_distilled_answers_alone_is_over_their_rows_and_the_rate_counts_its_steps(tmp_path, size):
    model, seen, planted = Toy(dropout=0), [], iter([0.0, 0.0])
    targets = DistilledTargets(AdaptiveCurriculum(100.0), SOME, [4.0], lambda: next(planted))
    run = tuning(model, None, distilled=targets, epochs=3, train_batch_size=size, lr_scheduler="linear")
    step = run.step.take
    run.step.take = lambda rows, *rest: seen.append((run.epoch, rows.tolist())) or step(rows, *rest)
    history = run.run(tmp_path)
    for epoch, rows in ((1, [2, 3, 7]), (2, list(range(10))), (3, list(range(10)))):
        own = [step for done, step in seen if done == epoch]
        assert sorted(sum(own, [])) == rows and len(own) == math.ceil(len(rows) / size)
    assert history[0]["real_loss"] is None and history[1]["distilled_loss"] is None
    assert history[-1]["learning_rate"] == pytest.approx(0.0, abs=1e-9)


def test_steps_without_a_distilled_answer_do_not_count_in_its_loss(tmp_path):
    model, targets = Toy(dropout=0), DistilledTargets(FixedCurriculum(0.5), SOME)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    (record,) = tuning(model, None, still, targets, epochs=1, train_batch_size=1).run(tmp_path)
    losses = [(2 - len(EXAMPLES[row][0]) - 5) ** 2 for row in (2, 3, 7)]
    assert record["distilled_loss"] == pytest.approx(np.mean(losses))


@pytest.mark.parametrize("budget", [4, 1000])
@pytest.mark.parametrize("curriculum", [*map(FixedCurriculum, (0.0, 0.4, 1.0)), *map(AdaptiveCurriculum, (0, 1, 100))])
def test_distilled_answers_equal_to_the_true_ones_make_no_difference(tmp_path, curriculum, budget):
    plain, model = Toy(dropout=0), Toy(dropout=0)
    history = tuning(plain, [0.1, 0.3, 0.2, 0.4], epochs=4).run(tmp_path / "plain")
    planted = iter([3.0, 1.0, 2.5])
    distilled = DistilledTargets(curriculum, [answer for _, answer in EXAMPLES], [4.0], lambda: next(planted))
    run = tuning(model, [0.1, 0.3, 0.2, 0.4], distilled=distilled, epochs=4, micro_batch_tokens=budget)
    found = run.run(tmp_path / "distilled")
    assert model.llm.weight.item() == pytest.approx(plain.llm.weight.item(), rel=1e-5)
    losses = [[record["train_loss"] for record in records] for records in (found, history)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("distances", [[4.0, 3.0, 2.0, 5.0], [4.0, 0.0, 4.0, 1.0]])
@pytest.mark.parametrize("alpha", [1.0, 100.0])
def test_each_epoch_learns_what_the_distance_before_it_says(tmp_path, distances, alpha):
    """And only the targets that count are computed."""
    model, kinds, planted = Toy(dropout=0), [], iter(distances[1:])
    distilled = DistilledTargets(AdaptiveCurriculum(alpha), DISTILLED, distances[:1], lambda: next(planted))
    run, compute = tuning(model, None, distilled=distilled, epochs=4), model.answer_loss
    model.answer_loss = lambda prompts, answers: kinds.append((run.epoch, len(answers[0]))) or compute(prompts, answers)
    history = run.run(tmp_path)
    weights = [adaptive_weight(d, distances[0], alpha) for d in distances]
    assert [record["weight"] for record in history] == weights
    assert [record["distance"] for record in history] == [*distances[1:], None]  # the last one would not be asked for
    assert next(planted, None) is None and run.distilled.distances == distances
    for record, weight in zip(history, weights, strict=True):
        computed = [weight < 1, weight >= 1e-12]
        assert [record[name] is not None for name in ("real_loss", "distilled_loss")] == computed
        assert {k for e, k in kinds if e == record["epoch"]} == {sum(computed)}
        own = {"real_loss": 1 - weight, "distilled_loss": weight}
        total = sum(share * record[name] for name, share in own.items() if record[name] is not None)
        assert record["train_loss"] == pytest.approx(total)


def test_no_distance_is_measured_after_the_decision_to_stop(tmp_path):
    planted = iter([3.0, 3.0])
    distilled = DistilledTargets(AdaptiveCurriculum(1.0), DISTILLED, [4.0], lambda: next(planted))
    history = tuning(Toy(), [0.2, 0.1, 0.1, 0.9], distilled=distilled).run(tmp_path)
    assert [record["distance"] for record in history] == [3.0, 3.0, None]


def test_a_distance_that_is_no_number_names_the_epoch_also_when_run_again(tmp_path):
    for measured in (1, 0):
        planted = iter([math.nan])
        distilled = DistilledTargets(AdaptiveCurriculum(1.0), DISTILLED, [4.0], lambda planted=planted: next(planted))
        with refused("curriculum", "numeric", "distance of generated and true titles is nan after epoch 1; check"):
            tuning(Toy(), None, distilled=distilled).run(tmp_path)
        assert len(list(planted)) == 1 - measured


def test_a_broken_curriculum_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch):
    """After an epoch, in the middle of a later one, and while the distance is measured."""
    distances, scores = [4.0, 3.0, 1.0, 2.0, 1.5], [0.1, 0.3, 0.2, 0.3, 0.1]

    def start(folder: Path, done: int = 0, fail: str = "") -> tuple[Toy, list[dict[str, Any]], list[float]]:
        model, planted = Toy(), iter(distances[done + 1 :])
        steps = iter(range(4))  # of one epoch

        def step(*arguments: Any) -> Any:
            if fail == "step" and next(steps) == 2:
                raise KeyboardInterrupt
            return take_step(*arguments)

        def measure() -> float:
            if fail == "distance":
                raise KeyboardInterrupt
            return next(planted)

        distilled = DistilledTargets(AdaptiveCurriculum(2.0), DISTILLED, distances[:1], measure)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        run = tuning(model, scores[done:], optimizer, distilled, epochs=5, stopping_step=0, train_batch_size=3)
        take_step, run.step.take = run.step.take, step
        return model, run.run(folder), distilled.distances

    def save_and_fail(folder: Path, state: Any) -> None:
        save_state(folder, state)
        raise KeyboardInterrupt

    whole, history, measured = start(tmp_path / "whole")
    assert len(history) == 5 and measured == distances
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "save_state", save_and_fail)
        start(tmp_path / "broken")
    for fail in ("step", "distance"):
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "broken", done=1, fail=fail)
    resumed, again, remeasured = start(tmp_path / "broken", done=1)
    assert torch.equal(resumed.llm.weight, whole.llm.weight)
    assert timeless(again) == timeless(history) and remeasured == distances


@pytest.mark.parametrize("epochs", [1, 3])
def test_curricula_that_go_on_from_one_first_epoch_are_as_if_each_had_computed_it(tmp_path, epochs):
    """The same weights, records and distances; what is told of the epoch is told by each."""
    measured, scores = [3.0, 1.0, 2.0][: epochs - 1], [0.3, 0.1, 0.4][:epochs]

    def start(folder: str, alpha: float, done: int = 0, **more: Any) -> tuple[Any, ...]:
        model, planted = Toy(), iter(measured[done:])
        distilled = DistilledTargets(AdaptiveCurriculum(alpha), DISTILLED, [4.0], lambda: next(planted))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        run = tuning(model, scores[done:], optimizer, distilled, epochs=epochs, stopping_step=0, train_batch_size=3)
        told: dict[str, list[int]] = {"epoch": [], "validated": []}
        run.on_epoch = lambda record: told["epoch"].append(record["epoch"])
        run.on_validated = lambda record: told["validated"].append(record["epoch"])
        history = run.run(tmp_path / folder, **more)
        return model.llm.weight.item(), timeless(history), distilled.distances, told

    *_, told = start("first", 2.0, until=1)
    assert told == {"epoch": [1], "validated": [1]}
    for alpha in (0.0, 2.0, 50.0):
        apart = start(f"apart {alpha}", alpha)
        assert start(f"from the first {alpha}", alpha, done=1, begun=tmp_path / "first") == apart
        assert apart[2] == [4.0, *measured] and apart[3]["epoch"] == list(range(1, epochs + 1))
        assert apart[1][-1]["weight"] == (1.0 if epochs == 1 else AdaptiveCurriculum(alpha).weight([4.0, 3.0, 1.0]))


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
    assert largest_difference(usual, small) < 1e-5 and ranked_alike(usual, small, "BIGRec")
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
        from recbole_llm.trainer.checkpoint import load_state, save_state
        from recbole_llm.quick_start import main

        def save_and_die(folder, state):
            save_state(folder, state)
            os.kill(os.getpid(), signal.SIGKILL)

        finetune.save_state = save_and_die
        main({words!r})
    """
    forked_python(program, cwd=place.parent, status=-signal.SIGKILL)
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


def test_bf16_computes_with_weights_in_float32(command, fresh, few, monkeypatch):
    seen, compared = set[tuple[bool, bool, bool]](), list[bool]()
    forward, examine = LlamaModel.forward, capabilities.examine

    def note(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.add((self.training, bool(compared), torch.is_autocast_enabled("cpu")))
        return forward(self, *args, **kwargs)

    def compare(*args: Any, **kwargs: Any) -> Any:
        compared.append(True)
        try:
            return examine(*args, **kwargs)
        finally:
            compared.pop()

    with monkeypatch.context() as patch:
        patch.setattr(LlamaModel, "forward", note)
        for module in (capabilities, probe):
            patch.setattr(module, "examine", compare)
        patch.setattr(base, "probe_llm", probe.probe_llm)  # and not what an earlier command has found
        finished = command("BIGRec", *few, "--enable_amp=True", saved=fresh())
    # in training, and where answers are generated, embedded and compared with titles; not where paths are compared
    assert seen == {(True, False, True), (False, False, True), (False, True, False)}
    exact = command("BIGRec", *few, saved=fresh())
    assert all(weight.dtype == torch.float32 for weight in adapter_of(finished).values())
    losses = [run.json("BIGRec", "history.json")[0]["train_loss"] for run in (finished, exact)]
    assert largest_difference(finished, exact) > 0 and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_stopping_needs_validation_rows(command, capsys):
    finished = command("BIGRec", "--eval_args={split: {LS: test_only}}")
    assert finished.status == 2
    assert "stopping_step: there are no validation rows for early stopping" in capsys.readouterr().err


def test_without_validation_rows_the_last_epoch_stands(command, fresh, few):
    words = (*few, "--epochs=2", "--eval_args={split: {LS: test_only}}", "--stopping_step=0")
    finished = command("BIGRec", *words, saved=fresh())
    result = finished.result("BIGRec")
    assert (result.epochs, result.best_epoch, result.valid) == (2, 2, {})
    assert json.loads((finished.folders["BIGRec"] / "metrics.json").read_text())["valid"] == {}
