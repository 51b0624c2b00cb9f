"""The prompt first, up to the last layer's keys and values: the same log-probabilities and gradients as in one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from recbole_llm.adapter import LoraAdapter
from recbole_llm.coreset import effort_scores, effort_weights, losses_per_row
from recbole_llm.llm.branches import BranchScorer
from recbole_llm.llm.prefill import PrefillScorer
from tests.families import FAMILIES, make_family

LENGTHS = [(9, 3), (4, 1), (12, 5), (2, 2), (9, 2)]  # prompt and answer tokens of five rows


def make_rows(lengths=LENGTHS):
    """Prompts and answers of random tokens."""
    generator = torch.Generator().manual_seed(0)
    draw = [[torch.randint(10, 300, (size,), generator=generator).tolist() for size in pair] for pair in lengths]
    return tuple(zip(*draw, strict=True))


@pytest.fixture(params=FAMILIES)
def llm(request):
    """In float64, with LoRA whose B has left zero."""
    model = LoraAdapter(r=3, dropout=0.3).attach(make_family(request.param)[0])
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return model.double().eval()


def whole(model, prompts, answers):
    return BranchScorer(model, 0).log_probs(prompts, [[answer] for answer in answers])


def test_log_probs_and_gradients_are_those_of_one_pass(llm):
    prompts, answers = make_rows()
    weights = [weight for weight in llm.parameters() if weight.requires_grad]
    found, expected = PrefillScorer(llm, 0).log_probs(prompts, answers), whole(llm, prompts, answers)
    assert found.rows.tolist() == expected.rows.tolist() and not found.answers.any()
    torch.testing.assert_close(found.values, expected.values)
    pull = torch.randn(len(found.values))
    for own, other in zip(
        torch.autograd.grad(found.values, weights, pull),
        torch.autograd.grad(expected.values, weights, pull),
        strict=True,
    ):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("which", ["all", "last", "reference"])
def test_norms_of_rows_are_those_of_one_pass(llm, which):
    prompts, answers = make_rows()
    scorer = PrefillScorer(llm, 0)

    def norms(scores, batches):
        def losses(_model, batch):
            found = scores([prompts[row] for row in batch], [answers[row] for row in batch])
            return losses_per_row(-found.values, found.rows, len(batch))

        return effort_scores(llm, losses, batches, effort_weights(llm, which))

    expected = norms(lambda *rows: whole(llm, *rows), [range(5)])
    for batches in ([range(5)], [[row] for row in range(5)], [range(2), range(2, 5)]):
        np.testing.assert_allclose(norms(scorer.log_probs, batches), expected, rtol=1e-5)


def test_the_rest_of_the_last_layer_sees_the_answers_alone(llm):
    prompts, answers = make_rows()
    layers = next(module for module in llm.modules() if isinstance(module, nn.ModuleList))
    tokens = []
    layers[-1].mlp.register_forward_hook(lambda _layer, args, _output: tokens.append(args[0].shape[1]))
    PrefillScorer(llm, 0).log_probs(prompts, answers)
    assert tokens == [max(map(len, answers))]


def test_the_model_is_left_as_it_was(llm):
    prompts, answers = make_rows()
    before = whole(llm, prompts, answers).values
    PrefillScorer(llm, 0).log_probs(prompts, answers)
    assert torch.equal(whole(llm, prompts, answers).values, before)


def test_prompts_of_one_token_and_local_attention_take_one_pass(llm):
    prompts, answers = make_rows([(1, 3), (4, 2)])
    expected = whole(llm, prompts, answers)
    assert torch.equal(PrefillScorer(llm, 0).log_probs(prompts, answers).values, expected.values)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    local = MistralForCausalLM(MistralConfig(vocab_size=320, num_key_value_heads=2, sliding_window=4, **sizes)).eval()
    prompts, answers = make_rows()
    found = PrefillScorer(local, 0).log_probs(prompts, answers)
    assert torch.equal(found.values, whole(local, prompts, answers).values)


@pytest.mark.parametrize("prompts, answers", [([], []), ([[]], [[3]]), ([[4, 5]], [[]])])
def test_nothing_to_score_is_refused(llm, prompts, answers):
    with pytest.raises(ValueError, match="every prompt needs a token"):
        PrefillScorer(llm, 0).log_probs(prompts, answers)
