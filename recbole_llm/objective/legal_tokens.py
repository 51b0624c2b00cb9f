"""The softmax among the tokens that continue a title of the catalogue, in flat lists: no table [tokens, vocabulary].

Notation of the objectives: an answer token t has logits z_t [V], the right token y_t, and the legal set S_t, the
children of the trie's node that the answer's tokens before t lead to. With one legal token t is forced, with more it
branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from recbole_llm.arrays import computes_in_torch, widened


@dataclass(frozen=True)
class LegalTokens:
    """Logits of the legal tokens of n answer tokens, side by side, divided by the temperature.

    Attributes:
        scaled: [legal tokens of all], logits over temperature, float32 or float64.
        token: int64 [legal tokens of all], the answer token each belongs to, ascending.
        counts: int64 [n], legal tokens of each; m_t.
        right: [n], scaled logit of the right token.
        tau: the temperature.

    Example:
        >>> tokens = LegalTokens.of(torch.zeros(1, 8), torch.tensor([5]), legal=[[3, 5]], tau=1.0)
        >>> tokens.counts.tolist(), tokens.log_probs().exp().round(decimals=4).tolist()
        ([2], [0.5])
    """

    scaled: Tensor
    token: Tensor
    counts: Tensor
    right: Tensor
    tau: float = 1.0

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor, legal: Sequence[Sequence[int]], tau: float) -> LegalTokens:
        """Looks up the legal tokens' logits.

        Raises:
            ValueError: tau is not positive, lengths differ, or a right token is not legal or not in the vocabulary.
        """
        if not len(logits) == len(targets) == len(legal):
            raise ValueError(f"{len(logits)} logits, {len(targets)} targets and {len(legal)} legal sets do not match")
        vocabulary = logits.shape[1]
        of_token = np.repeat(np.arange(len(legal)), [len(ids) for ids in legal])
        ids = np.fromiter(chain.from_iterable(legal), dtype=np.int64, count=len(of_token))
        if len(strange := np.flatnonzero((ids < 0) | (ids >= vocabulary))):  # would be an id of another token's
            first = int(strange[0])
            raise ValueError(
                f"answer token {of_token[first]}: legal token {ids[first]} is not in the vocabulary of {vocabulary}"
            )
        flat = np.unique(of_token * vocabulary + ids)  # a set: a repeated id counts once
        right = np.arange(len(legal)) * vocabulary + targets.detach().cpu().numpy()
        if len(missing := np.flatnonzero(~np.isin(right, flat))):
            first = int(missing[0])
            raise ValueError(f"answer token {first}: its target {int(targets[first])} is not among its legal tokens")
        token, column = (torch.from_numpy(part).to(logits.device) for part in np.divmod(flat, vocabulary))
        counts = torch.bincount(token, minlength=len(legal))
        return cls.at(
            logits, torch.arange(len(legal), device=logits.device), targets.long(), token, column, counts, tau
        )

    @classmethod
    def at(
        cls,
        logits: Tensor,
        queries: Tensor,
        targets: Tensor,
        token: Tensor,
        column: Tensor,
        counts: Tensor,
        tau: float = 1.0,
    ) -> LegalTokens:
        """The legal tokens in flat lists, looked up already; nothing is checked but the temperature.

        Args:
            logits: [q, V].
            queries: int64 [n], the row of logits that predicts each answer token.
            targets: int64 [n], the right tokens, each among its legal ones.
            token: int64 [legal tokens of all], the answer token each belongs to, ascending.
            column: int64 [legal tokens of all], their ids.
            counts: int64 [n], legal tokens of each answer token.
            tau: temperature, > 0.

        Raises:
            ValueError: tau is not positive.
        """
        if not tau > 0:
            raise ValueError(f"the temperature must be > 0, not {tau}")
        scaled = widened(logits[queries[token], column]) / tau
        return cls(scaled, token, counts, widened(logits[queries, targets]) / tau, tau)

    @classmethod
    def join(cls, parts: Sequence[LegalTokens]) -> LegalTokens:
        """The answer tokens of several passes of one temperature, one after another."""
        starts = np.cumsum([0, *(len(part.counts) for part in parts)]).tolist()
        return cls(
            torch.cat([part.scaled for part in parts]),
            torch.cat([part.token + start for part, start in zip(parts, starts, strict=False)]),
            torch.cat([part.counts for part in parts]),
            torch.cat([part.right for part in parts]),
            parts[0].tau,
        )

    def log_probs(self) -> Tensor:
        """[n], log-probability of the right token among the legal ones; exactly 0 where it is the only one."""
        highest = torch.full_like(self.right, -torch.inf)
        highest = highest.scatter_reduce(0, self.token, self.scaled.detach(), "amax")
        sums = torch.zeros_like(self.right).index_add(0, self.token, (self.scaled - highest[self.token]).exp())
        return (self.right - highest) - sums.log()  # in this order: of two near large ones the difference is exact

    def margins(self, k: int) -> Tensor:
        """[n], log p of the right token less that of the k-th likeliest legal one, or of the least likely if fewer.

        Without a gradient. The partition, which both share, is not computed.
        """
        values = self.scaled.detach()
        order = torch.argsort(values, descending=True, stable=True)
        order = order[torch.argsort(self.token[order], stable=True)]  # by answer token, likeliest first
        starts = self.counts.cumsum(0) - self.counts
        bar = values[order[starts + self.counts.clamp(max=k) - 1]]
        return self.right.detach() - bar


@computes_in_torch("logits", others=("targets",))
def masked_log_probs(logits: Tensor, targets: Tensor, legal: Sequence[Sequence[int]], tau: float = 1.0) -> Tensor:
    """Log-probability of each right token among the legal ones: -ell_t^M of MSL (arXiv 2504.04178).

    Args:
        logits: [n, V], an answer token each; arrays too.
        targets: int64 [n], the right tokens.
        legal: for each answer token the ids of its legal tokens, the right one among them.
        tau: temperature, > 0; logits are divided by it and nothing multiplies the result back.

    Returns:
        [n], <= 0, in the logits' precision (at least float32); exactly 0 where one token is legal.

    Raises:
        ValueError: a right token is not legal, lengths differ, or tau is not positive.

    Example:
        >>> import torch
        >>> masked_log_probs(torch.tensor([[0.0, 2.0, 9.0]]), torch.tensor([1]), [[0, 1]])
        tensor([-0.1269])
    """
    return LegalTokens.of(logits, targets, legal, tau).log_probs()
