"""Item vectors in prompts, against prompts of embeddings built by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from recbole_llm.adapter import LoraAdapter
from recbole_llm.llm.branches import BranchScorer
from recbole_llm.llm.generation import beam_search
from recbole_llm.llm.item_slots import ItemProjector, ItemSlots
from recbole_llm.llm.loss import positions_from_mask
from recbole_llm.llm.prefill import PrefillScorer
from recbole_llm.llm.trunks import TrunkScorer
from tests.families import FAMILIES, make_family

NEUTRAL = 7
# Negative ids are slots; lengths differ, so that rows are padded, and all begin alike, so that a prefix is shared.
PROMPTS = [[5, 6, 20, -3, 21], [5, 6, 20, -3, 22, 23, -1, 24, 9], [5, 6, 25, -5, -5, 9]]
ANSWERS = [[[30, 31, 2], [30, 40, 41, 2]], [[32, 2], [32, 33, 2]], [[34, 35, 36, 2], [37, 2]]]
VECTORS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def make_slots(family, lora=False):
    """A model, with LoRA that has learned something if asked, and its slots."""
    model, _ = make_family(family)
    if lora:
        model = LoraAdapter(dropout=0.0).attach(model)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    torch.manual_seed(2)
    projector = ItemProjector(VECTORS, model.get_input_embeddings().weight.shape[1])
    for parameter in projector.parameters():
        parameter.data.mul_(5)  # as large as this model's other embeddings
    return model.eval(), ItemSlots(model, projector, NEUTRAL)


def embeddings_by_hand(model, slots, tokens):
    """Embeddings [1, tokens, d] of one row: of its tokens, and of the items where slots are."""
    table = model.get_input_embeddings().weight
    rows = [slots.projector(torch.tensor([-t]))[0] if t < 0 else table[t] for t in tokens]
    return torch.stack(rows)[None]


def plain_copy(model):
    """The same model without hooks."""
    copied = copy.deepcopy(model)
    embedding = copied.get_input_embeddings()
    embedding._forward_hooks.clear()
    embedding._forward_pre_hooks.clear()
    return copied


def padded(prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions_from_mask(mask)}


@torch.no_grad()
def logits(model, prompts=PROMPTS):
    return model(**padded(prompts)).logits[:, -1]


# ------------------------------------------------------------------------------------------------- where vectors stand


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_prompts_compute_as_embeddings_built_by_hand(family, lora):
    model, slots = make_slots(family, lora)
    bare = plain_copy(model)
    with torch.no_grad():
        expected = [bare(inputs_embeds=embeddings_by_hand(model, slots, own)).logits[0, -1] for own in PROMPTS]
    torch.testing.assert_close(logits(model), torch.stack(expected), atol=1e-4, rtol=1e-4)
    slots.hybrid = False
    assert (logits(model) - torch.stack(expected)).abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_two_answers_in_one_pass_see_the_vectors_of_their_own_prompt(family):
    model, slots = make_slots(family)
    found = BranchScorer(model, 0).log_probs(PROMPTS, ANSWERS)
    bare = plain_copy(model)
    for row, (prompt, answers) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        for place, answer in enumerate(answers):
            with torch.no_grad():
                inputs = embeddings_by_hand(model, slots, prompt + answer)
                after = bare(inputs_embeds=inputs).logits[0, len(prompt) - 1 : -1].log_softmax(dim=1)
            expected = after[range(len(answer)), answer]
            own = found.values[(found.rows == row) & (found.answers == place)]
            torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_slots_among_answer_tokens_are_inputs_and_have_no_probability(family):
    model, slots = make_slots(family)
    prompts, answers = [[5, 6], [5, 6, 9]], [[20, -3, 21, -5, 2], [-1, 24, 25, -2]]
    whole, first = TrunkScorer(model, 0), PrefillScorer(model, 0)
    with torch.no_grad():
        found = [
            whole.log_probs(prompts, [[answer] for answer in answers]),
            whole.tree_log_probs([[0], [1]], prompts, [[answer] for answer in answers]),
            first.run(prompts, answers),
        ]
        expected = []
        for prompt, answer in zip(prompts, answers, strict=True):
            embedded = embeddings_by_hand(model, slots, prompt + answer)
            table = plain_copy(model)(inputs_embeds=embedded).logits[0].log_softmax(dim=-1)
            expected += [table[len(prompt) + i - 1, token] for i, token in enumerate(answer) if token >= 0]
    for own in found:
        order = own.rows.argsort(stable=True)
        assert own.rows[order].tolist() == [0, 0, 0, 1, 1]
        torch.testing.assert_close(own.values[order], torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_are_those_of_embeddings_built_by_hand_with_and_without_a_shared_prefix(family):
    model, slots = make_slots(family)
    options = {"eos_token_id": 2, "pad_token_id": 0, "num_beams": 3, "max_new_tokens": 5}
    found = {share: beam_search(model, PROMPTS, share_prefix=share, **options) for share in (True, False)}
    bare = plain_copy(model)
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            inputs = embeddings_by_hand(model, slots, prompt)
            out = bare.generate(
                inputs_embeds=inputs, attention_mask=torch.ones(inputs.shape[:2]), do_sample=False, num_beams=3,
                max_new_tokens=5, eos_token_id=2, pad_token_id=0, early_stopping=False,
            )[0].tolist()  # fmt: skip
        expected = out[: out.index(2)] if 2 in out else out
        assert found[True][row].token_ids == found[False][row].token_ids == expected
    assert len({tuple(answer.token_ids) for answer in found[True]}) > 1


def test_repeated_and_neighbouring_slots_and_slots_of_other_rows_do_not_mix():
    model, _ = make_slots("llama")
    together = logits(model, [[5, -1, -2], [5, -2, -1], [-1, -1, 5]])
    apart = torch.cat([logits(model, [row]) for row in ([5, -1, -2], [5, -2, -1], [-1, -1, 5])])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------- text alone, no slots


@pytest.mark.parametrize("family", FAMILIES)
def test_text_alone_is_the_neutral_token_in_every_slot(family):
    model, slots = make_slots(family)
    slots.hybrid = False
    neutral = [[NEUTRAL if token < 0 else token for token in prompt] for prompt in PROMPTS]
    assert torch.equal(logits(model), logits(plain_copy(model), neutral))
    assert torch.equal(logits(model), logits(model, neutral))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_token_to_spare_text_alone_is_the_mean_embedding(family):
    model, slots = make_slots(family)
    without = ItemSlots(plain := plain_copy(model), slots.projector, None)
    mean = plain.get_input_embeddings().weight.mean(dim=0)
    without.hybrid = False
    assert (logits(plain) - logits(model)).abs().max() > 1e-3  # hybrid prompts
    other = plain_copy(model)
    with torch.no_grad():
        other.get_input_embeddings().weight[NEUTRAL] = mean
    if family == "llama":  # the others' output embedding is the same matrix
        slots.hybrid = False
        neutral = [[NEUTRAL if token < 0 else token for token in prompt] for prompt in PROMPTS]
        torch.testing.assert_close(logits(plain), logits(other, neutral), atol=1e-5, rtol=1e-5)


def test_a_projector_that_gives_the_neutral_embedding_is_text_alone():
    model, slots = make_slots("llama")
    last = slots.projector.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(model.get_input_embeddings().weight[NEUTRAL])
    hybrid = logits(model)
    slots.hybrid = False
    torch.testing.assert_close(hybrid, logits(model), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("hybrid", [True, False])
def test_prompts_without_slots_compute_as_before(hybrid):
    model, slots = make_slots("llama")
    slots.hybrid = hybrid
    prompts = [[abs(token) for token in prompt] for prompt in PROMPTS]
    assert torch.equal(logits(model, prompts), logits(plain_copy(model), prompts))


def test_an_item_of_which_nothing_is_known_has_no_vector():
    projector = ItemProjector(torch.cat([torch.zeros(2, 4), VECTORS]), 8)
    found = projector(torch.tensor([0, 1, 2]))
    assert not found[:2].any() and found[2].all()
    expected = projector.layers[2](nn.functional.gelu(projector.layers[0](VECTORS[0])))
    torch.testing.assert_close(found[2], expected)


# ------------------------------------------------------------------------------------------------------------- learning


def gradients(model, slots):
    parameters = {**dict(model.named_parameters()), **dict(slots.projector.named_parameters())}
    for parameter in parameters.values():
        parameter.grad = None
    torch.manual_seed(0)  # of GPT-2's own dropout
    BranchScorer(model, 0).log_probs(PROMPTS, ANSWERS).values.sum().backward()
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(family, lora):
    model, slots = make_slots(family, lora)
    expected = gradients(model.train(), slots)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    found = gradients(model, slots)
    assert found.keys() == expected.keys() >= {"layers.0.weight", "layers.2.bias"}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-3)


def test_the_projector_learns_from_hybrid_prompts_only():
    model, slots = make_slots("llama", lora=True)
    found = gradients(model, slots)
    assert all(found[name].any() for name, _ in slots.projector.named_parameters())
    slots.hybrid = False
    found = gradients(model, slots)
    assert found and not found.keys() & dict(slots.projector.named_parameters()).keys()


def test_the_gradient_of_the_projector_is_that_of_embeddings_built_by_hand():
    model, slots = make_slots("llama")
    prompt, answer = PROMPTS[1], ANSWERS[1][1]
    BranchScorer(model, 0).log_probs([prompt], [[answer]]).values.sum().backward()
    found = [p.grad.clone() for p in slots.projector.parameters()]
    slots.projector.zero_grad()
    after = plain_copy(model)(inputs_embeds=embeddings_by_hand(model, slots, prompt + answer)).logits[0]
    after[len(prompt) - 1 : -1].log_softmax(dim=1)[range(len(answer)), answer].sum().backward()
    for own, parameter in zip(found, slots.projector.parameters(), strict=True):
        torch.testing.assert_close(own, parameter.grad, atol=1e-4, rtol=1e-3)


def test_item_vectors_are_no_weights():
    projector = ItemProjector(VECTORS, 8)
    assert set(projector.state_dict()) == {"layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"}
    assert not projector.item_vectors.requires_grad
    big = ItemProjector(torch.zeros(3, 64), 4096)
    assert sum(p.numel() for p in big.parameters()) == 17_047_552
