"""Answers among candidates: given cases of both rules, and both rules against plain definitions."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from recbole_llm.evaluation.answers import answer_metrics, answer_outcomes

GAMES = ["Portal", "Portal 2", "Half-Life", "Dota 2"]
CASES = [  # generated, target, (valid, hit) by the reference rule and by the strict one
    ("Half-Life\nfoo", "Half-Life", (1, 1), (1, 1)),
    ("Portal 2", "Portal 2", (0, 0), (1, 1)),
    ("Portal", "Portal 2", (1, 0), (1, 0)),
    ("I think DOTA 2!", "Dota 2", (1, 1), (1, 1)),
    ("Counter-Strike", "Dota 2", (0, 0), (0, 0)),
    ("", "Portal", (0, 0), (0, 0)),
    ("Half-Life or Dota 2", "Dota 2", (0, 0), (0, 0)),
]


def outcome(answer: str, candidates: list[str], target: str, rule: str) -> tuple[int, int]:
    valid, hits = answer_outcomes([answer], [candidates], [target], rule)
    return int(valid[0]), int(hits[0])


@pytest.mark.parametrize(("answer", "target", "reference", "strict"), CASES)
def test_given_answers(answer, target, reference, strict):
    assert outcome(answer, GAMES, target, "reference") == reference
    assert outcome(answer, GAMES, target, "strict") == strict


@pytest.mark.parametrize(("rule", "valid", "hits"), [("reference", 3, 2), ("strict", 4, 3)])
@pytest.mark.parametrize("candidates", [GAMES, [GAMES] * len(CASES)], ids=["one list", "a list per row"])
def test_ratios_of_the_given_answers(rule, valid, hits, candidates):
    answers, targets = [case[0] for case in CASES], [case[1] for case in CASES]
    assert answer_metrics(answers, candidates, targets, rule) == {
        "hits": hits,
        "valid": valid,
        "total": 7,
        "hit_ratio": hits / 7,
        "hit_ratio_valid": hits / valid,
        "valid_ratio": valid / 7,
    }
    assert answer_metrics(answers, candidates, targets) == answer_metrics(answers, candidates, targets, "strict")


@pytest.mark.parametrize(
    ("answer", "candidates", "target", "reference", "strict"),
    [
        ("Half-Life", [*GAMES, ""], "Half-Life", (0, 0), (1, 1)),  # an empty title is part of every answer
        ("", [*GAMES, ""], "", (1, 1), (0, 0)),
        ("Sabrina", ["Sabrina", "Sabrina", "M"], "Sabrina", (0, 0), (1, 1)),  # a title twice, and one of a letter
        ("M", ["Sabrina", "Sabrina", "M"], "M", (1, 1), (1, 1)),
        ('"Portal 2"', GAMES, "Portal 2", (0, 0), (1, 1)),  # as the prompt asks for it
        ("Portal and Portal 2", GAMES, "Portal 2", (0, 0), (0, 0)),  # both stand there, one of them alone as well
        ("Portals", GAMES, "Portal", (1, 1), (0, 0)),
        ("the Portal", GAMES, "Portal", (1, 1), (1, 1)),
        ("  \n half-LIFE \nPortal", GAMES, "Half-Life", (1, 1), (1, 1)),  # leading blank lines are no answer
        ("ＰＯＲＴＡＬ", GAMES, "Portal", (0, 0), (1, 1)),
        ("Half-Life", ["Half-Life", "Half"], "Half-Life", (0, 0), (1, 1)),
        ("Cafe\u0301  del   Mar", ["Café del Mar", "Mar"], "Café del Mar", (1, 0), (1, 1)),
        ("Strasse", ["Straße", "Weg"], "Straße", (0, 0), (1, 1)),
        ("!!!", ["!!!", "What?"], "!!!", (1, 1), (1, 1)),
        ("की", ["क", "ख"], "क", (1, 1), (0, 0)),  # a vowel sign goes on with the word
        ("up up up", ["up up", "up"], "up up", (0, 0), (1, 1)),  # the longer title stands there twice, overlapping
    ],
)
def test_titles_that_are_hard_to_tell_apart(answer, candidates, target, reference, strict):
    assert outcome(answer, candidates, target, "reference") == reference
    assert outcome(answer, candidates, target, "strict") == strict


def plain_reference(answer: str, candidates: list[str], target: str) -> tuple[int, int]:
    line = answer.strip().split("\n")[0].strip().lower()
    matched = [title.strip().lower() for title in candidates if title.strip().lower() in line]
    return int(len(matched) == 1), int(len(matched) == 1 and matched[0] == target.strip().lower())


def plain_strict(answer: str, candidates: list[str], target: str) -> tuple[int, int]:
    """By regular expressions, with every occurrence held against every other one."""

    def norm(text: str) -> str:
        return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()

    line, titles = norm(answer.strip().split("\n")[0]), {norm(title) for title in candidates} - {""}
    spans = [
        (place.start(), place.start() + len(title), title)
        for title in titles
        for place in re.finditer(rf"(?<!\w)(?={re.escape(title)}(?!\w))", line)
    ]
    left = {
        title
        for start, end, title in spans
        if not any(a <= start and end <= b and b - a > end - start for a, b, _ in spans)
    }
    left = {line} if line in titles else left
    return int(len(left) == 1), int(left == {norm(target)})


texts = st.lists(st.sampled_from(["a", "b", "ab", "A", "2", "-", "!", " ", "  ", "ß", "\n"]), max_size=7).map("".join)


@given(answer=texts, candidates=st.lists(texts, min_size=1, max_size=5), place=st.integers(0, 4))
@example(answer="a b a", candidates=["a b", "b a", "b"], place=0)
def test_the_rules_are_their_plain_definitions(answer, candidates, place):
    target = candidates[place % len(candidates)]
    assert outcome(answer, candidates, target, "reference") == plain_reference(answer, candidates, target)
    assert outcome(answer, candidates, target, "strict") == plain_strict(answer, candidates, target)


@given(
    st.lists(st.lists(texts, min_size=1, max_size=4).flatmap(lambda own: st.tuples(texts, st.just(own))), max_size=6)
)
def test_rows_are_judged_one_by_one(rows):
    answers, candidates = [row[0] for row in rows], [row[1] for row in rows]
    targets = [own[0] for own in candidates]
    for rule in ("strict", "reference"):
        each = [outcome(*row, rule) for row in zip(answers, candidates, targets, strict=True)]
        metrics = answer_metrics(answers, candidates, targets, rule)
        valid, hits = sum(valid for valid, _ in each), sum(hit for _, hit in each)
        assert (metrics["valid"], metrics["hits"], metrics["total"]) == (valid, hits, len(rows))
        assert metrics["hit_ratio"] <= metrics["valid_ratio"] <= 1


def test_nothing_to_judge_and_nothing_valid():
    assert set(answer_metrics([], [], []).values()) == {0}
    assert set(answer_metrics([], np.array([], dtype=str), []).values()) == {0}
    assert answer_metrics(["?"], [GAMES], ["Portal"])["hit_ratio_valid"] == 0


@pytest.mark.parametrize("candidates", [GAMES, [GAMES, GAMES[::-1]]])
def test_arrays_of_titles_are_lists_of_titles(candidates):
    answers, targets = ["Portal", "?"], ["Portal", GAMES[0]]
    found = answer_metrics(np.array(answers), np.array(candidates), np.array(targets))
    assert found == answer_metrics(answers, candidates, targets) and found["hits"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "b"], [["a"], ["c"]], ["a", "b"]), "row 1: the target 'b' is not among the candidates"),
        ((["a"], [["a"], ["b"]], ["a"]), "1 answers, 2 lists of candidates, 1 targets"),
        ((["a"], [["a"]], ["a"], "lenient"), "no rule 'lenient'; choose from: strict, reference"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        answer_metrics(*arguments)
