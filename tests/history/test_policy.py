"""The actor and critic of SAR, without any recommender."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llm.history import LengthPolicy, SarSettings, last_items, learn_by_table, newest, policy_loss

LENGTHS = [1, 2, 3, 5, 8, 12]


def histories(n_rows, n_items=20, longest=12, seed=0):
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, longest + 1, (n_rows,), generator=rng)
    items = torch.randint(1, n_items, (n_rows, longest), generator=rng)
    return torch.where(torch.arange(longest) < sizes[:, None], items, 0), sizes


@given(st.integers(0, 10_000), st.integers(1, 15))
@settings(max_examples=30)
def test_what_is_kept_is_the_newest(seed, kept):
    items, sizes = histories(6, seed=seed)
    cut, counts = newest(items, sizes, torch.full((6,), kept))
    for row in range(6):
        own = items[row, : sizes[row]].tolist()
        assert cut[row].tolist() == own[-kept:] + [0] * (12 - min(kept, len(own))) and counts[row] == min(
            kept, len(own)
        )
        assert last_items(own, kept, 12).tolist()[-int(counts[row]) :] == cut[row, : counts[row]].tolist()


def test_lengths_that_show_the_same_cannot_be_chosen():
    policy = LengthPolicy(20, LENGTHS, width=8, longest=6).eval()
    items, sizes = torch.tensor([[3, 4, 5, 6] + [0] * 8, [7] + [0] * 11]), torch.tensor([4, 1])
    log_probs, _ = policy(items, sizes)
    assert (log_probs.exp() > 0).tolist() == [[True] * 4 + [False] * 2, [True] + [False] * 5]
    assert log_probs.exp().sum(dim=1).tolist() == pytest.approx([1, 1])
    with torch.no_grad():
        policy.actor.weight.zero_()
        policy.actor.bias.zero_()
    assert policy.best(items, sizes).tolist() == [1, 1]  # the shorter among equals


def test_what_is_not_real_or_too_old_is_not_read():
    policy = LengthPolicy(20, LENGTHS, width=8, longest=3).eval()
    items, sizes = torch.tensor([[3, 4, 5, 6, 0], [9, 4, 5, 6, 0]]), torch.tensor([4, 4])
    log_probs, values = policy(items, sizes)
    torch.testing.assert_close(log_probs[0], log_probs[1])
    torch.testing.assert_close(values[0], values[1])
    behind = items.clone()
    behind[:, 4] = 11
    assert torch.equal(policy(behind, sizes)[0], log_probs)
    assert not torch.equal(policy(torch.tensor([[3, 4, 5, 7, 0]]), torch.tensor([4]))[0], log_probs[:1])


def train(reward, updates=300, rate=3e-3):
    """Rewards by chosen lengths and, where there are some, by the group that shows in the newest item."""
    torch.manual_seed(0)
    policy, draws = LengthPolicy(20, LENGTHS, width=32, longest=12), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(policy.parameters(), lr=rate)
    for update in range(updates):
        items, _ = histories(64, seed=update)
        items[:, :] = torch.where(items > 0, items, 1)
        sizes = torch.full((64,), 12)
        log_probs, values = policy(items, sizes)
        chosen = torch.multinomial(log_probs.detach().exp(), 1, generator=draws)[:, 0]
        gained = reward(policy.lengths[chosen], items[:, -1] % 2 == 0)
        optimizer.zero_grad()
        policy_loss(log_probs, values, chosen, gained, entropy=0.01).backward()
        optimizer.step()
    items, _ = histories(200, seed=9999)
    items = torch.where(items > 0, items, 1)
    return policy.eval()(items, torch.full((200,), 12))[0].exp(), items[:, -1] % 2 == 0


def test_the_one_length_that_pays_is_found():
    chances, _ = train(lambda lengths, _: (lengths == 2).float(), updates=100, rate=0.01)
    assert chances[:, 1].min() > 0.9


@pytest.mark.slow
def test_two_groups_have_a_length_each():
    chances, even = train(lambda lengths, even: (lengths == torch.where(even, 2, 8)).float(), updates=400)
    assert chances[even, 1].mean() > 0.9 and chances[~even, 4].mean() > 0.9


def test_a_price_alone_asks_for_the_shortest():
    chances, _ = train(lambda lengths, _: -lengths / 12, updates=50, rate=0.01)
    assert chances[:, 0].mean() > 0.9


def test_entropy_counts_lengths_that_can_be_chosen():
    log_probs = torch.tensor([[0.5, 0.5, 0.0]]).log().requires_grad_()
    loss = policy_loss(log_probs, torch.zeros(1), torch.tensor([0]), torch.zeros(1), 0.0, 0.0, entropy=1.0)
    assert float(loss) == pytest.approx(-torch.log(torch.tensor(2.0)).item())


def test_choices_are_lengths_that_differ():
    assert SarSettings().choices(50) == [1, 2, 5, 10, 20, 50] and SarSettings().choices(7) == [1, 2, 5, 7]


def test_a_single_known_reward_is_no_reason_to_fail():
    """One row with a history of one item has one length to choose, and learns nothing but stays usable."""
    torch.manual_seed(0)
    policy = LengthPolicy(9, [1, 2, 4], 8, 5)
    items, sizes = torch.tensor([[3]]), torch.tensor([1])
    learn_by_table(policy, items, sizes, torch.tensor([[-0.5, torch.nan, torch.nan]]), updates=3, seed=0)
    assert all(torch.isfinite(weight).all() for weight in policy.parameters())
    assert policy.best(items, sizes).tolist() == [1] and not policy.training
