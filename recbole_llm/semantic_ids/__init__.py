"""Codes that stand for items: residual quantisation, unique codes and their trie, codebooks and generated heads.

Arrays or tensors in, the same out; independent of RecBole.
"""

from typing import TYPE_CHECKING

from recbole_llm.lazy import lazy_exports

if TYPE_CHECKING:
    from recbole_llm.semantic_ids.clashes import spread_codes
    from recbole_llm.semantic_ids.codebook import codebook_loss, dynamic_head, snap_to_codebook
    from recbole_llm.semantic_ids.codes import CodeTrie, collision_rate, disambiguate
    from recbole_llm.semantic_ids.quantise import (
        assignment_probabilities,
        quantisation_loss,
        residual_quantise,
        sinkhorn_assignment,
    )

__all__ = [
    "CodeTrie",
    "assignment_probabilities",
    "codebook_loss",
    "collision_rate",
    "disambiguate",
    "dynamic_head",
    "quantisation_loss",
    "residual_quantise",
    "sinkhorn_assignment",
    "snap_to_codebook",
    "spread_codes",
]

__getattr__ = lazy_exports(__name__, __file__)
