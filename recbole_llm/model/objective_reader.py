"""What reads the answers of a recommender's rows as an objective needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from recbole_llm.errors import InputError
from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.llm.legal import LegalSets
from recbole_llm.model.base import LLMRecommender
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.objective import TokenObjective


def make_reader(model: LLMRecommender, objective: TokenObjective, lines_are_rows: bool = False) -> AnswerReader:
    """What reads the answers of a model's rows as an objective needs them.

    Args:
        model: the recommender.
        objective: the loss of the answers.
        lines_are_rows: see :class:`AnswerReader`.
    """
    legal = LegalSets(cast(BIGRec, model).trie, model.device) if objective.reads_legal else None
    bare = None
    if objective.reads_effects:
        bare = model.prompt_kind.without_history(model.backbone.tokenizer, model.backbone.bos_token_id)
    per_row = bare is not None and model.adapter.needs_states and not lines_are_rows
    return AnswerReader(model.scorer, legal, bare, per_row, model.takes_branches, lines_are_rows)


def check_titles(objective: str, answers: Mapping[str, Sequence[Any]], legal: LegalSets) -> None:
    """Refuse answers that are no titles.

    Raises:
        InputError: with how many they are.
    """
    for kind, own in answers.items():
        wrong = sum(title < 0 and len(answer) > 0 for title, answer in zip(legal.titles(own), own, strict=True))
        if wrong:
            raise InputError(
                "objective",
                f"{objective} is a loss among titles, and {wrong} of {len(own)} {kind} answers are no titles; distil "
                "with distil_on_trie: True, or set --objective=nll",
                kind="data",
            )
