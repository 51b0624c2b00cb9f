"""The interface of evaluation protocols, and the ``Evaluation`` that they return."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from recbole_llm.data.rows import Rows
from recbole_llm.grounding.ranking import Ranking
from recbole_llm.settings.task_checks import LOSS, computed_valid_metric

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader
    from recbole.data.dataset import Dataset
    from recbole.model.abstract_recommender import AbstractRecommender
    from recbole.trainer import Trainer

    from recbole_llm.settings.config import Config

OUTSIDE_IDS = {"user_id": str, "item_id": str}


def _no_ids(*shape: int) -> Any:
    return field(default_factory=lambda: np.empty(shape, dtype=np.int64))


@dataclass(frozen=True)
class Evaluation:
    """What one model did on the rows of one split.

    Attributes:
        metrics: metric name (``ndcg@10``) to value, unrounded.
        rows: what each row got, in the data set's own ids; the columns are the protocol's.
        pairs: int64 [rows, 2], user and target by RecBole's ids.
        ranks: int64 [rows], 0-based rank of the target, -1 where it was not ranked; empty where nothing is ranked.
        top_items: int64 [rows, k], the first k items, padded by 0 where fewer are ranked; empty where nothing is.
        summary: how different the answers are (:func:`recbole_llm.evaluation.answer_spread`): ``distinct_answers`` and
            ``top_answer``; empty where a row has no single answer.
        listed: the best items of each row with their scores, as many as are re-ranked; None where none are.

    Example:
        >>> evaluation = Evaluation({"ndcg@10": 0.5}, pd.DataFrame({"user_id": ["7"], "item_id": ["12"], "rank": [2]}))
        >>> evaluation.metrics["ndcg@10"], len(evaluation.ranks)
        (0.5, 0)
    """

    metrics: dict[str, float]
    rows: pd.DataFrame
    pairs: np.ndarray = _no_ids(0, 2)
    ranks: np.ndarray = _no_ids(0)
    top_items: np.ndarray = _no_ids(0, 0)
    summary: dict[str, float] = field(default_factory=dict)
    listed: Ranking | None = None


class Protocol(ABC):
    """How the rows of a run are evaluated; :func:`recbole_llm.evaluation.protocol_of` chooses one.

    Args:
        config: the resolved config of the run.

    Attributes:
        name: name of what is written of the rows, ``<split>_<name>.csv``.
        columns: columns of that file and of :attr:`Evaluation.rows`.
        outcome: the columns that say how well a row went.
        gain: what :meth:`gains` are, in words.
        has_labels: whether rows have a label to be predicted, instead of a target to be found.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    outcome: ClassVar[tuple[str, ...]]
    gain: ClassVar[str]
    has_labels: ClassVar[bool] = False

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def n_candidates(self) -> int:
        """Titles that a prompt lists to choose from, the target's one of them; 0 where it lists none."""
        return 0

    @property
    def valid_metric(self) -> str:
        """The metric that tells how good a model is, as :attr:`Evaluation.metrics` names it."""
        return str(self.config["valid_metric"]).lower()

    @property
    def usual_metric(self) -> str:
        """:attr:`valid_metric`, or the computed metric nearest to NDCG@10 where the answers' loss chooses the epoch."""
        if self.valid_metric != LOSS:
            return self.valid_metric
        named = {name: self.config[name] for name in ("metrics", "topk")}
        return computed_valid_metric({**named, "valid_metric": "NDCG@10"}, is_given=False).lower()

    @property
    @abstractmethod
    def compared_metric(self) -> str:
        """The metric by which models are compared: what :meth:`row_gains` are the parts of."""

    def row_gains(self, rows: pd.DataFrame) -> np.ndarray:
        """How well each row went by :attr:`compared_metric`, larger is better.

        Args:
            rows: as in :attr:`Evaluation.rows`; the columns of the outcome suffice.

        Returns:
            float64 [rows]; their mean is the metric, or its negative where smaller is better.
        """
        return self.gains(rows)

    @property
    def title(self) -> str:
        """Heading of a table of results."""
        return "Results"

    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the evaluation beside the metrics' names."""
        return ()

    @abstractmethod
    def words(self) -> dict[str, str]:
        """What is asked of a model, how ties are broken and what is measured: a heading to a sentence each."""

    def check(self, rows: Rows) -> None:  # noqa: B027
        """Refuse data that lack what rows are evaluated by, before any model is built.

        Args:
            rows: the rows of the run.

        Raises:
            InputError: what is missing.
        """

    def prepare(self, rows: Rows, model: AbstractRecommender | None = None) -> None:  # noqa: B027
        """Read or draw what rows are evaluated by, before anything is trained.

        Args:
            rows: the rows of the run.
            model: the LLM recommender; None for one of RecBole's models.

        Raises:
            InputError: the data lack what the settings ask for.
        """

    @abstractmethod
    def evaluate(self, trainer: Trainer, loader: AbstractDataLoader, show_progress: bool = False) -> Evaluation:
        """Evaluate a trainer's model as it stands on the rows of a loader.

        Args:
            trainer: a RecBole trainer that :func:`recbole_llm.evaluation.collector.install_collector` was applied to.
            loader: loader of the rows (:func:`recbole_llm.data.rows.eval_loader`).
            show_progress: whether to show a progress bar.

        Raises:
            ValueError: a score is not a number.
        """

    def complete(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation of a trained model with what is not computed at every validation."""
        return evaluation

    def finish(self, trainer: Trainer, evaluations: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
        """What a trained model did, its lists in their last order; the validation rows may choose that order.

        Args:
            trainer: its model is in the state that was evaluated.
            evaluations: by ``"valid"`` and ``"test"``, as :meth:`evaluate` gave them.
        """
        return {split: self.complete(evaluation) for split, evaluation in evaluations.items()}

    def keep(self, folder: Path) -> None:  # noqa: B027
        """Leave what recommendations of the finished model depend on beside its weights in its run folder."""

    @staticmethod
    @abstractmethod
    def gains(rows: pd.DataFrame) -> np.ndarray:
        """How well each row went, larger is better; what :attr:`gain` names.

        Args:
            rows: as in :attr:`Evaluation.rows`; the columns of the outcome suffice.

        Returns:
            float64 [rows].
        """

    @classmethod
    def write(cls, folder: Path, split: str, evaluation: Evaluation) -> Path:
        """Write what each row got to ``<split>_<name>.csv``; returns the file."""
        file = folder / f"{split}_{cls.name}.csv"
        evaluation.rows.to_csv(file, index=False, lineterminator="\r\n", encoding="utf-8")
        return file

    @classmethod
    def read(cls, folder: Path, split: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """What :meth:`write` wrote, or some of its columns. Ids stay text, whatever they look like."""
        texts = {name: str for name in cls.columns if name in {*OUTSIDE_IDS, "top_items", "answer", "candidates"}}
        file = folder / f"{split}_{cls.name}.csv"
        rows = pd.read_csv(file, dtype=texts, keep_default_na=False, na_values={"rank": ""}, usecols=columns)
        return rows.astype({"rank": "Int64"}) if "rank" in rows else rows


def outside_ids(dataset: Dataset, pairs: np.ndarray) -> dict[str, np.ndarray]:
    """Users and targets in the data set's own ids.

    Args:
        dataset: the RecBole data set.
        pairs: int64 [rows, 2], user and target by RecBole's ids.

    Returns:
        ``user_id`` and ``item_id``, text [rows].
    """
    users, items = dataset.field2id_token[dataset.uid_field], dataset.field2id_token[dataset.iid_field]
    return {"user_id": users[pairs[:, 0]], "item_id": items[pairs[:, 1]]}


def joined_ids(dataset: Dataset, items: np.ndarray) -> Sequence[str]:
    """Lists of items in the data set's own ids, each as one text that :func:`split_ids` takes apart; 0 is left out.

    Ids stand with blanks between them; in a data set with an id that holds white space, lists are JSON.

    Args:
        dataset: the RecBole data set.
        items: int64 [rows, k] by RecBole's ids, 0 for padding.
    """
    tokens = dataset.field2id_token[dataset.iid_field]
    join = " ".join if all(map(_stands_alone, tokens[1:].tolist())) else partial(json.dumps, ensure_ascii=False)
    names = tokens[items].tolist()
    return [
        join([name for name, item in zip(own, ids, strict=True) if item])
        for own, ids in zip(names, items.tolist(), strict=True)
    ]


def _stands_alone(token: str) -> bool:
    """Whether an id between blanks reads as itself."""
    return [token] == token.split() and not token.startswith(_JSON)


_JSON = ('["', "[]")  # how a JSON list begins


def split_ids(text: str) -> list[str]:
    """The ids of a list that :func:`joined_ids` made.

    Example:
        >>> split_ids("i7 [x] i2"), split_ids('["i 7", "i2"]'), split_ids("")
        (['i7', '[x]', 'i2'], ['i 7', 'i2'], [])
    """
    found: list[str] = json.loads(text) if text.startswith(_JSON) else text.split()
    return found
