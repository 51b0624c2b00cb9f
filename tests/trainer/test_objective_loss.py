"""The step of an objective through the passes of training is that of the pure functions on plain forwards."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recbole_llm.adapter.dropout import TokenDraws
from recbole_llm.curriculum import DISTILLED, REAL
from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.llm.legal import LegalSets
from recbole_llm.llm.loss import positions_from_mask
from recbole_llm.llm.trie import TitleTrie
from recbole_llm.llm.trunks import TrunkScorer
from recbole_llm.model.objective_reader import check_titles
from recbole_llm.objective import (
    BEARObjective,
    CFTObjective,
    MSLObjective,
    TokenObjective,
    adaptive_temperature,
    bear_loss,
    cft_loss,
    msl_loss,
)
from recbole_llm.objective.token_objective import FirstTokens
from recbole_llm.prompt.trunk import Trunks
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.trainer.passes import Passes
from recbole_llm.trainer.step_loss import MeanNll, ObjectiveMeans
from tests.families import make_model
from tests.refusals import refused

EOS, VOCABULARY = 2, 60
TITLES = [[5, 6, 7], [5, 6], [5, 8, 9, 10], [11, 12], [11, 13, 14], [15]]
BARE = [1, 20, 21, 22]
USERS = [0, 0, 0, 1, 1, 2, 2, 2]
HISTORIES = [[1], [1, 2], [1, 2, 3], [4], [4, 5], [2], [2, 6], [2, 6, 1]]
PROMPTS = [[1, 20, 21, *(t for item in own for t in TITLES[item - 1]), 30, 31] for own in HISTORIES]
REALS, DISTILLEDS = [0, 1, 2, 3, 4, 5, 0, 2], [1, 1, 0, 5, 3, 3, 2, 4]


class Reads(nn.Module):
    """What passes ask of a recommender whose weights are the same for all rows."""

    device = torch.device("cpu")

    def __init__(self, family: str) -> None:
        super().__init__()
        self.llm = make_model(family, VOCABULARY, hidden_size=16, n_layers=1)
        self.scorer, self.draws = TrunkScorer(self.llm, pad_token_id=0), TokenDraws()

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    def conditioned_on(self, histories: Sequence[Any]) -> AbstractContextManager[None]:
        return nullcontext()

    def takes_trunks(self, n_tokens: int) -> bool:
        return self.scorer.takes_trunks(n_tokens)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Reads:
    return Reads(request.param)


@pytest.fixture(scope="module")
def trie() -> TitleTrie:
    return TitleTrie(TITLES, EOS)


def answers_of(titles: Sequence[int]) -> list[list[int]]:
    return [[*TITLES[title], EOS] for title in titles]


def passes_of(
    model: Reads, budget: int = 10_000, trunks: bool = False, distilled: Sequence[int] = range(len(PROMPTS))
) -> Passes:
    """Passes of all rows, of which some have a distilled answer."""
    settings = FineTuneSettings(micro_batch_tokens=budget)
    some = [answer if row in distilled else [] for row, answer in enumerate(answers_of(DISTILLEDS))]
    answers = {REAL: answers_of(REALS), DISTILLED: some}
    own = Trunks.of(np.array(USERS), np.zeros(len(USERS), dtype=np.int64), HISTORIES) if trunks else None
    return Passes(model, PROMPTS, HISTORIES, answers, settings, own)  # type: ignore[arg-type]


def reader_of(model: Reads, trie: TitleTrie, objective: TokenObjective, **options: Any) -> AnswerReader:
    legal = LegalSets(trie) if objective.reads_legal else None
    return AnswerReader(model.scorer, legal, BARE if objective.reads_effects else None, **options)


def step(
    model: Reads,
    trie: TitleTrie,
    objective: TokenObjective,
    weights: dict[str, float],
    rows: Sequence[int] = range(len(PROMPTS)),
    budget: int = 10_000,
    trunks: bool = False,
    distilled: Sequence[int] = range(len(PROMPTS)),
    **options: Any,
) -> tuple[np.ndarray, list[Tensor]]:
    """Losses of a step by kind, and the gradient of all weights."""
    model.llm.zero_grad(set_to_none=True)
    passes = passes_of(model, budget, trunks, distilled)
    loss = ObjectiveMeans(passes, objective, reader_of(model, trie, objective, **options), list(model.parameters()))
    losses = loss.backward(np.array(rows), weights, loss.lengths(weights))
    return losses, gradients(model)


def gradients(model: Reads) -> list[Tensor]:
    return [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in model.parameters()]


def plain_logits(model: Reads, prompt: list[int], answer: list[int]) -> Tensor:
    """Logits of an answer's tokens from one unpadded sequence."""
    ids = torch.tensor([prompt + answer])
    logits = model.llm(input_ids=ids, position_ids=positions_from_mask(torch.ones_like(ids))).logits[0]
    return logits[len(prompt) - 1 : -1]


def plain_loss(model: Reads, trie: TitleTrie, objective: TokenObjective, titles: Sequence[int]) -> Tensor:
    """The pure function on the logits of plain passes."""
    answers = answers_of(titles)
    logits = torch.cat([plain_logits(model, *row) for row in zip(PROMPTS, answers, strict=True)])
    targets = torch.tensor([token for answer in answers for token in answer])
    rows = torch.tensor([row for row, answer in enumerate(answers) for _ in answer])
    legal = [trie.allowed(answer[:position]) for answer in answers for position in range(len(answer))]
    if isinstance(objective, MSLObjective):
        return msl_loss(logits, targets, legal, objective.start_tau, objective.facts()["denominator"])
    if isinstance(objective, BEARObjective):
        assert objective.k is not None
        settings = (objective.tau, objective.k, objective.xi, objective.weight)
        return bear_loss(logits, targets, legal, *settings, form=objective.form)  # type: ignore[arg-type]
    assert isinstance(objective, CFTObjective)
    without = torch.cat([plain_logits(model, BARE, answer) for answer in answers])
    return cft_loss(logits, without, targets, rows, objective.beta, objective.weight)


def plain_mean(model: Reads, trie: TitleTrie, objective: TokenObjective, titles: Sequence[int], rows: Any) -> float:
    """The same over some rows alone."""
    answers = answers_of(titles)
    with torch.no_grad():
        logits = torch.cat([plain_logits(model, PROMPTS[row], answers[row]) for row in rows])
        targets = torch.tensor([token for row in rows for token in answers[row]])
        own = torch.tensor([index for index, row in enumerate(rows) for _ in answers[row]])
        legal = [trie.allowed(answers[row][:step]) for row in rows for step in range(len(answers[row]))]
        if isinstance(objective, CFTObjective):
            without = torch.cat([plain_logits(model, BARE, answers[row]) for row in rows])
            return float(cft_loss(logits, without, targets, own, objective.beta, objective.weight))
        if isinstance(objective, BEARObjective):
            return float(bear_loss(logits, targets, legal, k=objective.k or 0))
        return float(msl_loss(logits, targets, legal))


OBJECTIVES = [
    MSLObjective(tau=1.7),
    MSLObjective(denominator="branching"),
    BEARObjective(k=1, xi=0.7, weight=0.6),
    BEARObjective(k=2, form="margin"),
    CFTObjective(weight=0.4),
    CFTObjective(weight=0.0),
]


# The weight mixes two means, whatever the objective is: each has it in one fast case, the first one at its ends too.
WEIGHTED = [
    pytest.param(one, weight, id=f"{one!r}-{weight}", marks=[] if weight == 0.3 or not place else pytest.mark.slow)
    for place, one in enumerate(OBJECTIVES)
    for weight in (0.0, 0.3, 1.0)
]


@pytest.mark.parametrize(("objective", "weight"), WEIGHTED)
def test_a_step_is_that_of_the_pure_function_on_plain_passes(model, trie, objective, weight):
    weights = {kind: value for kind, value in ((REAL, 1 - weight), (DISTILLED, weight)) if value}
    losses, found = step(model, trie, objective, weights)
    cut, found_cut = step(model, trie, objective, weights, budget=45)
    trunk, found_trunk = step(model, trie, objective, weights, budget=90, trunks=True)
    model.llm.zero_grad(set_to_none=True)
    titles = {REAL: REALS, DISTILLED: DISTILLEDS}
    expected = [plain_loss(model, trie, objective, titles[kind]) for kind in weights]
    sum(value * loss for value, loss in zip(weights.values(), expected, strict=True)).backward()
    for own, gradient in ((losses, found), (cut, found_cut), (trunk, found_trunk)):
        np.testing.assert_allclose(own, [loss.item() for loss in expected], atol=1e-5)
        for one, other in zip(gradient, gradients(model), strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("objective", [BEARObjective(k=2), CFTObjective()], ids=repr)
def test_models_that_take_no_branches_and_rows_with_weights_of_their_own_give_the_same_step(model, trie, objective):
    weights = {REAL: 0.6, DISTILLED: 0.4}
    losses, gradient = step(model, trie, objective, weights)
    others = [
        step(model, trie, objective, weights, takes_branches=lambda n_tokens: False),
        step(model, trie, objective, weights, bare_per_row=True),
    ]
    for own, found in others:
        np.testing.assert_allclose(own, losses, atol=1e-5)
        for one, other in zip(found, gradient, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


class AllLegal:
    """Titles of which every token of the vocabulary goes on with every beginning."""

    def titles(self, answers: Sequence[Any]) -> list[int]:
        return [0] * len(answers)

    def branching(self, titles: Sequence[int]) -> np.ndarray:
        return np.ones(len(titles), dtype=np.int64)

    def of(self, titles: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, ids = len(steps), torch.arange(VOCABULARY)
        return torch.arange(n).repeat_interleave(VOCABULARY), ids.repeat(n), torch.full((n,), VOCABULARY)


@pytest.mark.parametrize("objective", [MSLObjective(), BEARObjective(k=2), CFTObjective(weight=0.4)], ids=repr)
def test_a_row_without_a_distilled_answer_counts_for_the_true_one_alone(model, trie, objective):
    weights, having = {REAL: 0.6, DISTILLED: 0.4}, [0, 3, 4, 7]
    sides = ((REALS, range(len(PROMPTS))), (DISTILLEDS, having))
    expected = [plain_mean(model, trie, objective, *side) for side in sides]
    for options in ({}, {"budget": 45}, {"trunks": True}, {"takes_branches": lambda n_tokens: False}):
        losses, _ = step(model, trie, objective, weights, distilled=having, **options)
        np.testing.assert_allclose(losses, expected, atol=1e-5)


def test_identities_of_the_objectives(model, trie):
    """MSL over the full vocabulary is NLL, BEAR of weight 0 the branching mean, CFT without its parts NLL."""
    rows, passes = np.arange(len(PROMPTS)), passes_of(model)
    model.answer_loss = lambda prompts, answers: model.scorer.log_probs(prompts, answers).losses(len(answers[0]))
    nll = MeanNll(passes)
    expected = nll.backward(rows, {REAL: 1.0}, nll.lengths([REAL]))
    reader = AnswerReader(model.scorer, AllLegal())  # type: ignore[arg-type]
    msl = ObjectiveMeans(passes, MSLObjective(), reader, [])
    assert msl.backward(rows, {REAL: 1.0}, msl.lengths([REAL])) == pytest.approx(expected, abs=1e-5)
    cft, _ = step(model, trie, CFTObjective(beta=1.0, weight=0.0), {REAL: 1.0})
    assert cft == pytest.approx(expected, abs=1e-5)
    bear, _ = step(model, trie, BEARObjective(k=2, weight=0.0), {REAL: 1.0})
    branching, _ = step(model, trie, MSLObjective(denominator="branching"), {REAL: 1.0})
    assert bear == pytest.approx(branching, abs=1e-5) and not bear == pytest.approx(expected, abs=1e-3)


def test_a_title_alone_on_its_path_costs_nothing_but_its_first_token(model):
    trie = TitleTrie([[5, 6, 7]], EOS)
    tokens = AnswerReader(model.scorer, LegalSets(trie)).read(PROMPTS[:1], [[[5, 6, 7, EOS]]])
    assert tokens.legal is not None and tokens.legal.log_probs().tolist() == [0.0] * 4


def test_an_adaptive_temperature_follows_the_whole_step_and_is_state(model, trie):
    objective, rows = MSLObjective(temperature="adaptive"), np.arange(len(PROMPTS))
    found = []
    for budget in (10_000, 45):
        passes = passes_of(model, budget)
        loss = ObjectiveMeans(passes, objective, reader_of(model, trie, objective), [])
        assert loss.tau == 1.5
        value = loss.backward(rows, {REAL: 1.0}, loss.lengths([REAL]))
        assert loss.tau == 1.5  # frozen during a step
        loss.after_step()
        found.append((float(value[0]), loss.tau))
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    first = torch.stack([plain_logits(model, p, a)[0] for p, a in zip(PROMPTS, answers_of(REALS), strict=True)])
    right = first[torch.arange(len(PROMPTS)), torch.tensor([TITLES[title][0] for title in REALS])]
    legal = trie.allowed([])
    assert found[0][1] == pytest.approx(adaptive_temperature(right, first[:, legal], len(legal), 1.5), abs=1e-5)
    other = ObjectiveMeans(passes_of(model), objective, reader_of(model, trie, objective), [])
    other.load_state(loss.state())
    assert other.tau == loss.tau and loss.record() == {"tau": loss.tau}


@dataclass(frozen=True, repr=False)
class ByFirstLogits(MSLObjective):
    """A temperature that every logit of a first token moves, where the paper's estimate would be at its bound."""

    def next_tau(self, statistics: FirstTokens, tau: float) -> float:
        return self.by(statistics.right, statistics.legal, tau)

    @staticmethod
    def by(right: Sequence[float], legal: Sequence[float], tau: float) -> float:
        return tau + 20 * float(np.square(right).mean() + np.square(legal).mean())


@pytest.mark.parametrize("options", [{}, {"budget": 45}, {"budget": 90, "trunks": True}], ids=str)
def test_a_temperature_may_follow_the_logits_of_its_own_step(model, trie, options):
    """Value and gradient are those of the temperature that the step's first tokens give, however it is cut."""
    objective, rows = ByFirstLogits(temperature="adaptive", tau_update="before"), np.arange(len(PROMPTS))
    loss = ObjectiveMeans(passes_of(model, **options), objective, reader_of(model, trie, objective), [])
    lengths = loss.lengths([REAL])
    model.llm.zero_grad(set_to_none=True)
    answers = answers_of(REALS)
    logits = torch.cat([plain_logits(model, *row) for row in zip(PROMPTS, answers, strict=True)])
    targets = torch.tensor([token for answer in answers for token in answer])
    starts = torch.tensor(np.cumsum([0, *map(len, answers[:-1])]))
    legal = [trie.allowed(answer[:position]) for answer in answers for position in range(len(answer))]
    first = logits[starts].detach().numpy()
    right, roots = first[np.arange(len(first)), targets[starts]], first[:, trie.allowed([])]
    tau = objective.by(right, roots, 1.5)
    value = msl_loss(logits, targets, legal, tau, "branching", times_tau=True)
    value.backward()
    expected = gradients(model)
    values = []
    for _ in range(2):  # computed again, as where memory has run out, the step is the same
        model.llm.zero_grad(set_to_none=True)
        values.append(loss.backward(rows, {REAL: 1.0}, lengths)[0])
        for one, other in zip(gradients(model), expected, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    assert values == pytest.approx([value.item()] * 2, abs=1e-5)
    assert loss.tau == 1.5 and tau > 1.55
    loss.after_step()
    assert loss.tau == pytest.approx(tau, abs=1e-5) and loss.record() == {"tau": loss.tau}


def test_passes_for_the_temperature_see_the_dropout_of_the_step(model, trie, monkeypatch):
    seen: dict[bool, list[float]] = {True: [], False: []}
    objective = MSLObjective(temperature="adaptive", tau_update="before")
    loss = ObjectiveMeans(passes_of(model, 45), objective, reader_of(model, trie, objective), [])
    read = loss.read

    def drawn(one, kinds):
        seen[torch.is_grad_enabled()].append(float(torch.rand(())))
        return read(one, kinds)

    monkeypatch.setattr(loss, "read", drawn)
    loss.backward(np.arange(len(PROMPTS)), {REAL: 1.0}, loss.lengths([REAL]))
    assert len(seen[True]) > 1 and seen[True] == seen[False]


def test_when_the_temperature_is_updated_is_a_fact_of_adaptive_ones_alone():
    after, before = (MSLObjective(temperature="adaptive", tau_update=update).facts() for update in ("after", "before"))
    assert before == {**after, "tau_update": "before"}
    assert "tau_update" not in MSLObjective().facts()


def test_two_means_with_unknown_weights_see_one_dropout(model, trie, monkeypatch):
    """BEAR's two sums come from passes of their own, which must draw what the passes with gradient draw."""
    seen: dict[bool, list[float]] = {True: [], False: []}
    passes = passes_of(model, 45)
    objective = BEARObjective(k=2)
    loss = ObjectiveMeans(passes, objective, reader_of(model, trie, objective), list(model.parameters()))
    read = loss.read

    def drawn(one, kinds):
        seen[torch.is_grad_enabled()].append(float(torch.rand(())))
        return read(one, kinds)

    monkeypatch.setattr(loss, "read", drawn)
    loss.backward(np.arange(len(PROMPTS)), {REAL: 0.5, DISTILLED: 0.5}, loss.lengths([REAL, DISTILLED]))
    assert len(seen[True]) > 1 and seen[True] == seen[False]


def test_answers_that_are_no_titles_are_refused(model, trie):
    legal = LegalSets(trie)
    check_titles("bear", {REAL: answers_of(REALS)}, legal)
    with refused("objective", "data"):
        check_titles("bear", {REAL: [*answers_of(REALS), [5, 7, EOS]]}, legal)
    with pytest.raises(ValueError, match="no title"):
        AnswerReader(model.scorer, legal).read(PROMPTS[:1], [[[5, 7, EOS]]])
