"""The step of a preference through the passes of training is that of the pure functions on plain forwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recbole_llm.curriculum import REAL
from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.objective import dmpo_loss, dpo_loss, rpo_diagonal_loss, rpo_loss, rpo_weights, sdpo_loss
from recbole_llm.objective.preference_settings import PreferenceSettings
from recbole_llm.objective.preferences import (
    DMPOPreference,
    DPOPreference,
    RPODiagonalPreference,
    RPOPreference,
    SDPOPreference,
)
from recbole_llm.prompt.trunk import Trunks
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.trainer.negatives import WrongAnswers
from recbole_llm.trainer.passes import Passes
from recbole_llm.trainer.preference_loss import ContrastRows, PreferenceLoss, answer_sums, wrong_kinds
from recbole_llm.trainer.preference_stages import Preference, PreferenceStage
from recbole_llm.trainer.tuning_stages import ContinuedStage
from tests.trainer.test_objective_loss import (
    HISTORIES,
    PROMPTS,
    REALS,
    USERS,
    Reads,
    answers_of,
    gradients,
    plain_logits,
)

WRONG = np.array([[1, 3], [2, 0], [0, -1], [4, 1], [5, 2], [-1, -1], [3, 4], [1, 5]])  # titles; -1: there is none
MASK = WRONG >= 0
VECTORS = np.random.default_rng(0).normal(size=(len(PROMPTS), 3)).astype(np.float32)
ACROSS = MASK.flatten() & (np.random.default_rng(1).random((len(PROMPTS), MASK.size)) < 0.7)


def across_of(rows: np.ndarray) -> np.ndarray:
    """What stands against what among some rows: bool [m, m * 2]."""
    return ACROSS[np.ix_(rows, (rows[:, None] * 2 + np.arange(2)).flatten())]


KINDS = [REAL, *wrong_kinds(2)]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Reads:
    return Reads(request.param)


def passes_of(model: Reads, budget: int = 10_000, trunks: bool = False) -> Passes:
    answers = {REAL: answers_of(REALS)}
    for kind, titles in zip(KINDS[1:], WRONG.T, strict=True):
        answers[kind] = answers_of([own if own >= 0 else real for own, real in zip(titles, REALS, strict=True)])
    own = Trunks.of(np.array(USERS), np.zeros(len(USERS), dtype=np.int64), HISTORIES) if trunks else None
    return Passes(model, PROMPTS, HISTORIES, answers, FineTuneSettings(micro_batch_tokens=budget), own)  # type: ignore[arg-type]


def plain_sums(model: Reads) -> Tensor:
    """Log-probabilities of right and wrong answers from one unpadded sequence each: [rows, 1 + k]."""
    passes, found = passes_of(model), []
    for row, prompt in enumerate(PROMPTS):
        for kind in KINDS:
            answer = passes.answers[kind][row]
            log_probs = plain_logits(model, prompt, answer).log_softmax(dim=1)
            found.append(log_probs[torch.arange(len(answer)), torch.tensor(answer)].sum())
    return torch.stack(found).view(len(PROMPTS), 3)


def plain_loss(name: str, sums: Tensor, reference: Tensor) -> Tensor:
    ratios, mask = sums - reference, torch.from_numpy(MASK)
    chosen, rejected = ratios[:, 0], ratios[:, 1:]
    if name == "rpo":
        across, vectors = torch.from_numpy(ACROSS), torch.from_numpy(VECTORS)
        weights = rpo_weights(vectors, vectors.repeat_interleave(2, dim=0), 0.5, across)
        return rpo_loss(chosen, rejected.flatten(), weights, 0.3, across)
    if name == "rpo_diagonal":
        return rpo_diagonal_loss(chosen, rejected, 0.3, mask=torch.from_numpy(ACROSS))
    loss = {"dpo": dpo_loss, "sdpo": sdpo_loss, "dmpo": dmpo_loss}[name]
    return loss(chosen, rejected, 0.3, mask)


OWN = {"dpo": DPOPreference(), "sdpo": SDPOPreference(), "dmpo": DMPOPreference()}
ACROSS_ROWS = {"rpo": RPOPreference(), "rpo_diagonal": RPODiagonalPreference()}
CHOICES = OWN | ACROSS_ROWS


def loss_of(passes: Passes, name: str, reference: np.ndarray, mask: np.ndarray = MASK) -> PreferenceLoss:
    rows = (across_of, VECTORS) if name in ACROSS_ROWS else (None, None)
    reader = AnswerReader(passes.model.scorer)
    return PreferenceLoss(passes, CHOICES[name], 0.3, 0.5, [ContrastRows(mask, reference, *rows)], reader)


@pytest.mark.parametrize("name", CHOICES)
def test_a_step_is_that_of_the_pure_function_however_it_is_cut(model, name):
    reference = torch.randn(len(PROMPTS), 3, generator=torch.Generator().manual_seed(2))
    model.llm.zero_grad(set_to_none=True)
    expected = plain_loss(name, plain_sums(model), reference)
    expected.backward()
    slopes = gradients(model)
    for budget, trunks in ((10_000, False), (60, False), (120, True)):
        model.llm.zero_grad(set_to_none=True)
        loss = loss_of(passes_of(model, budget, trunks), name, reference.numpy())
        found = loss.backward(np.arange(len(PROMPTS)), {REAL: 1.0}, loss.lengths([REAL]))
        assert found == pytest.approx([expected.item()], abs=1e-5)
        for one, other in zip(gradients(model), slopes, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
        record = loss.record()
        ratios, kept = (plain_sums(model) - reference).detach().numpy(), MASK.any(axis=1)
        assert record["right_ratio"] == pytest.approx(ratios[kept, 0].mean(), abs=1e-4)
        wrong = (ratios[:, 1:] * MASK).sum(axis=1)[kept] / MASK.sum(axis=1)[kept]
        assert record["wrong_ratio"] == pytest.approx(wrong.mean(), abs=1e-4) and not loss.record()


@pytest.mark.parametrize("budget", [10_000, 60])
@pytest.mark.parametrize("name", ["rpo", "dpo"])
def test_contrasts_are_no_matter_of_autocast_however_a_step_is_cut(model, name, budget, monkeypatch):
    passes = passes_of(model, budget)
    monkeypatch.setattr(model, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    loss, found = loss_of(passes, name, np.zeros((len(PROMPTS), 3), dtype=np.float32)), {"sums": set(), "loss": set()}
    for owner, part in ((loss, "_sums"), (loss.objective, "loss")):
        inner: Any = getattr(owner, part)

        def noted(*words: Any, inner: Any = inner, part: str = part) -> Any:
            found[part.strip("_")].add(torch.is_autocast_enabled("cpu"))
            return inner(*words)

        monkeypatch.setattr(owner, part, noted)
    loss.backward(np.arange(len(PROMPTS)), {REAL: 1.0}, loss.lengths([REAL]))
    assert found == {"sums": {True}, "loss": {False}}


@pytest.mark.parametrize("name", CHOICES)
def test_where_policy_and_reference_agree_each_term_is_log_2(model, name):
    passes = passes_of(model, 60)
    reference = np.zeros((len(PROMPTS), 3), dtype=np.float32)
    reader, rows = AnswerReader(model.scorer), np.arange(len(PROMPTS))
    with torch.no_grad():
        for one in passes.of_step(rows, KINDS, sum(passes.answer_lengths.values()) + passes.prompt_lengths):
            reference[one.rows] = answer_sums(passes, one, KINDS, reader).numpy()
    loss = loss_of(passes, name, reference)
    found = loss.backward(rows, {REAL: 1.0}, loss.lengths([REAL]))
    counts = MASK.sum(axis=1)[MASK.any(axis=1)]
    expected = np.log1p(counts).mean() if name == "sdpo" else np.log(2)
    assert found == pytest.approx([expected], abs=1e-5)


def test_rows_without_wrong_answers_change_nothing(model):
    reference = np.zeros((len(PROMPTS), 3), dtype=np.float32)
    found: list[Any] = []
    for rows in (np.arange(len(PROMPTS)), np.flatnonzero(MASK.any(axis=1))):
        model.llm.zero_grad(set_to_none=True)
        loss = loss_of(passes_of(model), "dpo", reference)
        found.append((loss.backward(rows, {REAL: 1.0}, loss.lengths([REAL])), gradients(model)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    model.llm.zero_grad(set_to_none=True)
    loss = loss_of(passes_of(model), "dpo", reference, np.zeros_like(MASK))
    assert loss.backward(np.arange(3), {REAL: 1.0}, loss.lengths([REAL])).tolist() == [0.0]
    assert all(weight.grad is None for weight in model.parameters()) and loss.record() == {}


@pytest.mark.parametrize("name", ["sdpo", "rpo"])
def test_the_loss_of_the_right_answers_stands_beside_it_with_its_weight(model, name):
    reference = torch.randn(len(PROMPTS), 3, generator=torch.Generator().manual_seed(3))
    model.llm.zero_grad(set_to_none=True)
    sums, n_tokens = plain_sums(model), passes_of(model).answer_lengths[REAL].sum()
    nll = -sums[:, 0].sum() / n_tokens
    expected = plain_loss(name, sums, reference) + 0.7 * nll
    expected.backward()
    slopes = gradients(model)
    for budget in (10_000, 60):
        model.llm.zero_grad(set_to_none=True)
        loss = loss_of(passes_of(model, budget), name, reference.numpy())
        loss.nll_weight = 0.7
        found = loss.backward(np.arange(len(PROMPTS)), {REAL: 1.0}, loss.lengths([REAL]))
        assert found == pytest.approx([expected.item()], abs=1e-5)
        for one, other in zip(gradients(model), slopes, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
        assert loss.record()["right_loss"] == pytest.approx(nll.item(), abs=1e-5)


def test_rows_without_wrong_answers_keep_the_loss_of_their_right_ones(model):
    reference, rows = np.zeros((len(PROMPTS), 3), dtype=np.float32), np.arange(3)
    loss = loss_of(passes_of(model), "dpo", reference, np.zeros_like(MASK))
    loss.nll_weight = 0.5
    model.llm.zero_grad(set_to_none=True)
    found = loss.backward(rows, {REAL: 1.0}, loss.lengths([REAL]))
    nll = -plain_sums(model)[:3, 0].sum().item() / loss.passes.answer_lengths[REAL][:3].sum()
    assert found == pytest.approx([0.5 * nll], abs=1e-5) and any(
        weight.grad is not None for weight in model.parameters()
    )


def test_each_epoch_has_the_wrong_answers_of_its_own_draw_and_a_resumed_one_as_well(model):
    reference = np.random.default_rng(4).normal(size=(len(PROMPTS), 3)).astype(np.float32)
    whole, rows = ContrastRows(MASK, reference), np.arange(len(PROMPTS))
    draws = [whole.of_draw(number, 1) for number in (0, 1)]
    options = (CHOICES["dpo"], 0.3, 0.5)
    loss = PreferenceLoss(passes_of(model), *options, draws, AnswerReader(model.scorer))
    found = []
    for epoch in range(3):
        assert loss.kinds == [REAL, KINDS[1 + epoch % 2]] and loss.state()["draw"] == epoch
        found.append(loss.backward(rows, {REAL: 1.0}, loss.lengths([REAL])).item())
        loss.after_epoch()
    ratios, mask = (plain_sums(model) - torch.from_numpy(reference)).detach(), torch.from_numpy(MASK)
    for epoch in (0, 1):
        expected = dpo_loss(ratios[:, 0], ratios[:, 1 + epoch], 0.3, mask[:, epoch : epoch + 1])
        assert found[epoch] == pytest.approx(float(expected), abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-6)
    resumed = PreferenceLoss(passes_of(model), *options, draws, AnswerReader(model.scorer))
    resumed.load_state({"draw": 1})
    assert resumed.backward(rows, {REAL: 1.0}, resumed.lengths([REAL])).item() == pytest.approx(found[1], abs=1e-6)


def test_what_users_took_is_a_fact_where_rows_are_set_against_one_another(monkeypatch):
    """It decides which answers of others stand against a row, whatever the row's own are; elsewhere these tell it."""
    monkeypatch.setattr(ContinuedStage, "facts", lambda self: {})

    def facts(name: str, across: Any, masked: bool, amp: bool = False) -> dict[str, Any]:
        settings = PreferenceSettings(preference=name, mask_user_train=masked)
        rows: Any = SimpleNamespace(examples=[0] * len(MASK))
        start: Any = SimpleNamespace(name="start")
        numbers = {"llm_dtype": "float32", "device": "cpu", "adapter": "lora", "enable_amp": amp}
        tuning: Any = SimpleNamespace(config=numbers)
        own = Preference(tuning, rows, start, WrongAnswers(WRONG), settings)
        stage = PreferenceStage(own, 0.1, [ContrastRows(MASK, np.zeros((len(MASK), 3)), across)])
        found: dict[str, Any] = stage.facts()["preference"]
        return found

    for name in ("rpo", "rpo_diagonal"):
        assert facts(name, across_of, True) == facts(name, across_of, False) | {"mask_user_train": True}
        more = {"contrasts": "float32"} if name == "rpo" else {}  # the other compares no prompts
        assert facts(name, across_of, True, amp=True) == facts(name, across_of, True) | more
    assert facts("dpo", None, True) == facts("dpo", None, False) == facts("dpo", None, True, amp=True)
