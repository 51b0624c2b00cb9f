"""What the prompts of a pass begin with, such as the instruction, and whether it pays to compute it once.

Its keys and values are then repeated for the rows, which continue from them as if each had computed them itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from recbole_llm.llm.branch_batch import Tokens
from recbole_llm.llm.rows import row_sizes, shared_size

LEAST_SPARED = 0.05  # of a pass' tokens; below that, what a second call costs is not worth it


def head_size(prompts: Sequence[Tokens], answers: Sequence[Sequence[Tokens]]) -> int:
    """Tokens that all prompts begin with, where it pays to compute them once; a prompt keeps one of its own at least.

    Args:
        prompts: token ids of each prompt.
        answers: the answers to each prompt.

    Example:
        >>> head_size([[1, 2, 3, 4], [1, 2, 3, 5]], [[[7]], [[8]]])
        3
        >>> head_size([[1, 2, 3], [1, 2]], [[[7]], [[8]]]), head_size([[1, 2, 3]], [[[7]]])
        (1, 0)
    """
    size = shared_size(prompts)
    n_tokens = sum(row_sizes(prompts, answers))
    return size if size * (len(prompts) - 1) >= LEAST_SPARED * n_tokens else 0
