"""What selectors are told of rows by the untuned LLM equals a computation row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recbole_llm.objective import (
    BEARObjective,
    CFTObjective,
    MSLObjective,
    TokenObjective,
    bear_loss,
    cft_loss,
    msl_loss,
)
from recbole_llm.selection.llm_inputs import LLMInputs
from tests.selection.rows import N_ROWS, inputs_of


def tokens_of_loss(prompt: list[int], response: list[int], which: str) -> list[int]:
    """Places of the tokens that a row's loss is the mean over: item slots, negative ids, are none of them."""
    first = len(prompt) if which == "answer" else 1
    return [place for place in range(first, len(prompt + response)) if (prompt + response)[place] >= 0]


@pytest.mark.parametrize("which", ["answer", "all"])
@pytest.mark.parametrize("kind", ["BIGRec", "LLaRA"])
def test_effort_is_the_norm_of_one_backward_pass_per_row(make, kind, which):
    config, rows, model = make(kind, effort_tokens=which, lora_dropout=0.5)
    inputs = inputs_of(config, rows, model).llm
    assert model.training
    found = inputs.effort()
    assert model.training and all(weight.grad is None for weight in model.parameters())
    model.eval()
    adapter = [weight for weight in model.llm.parameters() if weight.requires_grad]
    for row in (0, 7, N_ROWS - 1):
        prompt, response = inputs.examples[row]
        tokens = torch.tensor([prompt + response])
        log_probs = model.llm(input_ids=tokens).logits[0].log_softmax(dim=-1)
        losses = [-log_probs[place - 1, tokens[0, place]] for place in tokens_of_loss(prompt, response, which)]
        parts = torch.autograd.grad(torch.stack(losses).mean(), adapter, materialize_grads=True)
        norm = torch.sqrt(sum(part.double().square().sum() for part in parts))
        assert found[row] == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize("adapter", ["lora", "ilora"])
def test_quality_of_whole_prompts_counts_no_item_slots(make, adapter):
    gated = {"lora_r": 4, "ilora_num_experts": 2} if adapter == "ilora" else {}
    config, rows, model = make("LLaRA", adapter=adapter, effort_tokens="all", lora_dropout=0, **gated)
    inputs = inputs_of(config, rows, model).llm
    found = inputs.quality()
    model.eval()
    for row in (0, N_ROWS - 1):
        prompt, response = inputs.examples[row]
        assert min(prompt) < 0  # an item slot
        tokens = torch.tensor([prompt + response])
        with torch.no_grad(), model.conditioned_on([inputs.pool.histories[row]]):
            log_probs = model.llm(input_ids=tokens).logits[0].log_softmax(dim=-1)
        places = tokens_of_loss(prompt, response, "all")
        mean = torch.stack([log_probs[place - 1, tokens[0, place]] for place in places]).mean()
        assert found[row] == pytest.approx(float(mean), rel=1e-4)


def test_only_sums_over_slots_are_computed_again(make):
    facts = {}
    for kind, which in (("BIGRec", "all"), ("LLaRA", "answer"), ("LLaRA", "all")):
        inputs = inputs_of(*make(kind, effort_tokens=which)).llm
        facts[kind, which] = inputs.facts(inputs.declared["effort"]).get("item_slots")
    assert facts == {("BIGRec", "all"): None, ("LLaRA", "answer"): None, ("LLaRA", "all"): "inputs"}


def test_effort_of_gated_weights_counts_all_of_them_in_batches(make, caplog):
    config, rows, model = make(adapter="ilora", lora_r=4, ilora_num_experts=2, lora_dropout=0)
    inputs = inputs_of(config, rows, model).llm
    with caplog.at_level("INFO"):
        found = inputs.effort()
    assert "one backward pass per row" not in caplog.text
    model.eval()
    adapter = [weight for weight in model.llm.parameters() if weight.requires_grad]
    for row in (0, N_ROWS - 1):
        prompt, response = inputs.examples[row]
        with model.conditioned_on([inputs.pool.histories[row]]):
            log_probs = model.llm(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(dim=-1)
        losses = [-log_probs[len(prompt) + place - 1, token] for place, token in enumerate(response)]
        parts = torch.autograd.grad(torch.stack(losses).mean(), adapter, materialize_grads=True)
        norm = torch.sqrt(sum(part.double().square().sum() for part in parts))
        assert found[row] == pytest.approx(float(norm), rel=1e-4)


def loss_of(inputs: LLMInputs, row: int, objective: TokenObjective) -> torch.Tensor:
    """The objective's mean over one row's answer, by the pure function on plain passes."""
    model, (prompt, answer) = inputs.model, inputs.examples[row]
    targets = torch.tensor(answer)

    def logits(before: list[int]) -> torch.Tensor:
        with model.conditioned_on([inputs.pool.histories[row]]):
            return model.llm(input_ids=torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]

    if isinstance(objective, CFTObjective):
        bare = model.prompt_kind.without_history(model.backbone.tokenizer, model.backbone.bos_token_id)
        rows = torch.zeros(len(answer), dtype=torch.int64)
        return cft_loss(logits(prompt), logits(bare), targets, rows, objective.beta, objective.weight)
    legal = [model.trie.allowed(answer[:place]) for place in range(len(answer))]
    if isinstance(objective, BEARObjective):
        return bear_loss(logits(prompt), targets, legal, k=objective.k)
    assert isinstance(objective, MSLObjective)
    return msl_loss(logits(prompt), targets, legal, objective.start_tau, objective.facts()["denominator"])


GATED = {"adapter": "ilora", "lora_r": 4, "ilora_num_experts": 2}


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("MSL", {"msl_tau": 1.7}),
        ("MSL", {"msl_denominator": "branching"}),
        ("BEAR", {"bear_k": 2}),
        ("CFT", {}),
        ("CFT", GATED),
    ],
    ids=str,
)
def test_scores_of_the_runs_own_objective_are_those_of_its_pure_function(make, caplog, model, settings):
    config, rows, model = make(model, coreset_objective="same", lora_dropout=0, **settings)
    inputs = inputs_of(config, rows, model).llm
    with caplog.at_level("INFO"):
        efforts = inputs.effort()
    quality = inputs.quality()
    assert "one backward pass per row" not in caplog.text
    model.eval()
    adapter = [weight for weight in model.llm.parameters() if weight.requires_grad]
    for row in (0, 7, N_ROWS - 1):
        loss = loss_of(inputs, row, inputs.objective)
        parts = torch.autograd.grad(loss, adapter, materialize_grads=True)
        norm = torch.sqrt(sum(part.double().square().sum() for part in parts))
        assert efforts[row] == pytest.approx(float(norm), rel=1e-4)
        assert quality[row] == pytest.approx(-loss.item(), rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"llm_recommender": "LLaRA", "recommender": "SASRec"}], ids=str)
def test_an_objective_that_is_the_plain_loss_scores_as_it_does(make, settings):
    """CFT without its second term, and with even weights; item vectors in the prompt have no part in it."""
    model = "DEALRec" if settings else "BIGRec"
    plain = inputs_of(*make(model, lora_dropout=0, **settings)).llm.effort()
    cft = {"objective": "cft", "coreset_objective": "same", "cft_beta": 1.0, "lora_dropout": 0}
    same = inputs_of(*make(model, **cft, cft_weight=0.0, **settings)).llm.effort()
    np.testing.assert_allclose(same, plain, rtol=1e-4)
    other = inputs_of(*make(model, **cft, cft_weight=0.5, **settings)).llm.effort()
    assert np.isfinite(other).all() and not np.allclose(other, plain, rtol=1e-2)


def test_what_the_runs_objective_is_decides_scores_only_where_it_is_asked(make):
    """Selections of different objectives compare by default: one stage serves all of them."""

    def facts(model: str, name: str, **settings: object) -> dict[str, object]:
        inputs = inputs_of(*make(model, **settings)).llm
        return inputs.facts(inputs.declared[name])

    same = {"coreset_objective": "same"}
    asked = facts("MSL", "effort", **same)
    assert asked != facts("MSL", "effort") == facts("BIGRec", "effort") == facts("BIGRec", "effort", **same)
    assert asked != facts("MSL", "effort", **same, msl_tau=2.0)
    assert facts("MSL", "quality", **same) != facts("MSL", "quality")
    assert facts("MSL", "llm_vectors", **same) == facts("MSL", "llm_vectors")


def test_modules_beside_the_llm_have_no_part_in_effort_and_get_no_gradient(make):
    config, rows, model = make("DEALRec", llm_recommender="LLaRA", epochs=1)
    inputs = inputs_of(config, rows, model).llm
    found = inputs.effort()
    projector = list(model.projector.parameters())
    assert all(weight.grad is None and weight.requires_grad for weight in projector)
    assert np.isfinite(found).all() and (found > 0).all()
    with torch.no_grad():  # the prompt itself holds projected vectors
        for weight in projector:
            weight.mul_(3)
    assert not np.allclose(inputs.effort(), found, rtol=1e-3)


def test_vectors_of_the_llm_do_not_depend_on_batches(make):
    one, other = (inputs_of(*make(generation_batch_tokens=tokens)).llm.llm_vectors() for tokens in (1, 8192))
    assert one.shape == (N_ROWS, 32)
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_effort_does_not_depend_on_batches(make):
    one, other = (inputs_of(*make(micro_batch_tokens=tokens)).llm.effort() for tokens in (1, 8192))
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_where_memory_runs_out_no_finished_row_is_asked_for_again(make, monkeypatch):
    config, rows, model = make(micro_batch_tokens=300, lora_dropout=0)
    inputs = inputs_of(config, rows, model).llm
    expected, losses, asked = inputs.quality(), inputs._losses, list[list[int]]()

    def fails_once(batch: Sequence[int]) -> torch.Tensor:
        if len(asked) == 2:
            asked.append([])
            raise torch.OutOfMemoryError("too much")
        asked.append(list(batch))
        return losses(batch)

    monkeypatch.setattr(inputs, "_losses", fails_once)
    np.testing.assert_allclose(inputs.quality(), expected, rtol=1e-5)
    assert [] in asked and sorted(row for batch in asked for row in batch) == list(range(N_ROWS))


def test_quality_is_the_mean_log_probability_of_the_answers_tokens(make):
    inputs = inputs_of(*make(lora_dropout=0.5)).llm
    found = inputs.quality()
    for row in (0, N_ROWS - 1):
        prompt, response = inputs.examples[row]
        with torch.no_grad():
            log_probs = inputs.model.eval().llm(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        own = [float(log_probs[len(prompt) - 1 + place, token]) for place, token in enumerate(response)]
        assert found[row] == pytest.approx(np.mean(own), rel=1e-5)


def two_way(inputs: LLMInputs, row: int) -> torch.Tensor:
    """Cross entropy of the row's label under the softmax over No and Yes alone."""
    logits = inputs.model.llm(input_ids=torch.tensor([inputs.examples[row][0]])).logits[0, -1]
    label = torch.tensor(int(inputs.data.labels()[row]))
    return F.cross_entropy(logits[list(inputs.model.prompts.answer_token_ids)], label)


def test_gradient_norms_of_clicks_are_of_the_choice_between_yes_and_no(clicks):
    found, quality = clicks.llm.gradient_norms(), clicks.llm.quality()
    adapter = [weight for weight in clicks.model.llm.parameters() if weight.requires_grad]
    clicks.model.eval()
    for row in (0, 5, N_ROWS - 1):
        loss = two_way(clicks.llm, row)
        parts = torch.autograd.grad(loss, adapter, materialize_grads=True)
        norm = torch.sqrt(sum(part.double().square().sum() for part in parts))
        assert found[row] == pytest.approx(float(norm), rel=1e-3)
        assert quality[row] == pytest.approx(-float(loss), rel=1e-4)


def test_error_of_clicks_is_the_distance_of_the_two_probabilities_from_the_label(clicks):
    found, labels = clicks.llm.choice_errors(), clicks.data.labels()
    clicks.model.eval()
    for row in (0, 5, N_ROWS - 1):
        with torch.no_grad():
            p = float(torch.exp(-two_way(clicks.llm, row)))  # of the label
        yes = p if labels[row] else 1 - p
        assert found[row] == pytest.approx(2**0.5 * abs(yes - labels[row]), rel=1e-4)
