"""Which fast paths an LLM supports, found before training and logged in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from recbole_llm.errors import InputError
from recbole_llm.llm.beam_passes import beam_scores, prefix_scores
from recbole_llm.llm.branches import branch_scores, cut_heads, head_scores
from recbole_llm.llm.capabilities import (
    FastPath,
    Finding,
    Obstacle,
    Scores,
    at_most,
    examine,
    masks_of_pairs,
    recall,
    remember,
    slot_counting_layers,
)
from recbole_llm.llm.prefill import prefill_scores
from recbole_llm.llm.sample import Sample, VocabularyError, row_scores
from recbole_llm.llm.title_ways import kernel_obstacle, tree_scores
from recbole_llm.llm.trunks import trunk_scores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Path:
    """How a path is found out, and what takes its place."""

    scores: Scores
    obstacle: Obstacle | None
    instead: str


PATHS: Mapping[FastPath, _Path] = {
    FastPath.ROWS: _Path(row_scores, None, "results depend a little on which rows share a batch"),
    FastPath.BEAMS: _Path(beam_scores, None, "beams compute prompt and answer whole at every step"),
    FastPath.PREFIX: _Path(prefix_scores, slot_counting_layers, "every prompt is computed whole"),
    FastPath.BRANCHES: _Path(branch_scores, masks_of_pairs, "one pass per answer"),
    FastPath.HEADS: _Path(head_scores, cut_heads, "every prompt whole"),
    FastPath.TRUNKS: _Path(trunk_scores, masks_of_pairs, "every row apart"),
    FastPath.PREFILL: _Path(prefill_scores, slot_counting_layers, "prompt and answer in one pass"),
    FastPath.TREE: _Path(tree_scores, kernel_obstacle, "one row per title, if at all"),
}


def probe_llm(
    model: nn.Module, paths: Iterable[FastPath], n_tokens: int, name: str = "the LLM"
) -> dict[FastPath, Finding]:
    """Find out which fast paths an LLM takes; remember it and say it in one line.

    A path that fails is left alone from then on: results stay right, at more cost.

    Args:
        model: a causal LM, bare or wrapped.
        paths: fast paths that a run takes.
        n_tokens: number of tokens of the longest prompt and answer together.
        name: name of the LLM, for the log.

    Returns:
        What was found of each path.

    Raises:
        InputError: rows that share a batch change each other, so that nothing would be right.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).eval()
        >>> found = probe_llm(model, [FastPath.ROWS], n_tokens=8)
        >>> found[FastPath.ROWS].works
        True
    """
    n_tokens = at_most(model, n_tokens)
    wanted = [path for path in FastPath if path in set(paths)]
    found: dict[FastPath, Finding] = {}
    known = {path: finding for path in wanted if (finding := recall(model, path, n_tokens))}
    try:
        sample = Sample.draw(model, n_tokens)
    except VocabularyError:
        return known
    for path in wanted:
        if path in known:
            found[path] = known[path]
        elif path is FastPath.BEAMS and FastPath.PREFIX in found and found[FastPath.PREFIX].works:
            found[path] = found[FastPath.PREFIX]  # the same, and more
        else:
            found[path] = examine(model, path, n_tokens, PATHS[path].scores, PATHS[path].obstacle, sample=sample)
        remember(model, path, found[path])
    if len(known) < len(found):
        log.log(*_line(found, n_tokens, name))
    rows = found.get(FastPath.ROWS)
    if rows and not rows.works and sample.is_exact:
        raise InputError(
            f"llm_path: {name} computes a row differently where others share its batch ({rows.reason}); "
            "choose another LLM",
            kind="conflict",
        )
    return found


def _line(found: Mapping[FastPath, Finding], n_tokens: int, name: str) -> tuple[int, str]:
    """Level and text of the line in the log."""
    good = [path.value for path, finding in found.items() if finding.works]
    failed = [(path, finding) for path, finding in found.items() if not finding.works]
    bad = [f"{path.value} ({finding.reason}): {PATHS[path].instead}" for path, finding in failed]
    text = f"{name}, compared at {n_tokens} tokens: {', '.join(good) or 'nothing'} as in separate passes"
    return (logging.WARNING, f"{text}; not {'; not '.join(bad)}") if bad else (logging.INFO, text)
