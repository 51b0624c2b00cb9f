"""Last.fm: HetRec 2011 (``user_taggedartists-timestamps.dat`` or ``user_artists.dat``, ``artists.dat``), 360K and 1K.

The formats are those of the README files of https://grouplens.org/datasets/hetrec-2011 and
http://ocelma.net/MusicRecommendationDataset: tab-separated, without quoting.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from recbole_llm.data.importers.delimited import DelimitedTable
from recbole_llm.data.importers.interactions import Columns
from recbole_llm.data.importers.plan import Choices, ImportPlan, Items, Origin
from recbole_llm.data.importers.table import Row

_NO_TIMES = "{} has no times: the order of the lines stands for them, within and across users"


def find(origin: Origin, choices: Choices) -> ImportPlan | None:
    """The plan for Last.fm's files; None if these files are not of this kind."""
    form = choices.form("\t")
    for file in origin.given("user_taggedartists-timestamps.dat"):
        table = DelimitedTable(file, form, drop=choices.drop)
        columns = Columns("userID", "artistID", "timestamp")
        artists = _artists(origin, choices)
        plan = ImportPlan("Last.fm HetRec 2011, tags", [table], columns, artists, "artist", repeats="first")
        plan.notes.append("an interaction is the first time that a user tagged an artist (--repeats=keep keeps all)")
        return plan
    for file in origin.given("user_artists.dat"):
        table = DelimitedTable(file, form, drop=choices.drop)
        notes = [_NO_TIMES.format(file.name)]
        columns = Columns("userID", "artistID", rating="weight")
        artists = _artists(origin, choices)
        return ImportPlan("Last.fm HetRec 2011, listening counts", [table], columns, artists, "artist", notes=notes)
    for file in origin.given("usersha1-artmbid-artname-plays.tsv"):
        notes = [_NO_TIMES.format(file.name)]
        table = _Named(file, choices, ("user", "id", "artist", "plays"), 4)
        columns = Columns("user", "id", rating="plays", title="artist")
        return ImportPlan("Last.fm 360K", [table], columns, domain="artist", notes=notes)
    for file in origin.given("userid-timestamp-artid-artname-traid-traname.tsv"):
        table = _Named(file, choices, ("user", "time", "id", "artist"), 6)
        columns = Columns("user", "id", "time", title="artist")
        return ImportPlan("Last.fm 1K, artists", [table], columns, domain="artist")
    return None


def _artists(origin: Origin, choices: Choices) -> list[Items]:
    """The artists beside listening counts or tags, or in the file that the user names."""
    files = origin.beside("artists.dat")[:1]
    return [Items(DelimitedTable(path, choices.form("\t"), drop=choices.drop), "id", "name") for path in files]


class _Named(DelimitedTable):
    """Artists with a MusicBrainz id, which may be empty: then the name stands for it."""

    def __init__(self, file: Path, choices: Choices, columns: tuple[str, ...], width: int) -> None:
        super().__init__(file, choices.form("\t"), columns, choices.drop, width=width)
        self._id, self._name = columns.index("id"), columns.index("artist")

    def rows(self, progress: bool = False) -> Generator[Row, None, None]:
        """The rows, each with an id."""
        for number, row in super().rows(progress):
            yield number, row if row[self._id] else [*row[: self._id], row[self._name], *row[self._id + 1 :]]
