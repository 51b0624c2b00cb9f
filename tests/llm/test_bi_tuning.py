"""Bi-tuning: what a row's vector depends on, what learns, and the vectors before a prompt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recbole_llm.llm.bi_tuning import BiTuning, MFormer
from recbole_llm.llm.laser_settings import LaserSettings
from recbole_llm.llm.parts import input_embedding
from tests.families import FAMILIES, make_family
from tests.refusals import refused

WIDTH = 6  # of an item's state
SETTINGS = LaserSettings(prefix_len=3, experts=4, layers=3, width=8, heads=2)


def states_of(*lengths: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, WIDTH, generator=generator) for length in lengths]


@pytest.fixture(scope="module", params=FAMILIES)
def llm(request: pytest.FixtureRequest) -> torch.nn.Module:
    return make_family(request.param)[0].requires_grad_(False)


@pytest.fixture
def tuned(llm: torch.nn.Module) -> BiTuning:
    torch.manual_seed(1)
    tuned = BiTuning(llm, WIDTH, SETTINGS)
    with torch.no_grad():  # far from the start, where all experts are nearly alike
        tuned.mformer.experts.normal_()
        tuned.mformer.router.normal_()
    return tuned


PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [7]]


def test_a_vector_is_the_last_state_of_prefix_prompt_and_suffix(llm, tuned):
    states = states_of(2, 5, 1)
    found = tuned(llm, PROMPTS, states)
    for row, (prompt, own) in enumerate(zip(PROMPTS, states, strict=True)):
        tokens = input_embedding(llm)(torch.tensor(prompt))
        whole = torch.cat([tuned.mformer([own])[0], tokens, tuned.suffix[None]])
        state = llm(inputs_embeds=whole[None], output_hidden_states=True).hidden_states[-1][0, -1]
        torch.testing.assert_close(found[row], state, atol=1e-4, rtol=1e-4)


def test_every_token_matters_and_none_sees_the_suffix(llm, tuned):
    seen: list[Tensor] = []
    hook = llm.get_decoder().register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
    try:
        (states,) = states_of(3)
        before = tuned(llm, [[5, 6, 7, 8]], [states])
        for position in range(4):
            changed = [5, 6, 7, 8]
            changed[position] = 20
            assert not torch.allclose(before, tuned(llm, [changed], [states]), atol=1e-4)
        with torch.no_grad():
            tuned.suffix.neg_()
        after = tuned(llm, [[5, 6, 7, 8]], [states])
    finally:
        hook.remove()
    assert not torch.allclose(before, after, atol=1e-4)
    torch.testing.assert_close(seen[0][:, :-1], seen[-1][:, :-1])


def test_what_learns_is_not_the_llm(llm, tuned):
    states = states_of(2, 3)
    tuned(llm, PROMPTS[:2], states).pow(2).sum().backward()
    chosen = set(tuned.mformer.chosen(states))
    assert all(weight.grad is None for weight in llm.parameters())
    assert tuned.suffix.grad.abs().sum() > 0 and tuned.mformer.router.grad is None
    for expert, gradient in enumerate(tuned.mformer.experts.grad):
        assert (gradient.abs().sum() > 0).item() is (expert in chosen)


def test_the_router_learns_from_the_ranking_where_queries_are_scaled(llm):
    torch.manual_seed(1)
    tuned = BiTuning(llm, WIDTH, LaserSettings(prefix_len=3, experts=4, width=8, heads=2, router_scale=True))
    tuned(llm, PROMPTS, states_of(2, 3, 0)).pow(2).sum().backward()
    assert tuned.mformer.router.grad.abs().sum() > 0


def mformer(**settings: int | bool) -> MFormer:
    torch.manual_seed(0)
    chosen = LaserSettings(**{"prefix_len": 3, "experts": 4, "layers": 3, "width": 8, "heads": 2, **settings})
    return MFormer(chosen, WIDTH, 16, norm=2.0)


def test_rows_know_nothing_of_each_other_and_padding_is_not_seen():
    module, states = mformer(), states_of(2, 5, 0, 1)
    together = module(states)
    for row, own in enumerate(states):
        torch.testing.assert_close(together[row], module([own])[0])
    assert module.votes(states).shape == (8, 4) and module.chosen(states)[2] == 0


def test_the_router_is_not_computed_in_half():
    """Among other numbers a history would have other experts."""
    module, histories = mformer(router_scale=True), [states_of(10, seed=seed)[0] for seed in range(200)]
    module.router.data *= 50
    votes, chosen = module.votes(histories), module.chosen(histories)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.votes(histories), votes) and module.chosen(histories) == chosen
        for block in list(module.blocks):  # the shares of the experts alone
            block.forward = lambda queries, *others: queries  # type: ignore[method-assign]
        module.output = torch.nn.Identity()  # type: ignore[assignment]
        scaled = module(histories)
    assert torch.equal(scaled, module(histories))


def test_items_are_seen_in_every_other_block():
    assert [block.items is not None for block in mformer().blocks] == [True, False, True]
    module = mformer(layers=1, experts=1)
    one, other = module(states_of(3)), module(states_of(3, seed=1))
    assert not torch.allclose(one, other)
    nothing = module(states_of(0))
    assert torch.isfinite(nothing).all() and not torch.allclose(nothing, one)


def test_vectors_begin_at_the_length_they_are_given():
    torch.manual_seed(0)
    sizes = LaserSettings(prefix_len=64, experts=2, width=64, heads=2)
    vectors = MFormer(sizes, WIDTH, 32, norm=5.0)(states_of(4))
    assert vectors.norm(dim=-1).mean().item() == pytest.approx(5.0, rel=0.1)


def test_heads_divide_the_width():
    with refused("laser_width", "conflict"):
        LaserSettings(width=10, heads=4)
