"""The protocol of a config, and which runs may share a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from recbole_llm.data.labels import label_column
from recbole_llm.evaluation.base import Protocol
from recbole_llm.evaluation.candidate_choice import CandidateChoice
from recbole_llm.evaluation.click_prediction import ClickPrediction
from recbole_llm.evaluation.full_ranking import FullRanking
from recbole_llm.settings.task_checks import check_same_candidates, mixed_tasks

if TYPE_CHECKING:
    from recbole_llm.settings.config import Config

PROTOCOLS: Mapping[str, type[Protocol]] = MappingProxyType(
    {protocol.name: protocol for protocol in (FullRanking, CandidateChoice, ClickPrediction)}
)


def protocol_of(config: Config) -> Protocol:
    """The protocol by which the rows of a run are evaluated.

    Args:
        config: the resolved config of the run.

    Example:
        >>> protocol_of({"candidates": 20}).n_candidates
        20
    """
    if config["candidates"]:
        return CandidateChoice(config)
    return ClickPrediction(config) if label_column(config) else FullRanking(config)


def check_together(protocols: Sequence[Protocol]) -> None:
    """Refuse runs that share no table: their rows would be evaluated by different protocols, or among other candidates.

    Args:
        protocols: protocols of the runs, in the order of the table.

    Raises:
        InputError: the first difference, and what to do about it.
    """
    clicks, others = ([one for one in protocols if one.has_labels is wanted] for wanted in (True, False))
    if clicks and others:
        raise mixed_tasks(clicks[-1].config["model"], others[-1].config["model"])
    check_same_candidates([protocol.config for protocol in protocols])
