"""Generated answers compared with the candidates of their prompts: hits and valid answers under two rules.

``strict`` is ours: the answer names exactly one candidate, in whole words, however it is written; a title that another
one contains is not taken for it. ``reference`` is that of LLaRA's code (arXiv 2312.02445): exactly one candidate is
found anywhere in the answer, so that a title which contains another candidate is never valid.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from recbole_llm.prompt.titles import normalize_title

RULES = ("strict", "reference")


def outcome_metrics(valid: np.ndarray, hits: np.ndarray) -> dict[str, float]:
    """Counts and ratios of answers.

    Args:
        valid: bool [rows], the answer names exactly one candidate.
        hits: bool [rows], and that one is the target.

    Returns:
        hits, valid, total; hit_ratio (hits / total), hit_ratio_valid (hits / valid), valid_ratio (valid / total);
        a ratio over nothing is 0.
    """
    n_hits, n_valid, total = int(hits.sum()), int(valid.sum()), len(valid)
    return {
        "hits": n_hits,
        "valid": n_valid,
        "total": total,
        "hit_ratio": n_hits / max(total, 1),
        "hit_ratio_valid": n_hits / max(n_valid, 1),
        "valid_ratio": n_valid / max(total, 1),
    }


def answer_metrics(
    generated: Sequence[str],
    candidates: Sequence[Sequence[str]] | Sequence[str],
    targets: Sequence[str],
    rule: str = "strict",
) -> dict[str, float]:
    """HitRatio@1 and ValidRatio of generated answers.

    Args:
        generated: the raw texts; only the first line of each counts.
        candidates: the candidate titles of each row, or one list for all rows.
        targets: the title that each row's answer should name, one of its candidates.
        rule: ``strict`` or ``reference``.

    Returns:
        See :func:`outcome_metrics`.

    Raises:
        ValueError: an unknown rule, arguments of different lengths, or a target that is not among its candidates.

    Example:
        >>> titles = ["Babe", "Heat", "Alien"]
        >>> answer_metrics(['"Babe"', '"Jaws"'], titles, targets=["Babe", "Heat"])
        {'hits': 1, 'valid': 1, 'total': 2, 'hit_ratio': 0.5, 'hit_ratio_valid': 1.0, 'valid_ratio': 0.5}
    """
    return outcome_metrics(*answer_outcomes(generated, candidates, targets, rule))


def answer_outcomes(
    generated: Sequence[str],
    candidates: Sequence[Sequence[str]] | Sequence[str],
    targets: Sequence[str],
    rule: str = "strict",
) -> np.ndarray:
    """What each row's answer names, with arguments and errors as those of :func:`answer_metrics`.

    Returns:
        bool [2, rows]: whether the answer names exactly one candidate, and whether that one is the target.
    """
    if rule not in RULES:
        raise ValueError(f"there is no rule '{rule}'; choose from: {', '.join(RULES)}")
    if len(candidates) and isinstance(candidates[0], str):
        candidates = [[str(title) for title in candidates]] * len(generated)
    if not len(generated) == len(candidates) == len(targets):
        raise ValueError(f"{len(generated)} answers, {len(candidates)} lists of candidates, {len(targets)} targets")
    normalize, named = (normalize_title, _named_strictly) if rule == "strict" else (_lower, _named_anywhere)
    known = {text: normalize(text) for listed in candidates for text in listed}  # titles come again in many rows
    outcomes = np.zeros((len(generated), 2), dtype=bool)
    for row, (answer, listed, target) in enumerate(zip(generated, candidates, targets, strict=True)):
        texts, wanted = [known[text] for text in listed], normalize(target)
        if wanted not in texts:
            raise ValueError(f"row {row}: the target {target!r} is not among the candidates")
        found = named(normalize(answer.strip().partition("\n")[0]), texts)
        outcomes[row] = len(found) == 1, found == [wanted]
    return outcomes.T


def _lower(text: str) -> str:
    return text.strip().lower()


def _named_anywhere(answer: str, candidates: Sequence[str]) -> list[str]:
    """The candidates, by index in the list, that are part of the answer."""
    return [text for text in candidates if text in answer]


def _named_strictly(answer: str, candidates: Sequence[str]) -> list[str]:
    """The distinct candidates that occur in the answer as whole words and not inside a longer one that does."""
    if answer and answer in candidates:
        return [answer]
    spans: dict[str, list[tuple[int, int]]] = {}
    for text in sorted({text for text in candidates if text and text in answer}, key=len, reverse=True):
        own = [span for span in _occurrences(text, answer) if not _inside(span, spans)]
        if own:
            spans[text] = own
    return list(spans)


def _occurrences(text: str, answer: str) -> Iterator[tuple[int, int]]:
    start = answer.find(text)
    while start >= 0:
        end = start + len(text)
        if not (_goes_on(answer[start - 1 : start]) or _goes_on(answer[end : end + 1])):
            yield start, end
        start = answer.find(text, start + 1)


def _inside(span: tuple[int, int], longer: Mapping[str, Sequence[tuple[int, int]]]) -> bool:
    """Whether one of the occurrences kept so far, all of longer texts, covers this one."""
    return any(start <= span[0] and span[1] <= end for spans in longer.values() for start, end in spans)


def _goes_on(letter: str) -> bool:
    """Whether a word that touches this character is not at its end: a letter, a digit, or a mark on a letter."""
    return bool(letter) and (letter.isalnum() or letter == "_" or unicodedata.category(letter).startswith("M"))
