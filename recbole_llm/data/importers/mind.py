"""MIND, the Microsoft News data set: ``behaviors.tsv`` and ``news.tsv``, of one part or of several folders.

The format is that of https://github.com/msnews/msnews.github.io/blob/master/assets/doc/introduction.md: no header and
no quoting; ``behaviors.tsv`` has an impression's number, user, time, the news clicked before, and the news shown, each
with ``-1`` after it if it was clicked.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from recbole_llm.data.importers.delimited import DelimitedTable
from recbole_llm.data.importers.interactions import Columns
from recbole_llm.data.importers.plan import Choices, Feature, ImportPlan, Items, Origin
from recbole_llm.data.importers.table import Row

DATE = "%m/%d/%Y %I:%M:%S %p"  # 11/15/2019 8:55:22 AM
_NEWS = ("item", "category", "subcategory", "title")
_IMPRESSION = ("impression", "user", "time", "history", "shown")


def find(origin: Origin, choices: Choices) -> ImportPlan | None:
    """The plan for MIND; None if these files are not of this kind."""
    files = origin.given("behaviors.tsv")
    if not files:
        return None
    firsts = _Firsts(files, choices)
    tables = [_Clicks(path, choices, firsts) for path in files]
    features = (Feature("category", "category"), Feature("subcategory", "subcategory"))
    news = [
        Items(DelimitedTable(path, choices.form("\t"), _NEWS, choices.drop, width=8), "item", "title", features)
        for path in origin.beside("news.tsv")
    ]
    note = (
        "news clicked before a user's first impression have no times in the files: they stand, in their order, in the "
        "seconds before it"
    )
    return ImportPlan("MIND", tables, Columns("user", "item", "time", time_format="iso"), news, "item", notes=[note])


class _Firsts:
    """Where the earliest impression of each user stands; its line tells what the user clicked before."""

    def __init__(self, files: Sequence[Path], choices: Choices) -> None:
        self._files, self._form = files, choices.form("\t")
        self._found: dict[str, tuple[datetime, Path, int]] = {}

    def is_first(self, user: str, file: Path, number: int) -> bool:
        """Whether a line is that of its user's earliest impression."""
        if not self._found:
            self._scan()
        return self._found[user][1:] == (file, number)

    def _scan(self) -> None:
        for file in self._files:
            for number, (_, user, time, *_) in DelimitedTable(file, self._form, _IMPRESSION, drop=True).rows():
                moment = _moment(time)
                if moment is not None and (user not in self._found or moment < self._found[user][0]):
                    self._found[user] = (moment, file, number)


class _Clicks(DelimitedTable):
    """Clicks: those of each impression, and before a user's earliest one those that its line tells of."""

    def __init__(self, file: Path, choices: Choices, firsts: _Firsts) -> None:
        super().__init__(file, choices.form("\t"), ("user", "item", "time"), choices.drop, width=len(_IMPRESSION))
        self._firsts = firsts

    def rows(self, progress: bool = False) -> Generator[Row, None, None]:
        """The clicks of each line; what was shown and not clicked is left out."""
        for number, (_, user, time, history, shown) in super().rows(progress):
            moment = _moment(time)
            if moment is None:
                self.bad(number, f"has a time that cannot be read '{time}', not like 11/15/2019 8:55:22 AM")
                continue
            if self._firsts.is_first(user, self.file, number):
                before = history.split()
                for index, item in enumerate(before):
                    yield number, (user, item, (moment - timedelta(seconds=len(before) - index)).isoformat())
            for news in shown.split():
                if news.endswith("-1"):
                    yield number, (user, news[: -len("-1")], moment.isoformat())


def _moment(time: str) -> datetime | None:
    try:
        return datetime.strptime(time, DATE)
    except ValueError:
        return None
