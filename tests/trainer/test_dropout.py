"""A step with dropout does not depend on how its rows are cut into passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recbole_llm.adapter import LoraAdapter
from recbole_llm.adapter.dropout import draw_by_token
from recbole_llm.curriculum import DISTILLED, REAL
from recbole_llm.llm.trunks import TrunkScorer
from recbole_llm.objective import BEARObjective, CFTObjective, MSLObjective, TokenObjective
from recbole_llm.trainer.step_loss import MeanNll, ObjectiveMeans, StepLoss
from tests.trainer.test_objective_loss import PROMPTS, Reads, gradients, passes_of, reader_of, trie

__all__ = ["trie"]  # a fixture
BOTH = {REAL: 0.6, DISTILLED: 0.4}
ONE_BY_ONE, ALL = 1, 10_000


class Drops(Reads):
    """A model with LoRA away from zero, its dropout, and the LLM's own where it has one."""

    def __init__(self, family: str, checkpointing: bool = False) -> None:
        super().__init__(family)
        if checkpointing:
            self.llm.gradient_checkpointing_enable({"use_reentrant": False})
        self.llm = LoraAdapter(dropout=0.3, target_modules="all").attach(self.llm)
        with torch.no_grad():
            for name, weight in self.llm.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        for name, module in self.llm.named_modules():
            if name.endswith("attn_dropout"):  # PyTorch's fused attention draws these
                module.p = 0.0
        self.draws = draw_by_token(self.llm)
        self.scorer = TrunkScorer(self.llm, 0, self.draws)
        self.train()

    def answer_loss(self, prompts: Any, answers: Any) -> torch.Tensor:
        return self.scorer.log_probs(prompts, answers).losses(len(answers[0]))

    def trunk_loss(self, trees: Any, prompts: Any, answers: Any) -> torch.Tensor:
        return self.scorer.tree_log_probs(trees, prompts, answers).losses(len(answers[0]))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Drops:
    return Drops(request.param)


def gradient(
    model: Drops, budget: int, objective: TokenObjective | None = None, trie: Any = None, seed: int = 1, **options: Any
) -> torch.Tensor:
    """Of all weights that learn, in one row."""
    model.zero_grad(set_to_none=True)
    passes = passes_of(model, budget, **options)
    loss: StepLoss = MeanNll(passes)
    if objective is not None:
        loss = ObjectiveMeans(passes, objective, reader_of(model, trie, objective), list(model.parameters()))
    rows = np.arange(len(PROMPTS))
    with passes.draws.step(seed):
        loss.backward(rows, BOTH, loss.lengths(BOTH))
    return torch.cat([own.flatten() for own in gradients(model)])


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("trunks", [False, True])
def test_passes_of_one_row_and_of_eight_give_one_gradient(model, trunks):
    usual = gradient(model, ALL, trunks=trunks)
    assert distance(usual, gradient(model, ONE_BY_ONE, trunks=trunks)) < 1e-5
    assert distance(usual, gradient(model, 90, trunks=trunks)) < 1e-5
    assert distance(usual, gradient(model, ALL, trunks=trunks, seed=2)) > 0.05  # chance plays a part
    torch.manual_seed(3)  # and PyTorch's stream none
    assert torch.equal(usual, gradient(model, ALL, trunks=trunks))


@pytest.mark.parametrize("objective", [MSLObjective(), BEARObjective(k=2), CFTObjective()])
def test_objectives_too(model, trie, objective):
    usual = gradient(model, ALL, objective, trie)
    assert distance(usual, gradient(model, ONE_BY_ONE, objective, trie)) < 1e-5


def test_trees_that_the_model_does_not_take_and_branches_neither(model, monkeypatch):
    trees, branches = gradient(model, ALL, trunks=True), gradient(model, ALL)
    monkeypatch.setattr(model, "takes_trunks", lambda n_tokens: False)
    assert distance(trees, gradient(model, 90, trunks=True)) < 1e-5
    monkeypatch.setattr(model.scorer, "takes_branches", lambda n_tokens: False)
    assert distance(branches, gradient(model, 90)) < 1e-5


def test_gradient_checkpointing_draws_what_the_pass_drew(model):
    if model.llm.config.model_type != "llama":
        pytest.skip("its own dropout is looked at above")
    again = Drops("llama", checkpointing=True)
    again.load_state_dict(model.state_dict())
    assert any(getattr(module, "gradient_checkpointing", False) for module in again.modules())
    assert distance(gradient(model, 90), gradient(again, 90)) < 1e-5


def test_all_modules_of_dropout_draw_by_token(model):
    assert not [name for name, module in model.named_modules() if type(module) is nn.Dropout and module.p]
