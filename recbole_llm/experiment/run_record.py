"""``Run``, the record of a finished run: its settings, results and folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_llm.evaluation import protocol_of
from recbole_llm.experiment.asked import Histories
from recbole_llm.experiment.recommend import check_asked, recommend, users_with_rows
from recbole_llm.experiment.run_folder import reading
from recbole_llm.experiment.trained import Trained, config_of, load_trained
from recbole_llm.report import RunResult
from recbole_llm.settings.config import Config
from recbole_llm.settings.task_checks import LOSS

FACTS, DATA, STUDENT = "run.json", "data.json", "student.json"
NUMBERS = ("test", "valid", "summary")  # of a line of a table; kept in metrics.json


class Run:
    """A finished run: its metrics, ranks and history, and its model, which can recommend.

    :func:`recbole_llm.run` and :func:`recbole_llm.load_run` return it.

    Args:
        folder: the run folder, ``saved/<model>-<dataset>-<time>``.
        config: the resolved settings.
        result: the run's line in a table of results.
        rows_digest: digest of the (user, target) pairs of validation and test rows.
        trained: the model, if it is in memory; otherwise it is loaded from the folder on first use.
    """

    def __init__(
        self, folder: Path, config: Config, result: RunResult, rows_digest: str = "", trained: Trained | None = None
    ) -> None:
        self.folder, self.config, self.result, self.rows_digest = folder, config, result, rows_digest
        self._trained = trained

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value:.4f}" for name, value in self.metrics.items())
        return f"<Run {self.folder}: {self.result.model} on {self.result.dataset}, {shown}>"

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics on the test rows by name (``ndcg@10``), unrounded."""
        return {name: value for name, value in self.result.test.items() if value is not None}

    @property
    def valid_metrics(self) -> dict[str, float]:
        """Metrics on the validation rows by name, unrounded; empty if there are no such rows."""
        return {name: value for name, value in self.result.valid.items() if value is not None}

    @property
    def valid_score(self) -> float | None:
        """What models are chosen by, ``valid_metric`` on the validation rows; None where it could not be measured."""
        found = {**self.valid_metrics, LOSS: self.summary.get("valid_loss")}
        return found.get(protocol_of(self.config).valid_metric)

    @property
    def summary(self) -> dict[str, float]:
        """Signs of how well a run has trained, beside the metrics.

        ``distinct_answers`` (different answers divided by test rows) and ``top_answer`` (share of test rows with the
        most frequent answer), if a row has one answer; ``valid_loss`` (per token of the validation rows' answers), for
        LLM models.
        """
        return {name: value for name, value in self.result.summary.items() if value is not None}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to doubt the training or the answers, a line each; a table marks such a run with ``!``."""
        return self.result.warnings

    @cached_property
    def ranks(self) -> pd.DataFrame:
        """The result of each test row, in the data set's own ids.

        Columns: ``user_id``, ``item_id`` (the target), ``rank`` (1 is best; missing if the target was not ranked) and
        ``top_items``. For click models ``label`` and ``score`` instead; among candidates ``answer``, whether it was
        valid and a hit, and ``candidates``.
        """
        with reading(self.folder):
            return protocol_of(self.config).read(self.folder, "test")

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """One record per epoch of the last training stage; empty for an untuned LLM."""
        file = self.folder / "history.json"
        with reading(self.folder):
            return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []

    @cached_property
    def data(self) -> dict[str, Any]:
        """Counts of the data set's lines that were read or left out (:class:`recbole_llm.data.summary.ReadSummary`)."""
        with reading(self.folder):
            found: dict[str, Any] = json.loads((self.folder / DATA).read_text(encoding="utf-8"))
            return found

    @cached_property
    def student(self) -> Run | None:
        """The run of the classic model that learned this one's rankings (``distill_into``), or None."""
        file = self.folder / STUDENT
        if not file.is_file():
            return None
        folder = self.folder.parent / json.loads(file.read_text(encoding="utf-8"))["folder"]
        config = config_of(folder, data_path=self.config["data_path"])
        return Run(folder, config, *read_facts(folder, config))

    @property
    def model(self) -> Any:
        """The trained model, in eval mode."""
        return self._asked().model

    def recommend(
        self,
        histories: Histories | None = None,
        *,
        users: str | Sequence[str] | None = None,
        k: int = 10,
        exclude_seen: bool = False,
    ) -> pd.DataFrame:
        """Recommend items for histories, or for users of the data set.

        Args:
            histories: lists of item ids or titles, oldest item first, or one such list.
            users: ids of users, or one id; the history is all of a user's interactions, including the test item.
            k: items per history or user.
            exclude_seen: leave out the items of the history, or all items that the user has had; of an LLM model, those
                that share a title with one of them as well.

        Returns:
            A row per item, best first: ``query`` (0-based number of the history) or ``user_id``, ``rank`` (1 is best),
            ``item_id``, ``title``, ``score`` (the model's own; larger is better).

        Raises:
            InputError: the model ranks no items, or a user, an item id or a title is unknown.

        Example:
            >>> run.recommend(["Toy Story (1995)", "Babe (1995)"], k=3)  # doctest: +SKIP
            >>> run.recommend(users=["196", "186"])  # doctest: +SKIP
        """
        return recommend(self._asked(), histories, users, k, exclude_seen)

    def check_asked(
        self,
        histories: Histories | None = None,
        *,
        users: Sequence[str] | None = None,
        places: Sequence[str] = (),
    ) -> None:
        """Refuse what :meth:`recommend` would refuse, before it has computed anything.

        Args:
            histories: see :meth:`recommend`.
            users: see :meth:`recommend`.
            places: what each history is called in a message; by default its 0-based number.

        Raises:
            InputError: see :meth:`recommend`.
        """
        check_asked(self._asked(), histories, users, places)

    @property
    def users(self) -> list[str]:
        """Ids of the users that :meth:`recommend` can be asked for."""
        return users_with_rows(self._asked())

    def _asked(self) -> Trained:
        if self._trained is None:
            self._trained = load_trained(self.folder, self.config)
        return self._trained


def read_facts(folder: Path, config: Config) -> tuple[RunResult, str]:
    """A run's line in a table, and the digest of its rows, from its folder."""
    with reading(folder):
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        known: dict[str, Any] = {"model": config["model"], "dataset": config["dataset"], "seed": config["seed"]}
        digest = ""
        if (folder / FACTS).is_file():
            known = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            digest = known.pop("rows")
            known.pop("environment", None)
        known |= {name: tuple(known.get(name, ())) for name in ("notes", "warnings")}
        known |= {name: _numbers(metrics.get(name, {})) for name in NUMBERS}
        return RunResult(**known, folder=str(folder)), digest


def _numbers(found: Any) -> dict[str, float | None]:
    """Metrics by name as a file holds them.

    Raises:
        TypeError: they are no numbers.
    """
    for name, value in found.items():
        if not (value is None or isinstance(value, int | float)):
            raise TypeError(f"{name} is {value!r}")
    return dict(found)


def run_facts(result: RunResult) -> dict[str, Any]:
    """What ``run.json`` holds of a run's line in a table; its numbers are in ``metrics.json``.

    Example:
        >>> facts = run_facts(RunResult("Pop", "ml-100k", seed=1, test={"ndcg@10": 0.0163}))
        >>> facts["seed"], "test" in facts
        (1, False)
    """
    return {name: value for name, value in asdict(result).items() if name not in ("folder", *NUMBERS)}
