"""Items with one code get other last codewords if some are free nearby: ED2's Sinkhorn step (2409.09253)."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_llm.arrays import computes_in_torch
from recbole_llm.semantic_ids.quantise import residual_quantise, sinkhorn_assignment

ROUNDS = 20


@computes_in_torch("vectors", "codebooks")
def spread_codes(vectors: Tensor, codebooks: Tensor, epsilon: float) -> Tensor:
    """Nearest codewords, but that vectors of one code share the codewords of the last level out among themselves.

    The vectors of one code, and as many of the last level's codewords nearest to them that no other vector of the same
    beginning has, are assigned to each other by :func:`.sinkhorn_assignment`; a vector takes the codeword it has most
    of. Equal vectors stay together. This goes on while fewer vectors share a code than before, at most
    :data:`ROUNDS` times.

    Args:
        vectors: [n, d].
        codebooks: [l, k, d].
        epsilon: epsilon of the assignment, > 0; small values are near a permutation.

    Returns:
        int64 [n, l].

    Example:
        >>> books = torch.tensor([[[0.0], [10.0]], [[0.0], [1.0]]])
        >>> spread_codes(torch.tensor([[0.1], [0.4], [10.0]]), books, epsilon=0.01).tolist()
        [[0, 0], [0, 1], [1, 0]]
    """
    with torch.no_grad():
        codes: Tensor
        codes, residuals, _ = residual_quantise(vectors, codebooks)
        given = vectors if len(codebooks) == 1 else residuals[:, -2]
        for _ in range(ROUNDS):
            changed = _spread(codes, given, codebooks[-1], epsilon)
            if _n_different(changed) <= _n_different(codes):
                break
            codes = changed
        return codes


def _n_different(codes: Tensor) -> int:
    return len(torch.unique(codes, dim=0))


def _spread(codes: Tensor, given: Tensor, codebook: Tensor, epsilon: float) -> Tensor:
    """One round over all codes that several vectors have."""
    codes = codes.clone()
    _, whole, counts = torch.unique(codes, dim=0, return_inverse=True, return_counts=True)
    starts = torch.zeros_like(whole)
    if codes.shape[1] > 1:
        starts = torch.unique(codes[:, :-1], dim=0, return_inverse=True)[1]
    for start in torch.unique(starts[counts[whole] > 1]).tolist():
        alike = starts == start
        clashing = (alike & (counts[whole] > 1)).nonzero()[:, 0]
        free = torch.ones(len(codebook), dtype=torch.bool)
        free[codes[alike & (counts[whole] == 1), -1]] = False
        distances = (given[clashing][:, None] - codebook[None]).square().sum(dim=2)
        near = torch.where(free, distances.amin(dim=0), torch.inf).argsort(stable=True)
        near = near[: min(len(clashing), int(free.sum()))].sort().values
        codes[clashing, -1] = near[sinkhorn_assignment(distances[:, near], epsilon).argmax(dim=1)]
    return codes
