"""SAR's actor and critic: a gated transformer reads a history and chooses how many items a model sees.

Tensors in, tensors out; independent of RecBole. SAR (arXiv 2108.01442) could be read in part: the gated block is
that of GTrXL (arXiv 1910.06764), the rest our reading.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recbole_llm.history.actor_critic import actor_critic_losses

HEADS = 2
GATE_BIAS = 2.0  # at first a gate keeps what comes in
ROWS, LEARNING_RATE = 64, 3e-3  # of a step of Adam


class Gate(nn.Module):
    """A GRU's gate between what comes in, h, and what a sublayer makes of it, y: ``(1 - z) h + z c``.

    Args:
        width: width of both.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_new = nn.Linear(width, 3 * width, bias=False)
        self.of_old = nn.Linear(width, 2 * width, bias=False)
        self.of_reset = nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        """Gate a block's output `y` into its input `h`, both [..., width]. Returns: [..., width]."""
        (new_r, new_z, new_c), (old_r, old_z) = self.of_new(y).chunk(3, dim=-1), self.of_old(h).chunk(2, dim=-1)
        reset, update = torch.sigmoid(new_r + old_r), torch.sigmoid(new_z + old_z - GATE_BIAS)
        proposed = torch.tanh(new_c + self.of_reset(reset * h))
        return (1 - update) * h + update * proposed


class GatedBlock(nn.Module):
    """Causal attention and feed-forward, each behind a layer norm and before a gate.

    Args:
        width: a multiple of the heads, 2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.forward_layers = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.gates = nn.ModuleList(Gate(width) for _ in range(2))

    def forward(self, h: Tensor) -> Tensor:
        """States [b, t, width] after the block; real entries stand before padding and do not see it."""
        later = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool, device=h.device).triu(1)
        x = self.norms[0](h)
        y, _ = self.attention(x, x, x, attn_mask=later, need_weights=False)
        h = self.gates[0](h, torch.relu(y))
        found: Tensor = self.gates[1](h, torch.relu(self.forward_layers(self.norms[1](h))))
        return found


class LengthPolicy(nn.Module):
    """Which of some lengths, and what return to expect, after a history.

    Lengths beyond the shortest one that covers a history would show the same, and cannot be chosen.

    Args:
        n_items: items, padding 0 among them.
        lengths: history lengths to choose from, ascending.
        width: width of the state.
        longest: newest items that are read.

    Example:
        >>> policy = LengthPolicy(n_items=9, lengths=[1, 2, 4], width=8, longest=5)
        >>> log_probs, values = policy(torch.tensor([[3, 1, 0], [5, 6, 7]]), torch.tensor([2, 3]))
        >>> log_probs.exp()[0, 2].item(), values.shape
        (0.0, torch.Size([2]))
    """

    lengths: Tensor

    def __init__(self, n_items: int, lengths: Sequence[int], width: int = 64, longest: int = 50) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_items, width, padding_idx=0)
        self.position = nn.Embedding(longest, width)
        self.block = GatedBlock(width)
        self.actor, self.critic = nn.Linear(width, len(lengths)), nn.Linear(width, 1)
        self.longest = longest
        self.register_buffer("lengths", torch.tensor(sorted(lengths)))

    def forward(self, histories: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Choices and values.

        Args:
            histories: int64 [b, t], oldest first, 0 after the last item.
            sizes: int64 [b], items of each, at least 1.

        Returns:
            [b, lengths], log-probabilities, -inf where a length cannot be chosen; [b], expected returns.
        """
        items, counts = newest(histories, sizes, torch.full_like(sizes, self.longest))
        items = items[:, : int(counts.max())]
        # Positions count from the newest item on: a place means the same in every history.
        places = (counts[:, None] - 1 - torch.arange(items.shape[1], device=items.device)).clamp(min=0)
        states = self.block(self.embedding(items) + self.position(places))
        last = states.gather(1, (counts - 1)[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]
        logits = self.actor(last).masked_fill(~self.allowed(sizes), -torch.inf)
        return logits.log_softmax(dim=1), self.critic(last)[:, 0]

    def allowed(self, sizes: Tensor) -> Tensor:
        """Which lengths show a history differently. Returns: bool [b, lengths]."""
        shorter = torch.cat([self.lengths.new_zeros(1), self.lengths[:-1]])
        return shorter[None] < sizes[:, None]

    @torch.no_grad()
    def best(self, histories: Tensor, sizes: Tensor) -> Tensor:
        """The likeliest length of each history, the shorter among equals. Returns: int64 [b]."""
        log_probs, _ = self(histories, sizes)
        likeliest = log_probs == log_probs.amax(dim=1, keepdim=True)
        return self.lengths[likeliest.int().argmax(dim=1)]


def newest(histories: Tensor, sizes: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The newest items of each history.

    Args:
        histories: int64 [b, t], oldest first, 0 after the last item.
        sizes: int64 [b], items of each.
        kept: int64 [b], how many to keep; more than there are keeps all.

    Returns:
        int64 [b, t], the kept ones, oldest first, 0 behind them; int64 [b], how many.

    Example:
        >>> newest(torch.tensor([[5, 6, 7, 8], [3, 4, 0, 0]]), torch.tensor([4, 2]), torch.tensor([2, 9]))[0].tolist()
        [[7, 8, 0, 0], [3, 4, 0, 0]]
    """
    counts = torch.minimum(sizes, kept)
    places = torch.arange(histories.shape[1], device=histories.device)[None]
    index = (places + (sizes - counts)[:, None]).clamp(max=histories.shape[1] - 1)
    return torch.where(places < counts[:, None], histories.gather(1, index), 0), counts


def policy_loss(
    log_probs: Tensor,
    values: Tensor,
    chosen: Tensor,
    returns: Tensor,
    critic_weight: float = 0.5,
    actor_weight: float = 1.0,
    entropy: float = 0.01,
) -> Tensor:
    """Actor, critic and entropy of some steps, by the number of steps.

    Args:
        log_probs: [t, lengths], of :class:`LengthPolicy`.
        values: [t].
        chosen: int64 [t], positions of the chosen lengths.
        returns: [t].
        critic_weight: weight of the critic's loss.
        actor_weight: weight of the actor's loss.
        entropy: weight of the entropy, which is to be large.

    Returns:
        A scalar.
    """
    taken = log_probs.gather(1, chosen[:, None])[:, 0]
    actor, critic, _ = actor_critic_losses(taken, values, returns)
    finite = log_probs.masked_fill(log_probs == -torch.inf, 0.0)
    spread = -(log_probs.exp() * finite).sum()
    loss: Tensor = (actor_weight * actor + critic_weight * critic - entropy * spread) / max(len(chosen), 1)
    return loss


def learn_by_table(
    policy: LengthPolicy,
    histories: Tensor,
    sizes: Tensor,
    rewards: Tensor,
    updates: int,
    seed: int,
) -> None:
    """Train an actor-critic on rewards that are known for every length: each step still sees those of what it chose.

    Rewards are standardised over the table, so that their unit does not matter.

    Args:
        policy: what is trained; it is left in eval mode.
        histories: int64 [n, t], oldest first, 0 after the last item.
        sizes: int64 [n].
        rewards: [n, lengths]; NaN where a length cannot be chosen.
        updates: steps of Adam, on :data:`ROWS` rows each.
        seed: seed of the rows and choices.
    """
    known = rewards[~rewards.isnan()]
    spread = known.std() if len(known) > 1 else 0.0  # of a single reward it is not a number
    scaled = (rewards - known.mean()) / (spread + 1e-8)
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE)
    policy.train()
    for _ in range(updates):
        index = torch.randint(len(sizes), (ROWS,), generator=draws)
        log_probs, values = policy(histories[index], sizes[index])
        chosen = torch.multinomial(log_probs.detach().exp(), 1, generator=draws)[:, 0]
        optimizer.zero_grad()
        policy_loss(log_probs, values, chosen, scaled[index, chosen]).backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    policy.eval()
