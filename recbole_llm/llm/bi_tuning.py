"""Trained vectors before and after a frozen LLM's prompts, and the state of the last one (Laser, arXiv 2409.01605).

The M-Former makes the vectors before a prompt of what a frozen recommender knows of the history's items: a router picks
one of several sets of queries, and these look at the items' states. The LLM's last state at the one vector behind the
prompt stands for the history; a history of one item stands for that item.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from recbole_llm.adapter.experts import route_experts
from recbole_llm.llm.laser_settings import LaserSettings
from recbole_llm.llm.loss import positions_from_mask
from recbole_llm.llm.parts import input_embedding, unwrapped

STANDARD_DEVIATION = 0.02  # of queries and router at the start


class MFormerBlock(nn.Module):
    """Self-attention of the queries, in some blocks attention to items, feed-forward; a norm after each.

    Args:
        settings: sizes.
        state_width: entries of an item's state; None for a block that sees no items.
    """

    def __init__(self, settings: LaserSettings, state_width: int | None) -> None:
        super().__init__()
        width, heads = settings.width, settings.heads
        self.own = nn.MultiheadAttention(width, heads, batch_first=True)
        self.own_norm = nn.LayerNorm(width)
        self.items: nn.MultiheadAttention | None = None
        if state_width is not None:
            self.items = nn.MultiheadAttention(width, heads, kdim=state_width, vdim=state_width, batch_first=True)
            self.items_norm = nn.LayerNorm(width)
        self.forward_map = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.forward_norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """The queries after this block.

        Args:
            queries: [b, l, width].
            states: [b, n, state_width].
            mask: bool [b, n], True for an item; a row without any sees nothing.

        Returns:
            [b, l, width].
        """
        queries = self.own_norm(queries + self.own(queries, queries, queries, need_weights=False)[0])
        if self.items is not None:
            known = mask.any(dim=1)
            hidden = ~mask & known[:, None]  # of a row without items none is hidden: its result is not taken
            seen = self.items(queries, states, states, key_padding_mask=hidden, need_weights=False)[0]
            queries = self.items_norm(queries + seen * known[:, None, None])
        found: Tensor = self.forward_norm(queries + self.forward_map(queries))
        return found


class MFormer(nn.Module):
    """The vectors before a prompt, of the states of a history's items.

    Args:
        settings: sizes.
        state_width: entries of an item's state.
        width: width of the LLM's input embedding.
        norm: length that a vector has at the start, about.
    """

    def __init__(self, settings: LaserSettings, state_width: int, width: int, norm: float) -> None:
        super().__init__()
        self.scales = settings.router_scale
        self.router = nn.Parameter(STANDARD_DEVIATION * torch.randn(settings.experts, state_width))
        size = (settings.experts, settings.prefix_len, settings.width)
        self.experts = nn.Parameter(STANDARD_DEVIATION * torch.randn(size))
        self.blocks = nn.ModuleList(
            MFormerBlock(settings, None if number % 2 else state_width) for number in range(settings.layers)
        )
        self.output = nn.Linear(settings.width, width)
        # A normalised vector of m entries has a length of sqrt(m), and d outputs of it one of std * sqrt(m * d).
        nn.init.normal_(self.output.weight, std=norm / (settings.width * width) ** 0.5)
        nn.init.zeros_(self.output.bias)

    def votes(self, states: Sequence[Tensor]) -> Tensor:
        """How likely each item of all histories finds each expert. Returns: [items of all, experts]."""
        with self._in_float32():
            found: Tensor = (torch.cat(list(states)) @ self.router.T).softmax(dim=1)
        return found

    def _in_float32(self) -> torch.autocast:
        """Autocast off: votes rounded to bfloat16 could choose another expert than in evaluation.

        Gates of adapters are computed likewise.
        """
        return torch.autocast(self.router.device.type, enabled=False)

    @torch.no_grad()
    def chosen(self, states: Sequence[Tensor]) -> list[int]:
        """The expert of each history; the first where no item is known."""
        with self._in_float32():
            return [route_experts(own, self.router)[2] for own in states]

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """The vectors before each prompt.

        Args:
            states: states of each history's items [n, state_width]; n may be 0.

        Returns:
            [histories, prefix_len, width].
        """
        chosen = self.chosen(states)
        queries = self.experts[chosen]
        if self.scales:
            with self._in_float32():
                scores = [route_experts(own, self.router)[1] for own in states]
            shares = [
                own[expert] / own.sum() if len(items) else queries.new_ones(()) / len(own)
                for own, expert, items in zip(scores, chosen, states, strict=True)
            ]
            queries = queries * torch.stack(shares)[:, None, None]
        lengths = torch.tensor([len(own) for own in states], device=queries.device)
        padded = pad_sequence([own if len(own) else own.new_zeros(1, own.shape[1]) for own in states], batch_first=True)
        mask = torch.arange(padded.shape[1], device=queries.device) < lengths[:, None]
        for block in self.blocks:
            queries = block(queries, padded, mask)
        found: Tensor = self.output(queries)
        return found


class BiTuning(nn.Module):
    """What learns of a frozen LLM's user and item vectors.

    Args:
        llm: the LLM; it is not kept.
        state_width: entries of an item's state.
        settings: sizes.

    Attributes:
        mformer: makes the vectors before a prompt.
        suffix: [d], the vector after every prompt.
    """

    def __init__(self, llm: nn.Module, state_width: int, settings: LaserSettings) -> None:
        super().__init__()
        embedding = input_embedding(llm).weight.detach().float()
        norm, width = float(embedding.norm(dim=1).mean()), embedding.shape[1]
        self.mformer = MFormer(settings, state_width, width, norm)
        self.suffix = nn.Parameter(norm * normalize(torch.randn(width), dim=0))

    def forward(self, llm: nn.Module, prompts: Sequence[Sequence[int]], states: Sequence[Tensor]) -> Tensor:
        """Vectors of histories: the LLM's last state at the vector after each prompt.

        Args:
            llm: the LLM.
            prompts: token ids of each history's prompt.
            states: states of its items, [n, state_width]; n may be 0.

        Returns:
            float32 [histories, d].
        """
        embedding = input_embedding(llm)
        device, lengths = embedding.weight.device, [len(prompt) for prompt in prompts]
        tokens = embedding(torch.tensor([token for prompt in prompts for token in prompt], device=device))
        before, behind = self.mformer(states).to(tokens.dtype), self.suffix[None].to(tokens.dtype)
        rows = [
            torch.cat([prefix, own, behind]) for prefix, own in zip(before, tokens.split(lengths), strict=True)
        ]  # fmt: skip
        embedded = pad_sequence(rows, batch_first=True, padding_side="left")
        width = embedded.shape[1]
        gaps = torch.tensor([width - len(row) for row in rows], device=device)
        mask = (torch.arange(width, device=device) >= gaps[:, None]).long()
        output = unwrapped(llm).get_decoder()(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions_from_mask(mask), use_cache=False
        )
        state: Tensor = output.last_hidden_state[:, -1].float()
        return state


class ItemTable(nn.Module):
    """The catalogue's vectors as they are ranked by: no gradient, but kept with the weights that they were made with.

    Args:
        n_items: rows.
        width: entries of a vector.

    Attributes:
        vectors: float32 [items, d], of length 1; zeros for an item without text, and for all before the first
            computation.
    """

    def __init__(self, n_items: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(n_items, width), requires_grad=False)
