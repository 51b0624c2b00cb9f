"""A small world in the layouts of public data sets, written from their documentation, and in plain Python."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

TITLES = {
    "B000000001": "电影：无间道",
    "B000000002": "Сталкер: Пикник",
    "B000000003": 'Say "cheese", twice',
    "B000000004": '"Heroes"',
    "B000000005": 'Ruler 12"',
    "B000000006": "Alien: Covenant",
    "B000000007": "Alien: Covenant",  # two items of one title
    "B000000008": "Amélie, or: NA",
    "B000000009": "NA",
}
GENRES = {item: ("Sci-Fi", "War") if number % 2 else ("Drama",) for number, item in enumerate(TITLES)}
UNTITLED = "B000000099"
START = 1_577_836_800  # 2020-01-01, a whole day


@dataclass
class World:
    """Interactions (user, item, rating, seconds) in the order of a file, not of time.

    Attributes:
        rows: them.
        titles: of the items.
    """

    rows: list[tuple[str, str, int, int]]
    titles: dict[str, str]


@dataclass
class Expected:
    """What the atomic files hold: rows of text, and titles with features by item."""

    inter: list[list[str]]
    items: dict[str, list[str]]


@dataclass
class Layout:
    """How a layout is written.

    Attributes:
        write: writes a world into a folder and returns what is imported.
        time: seconds of the world as the atomic file has them; None where the order of the lines stands for it.
        rated: whether there are ratings.
        features: further cells of an item.
        title: a title as the layout can hold it.
        name: of the layout in the log.
        header: the further columns of the ``.item`` file.
        titled: whether there are titles.
        lacks: items whose title the layout takes for a missing one.
        options: of the command.
    """

    write: Callable[[Path, World], Path]
    name: str
    time: Callable[[int], Any] | None = lambda seconds: seconds
    rated: bool = True
    features: Callable[[str], list[str]] = lambda item: []
    title: Callable[[str], str] = lambda title: title
    header: str = ""
    titled: bool = True
    lacks: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def world(seed: int = 0) -> World:
    """Five users, each of whom has had most items once, in an order that is not that of time."""
    import random

    draw = random.Random(seed)
    rows = [
        (f"A1USER{user:04}X", item, draw.randint(1, 5), START + 86_400 * draw.randint(0, 300) + 3600 * number)
        for user in range(5)
        for number, item in enumerate(draw.sample([*TITLES, UNTITLED], 7))
    ]
    draw.shuffle(rows)
    return World(rows, dict(TITLES))


def expected(layout: Layout, made: World) -> Expected:
    """What an import leaves in the atomic files, without the interactions of the item that has no title."""
    titles = {item: title for item, title in made.titles.items() if item not in layout.lacks}
    inter = []
    for number, (user, item, rating, seconds) in enumerate(made.rows):
        time = layout.time(seconds) if layout.time else number
        if item in titles or not layout.titled:
            inter.append([user, item, *([repr(float(rating))] if layout.rated else []), time])
    inter.sort(key=lambda row: row[-1])  # equal times, days for example, stay in the order of the file
    present = sorted({row[1] for row in inter})
    items = {item: [layout.title(titles[item]), *layout.features(item)] for item in present if item in titles}
    return Expected([[*row[:-1], repr(row[-1])] for row in inter], items)


def atomic(folder: Path, kind: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of an atomic file, read by the csv module."""
    with open(folder / f"{folder.name}.{kind}", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return header, rows


# ------------------------------------------------------------------------------------------------- writers


def text(folder: Path, name: str, content: str, encoding: str = "utf-8") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = content.encode(encoding)
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder / name


def lines(rows: Sequence[Sequence[Any]], separator: str) -> str:
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


def quoted(rows: Sequence[Sequence[Any]], separator: str = ",", **more: Any) -> str:
    stream = io.StringIO()
    csv.writer(stream, delimiter=separator, lineterminator="\n", **more).writerows(rows)
    return stream.getvalue()


def objects(rows: Sequence[Any], dump: Callable[[Any], str] = json.dumps) -> str:
    return "".join(dump(row) + "\n" for row in rows)


def utc(seconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)


def latin(title: str) -> str:
    return title.encode("latin-1", "replace").decode("latin-1")


def ml_100k(folder: Path, made: World) -> Path:
    from recbole_llm.data.importers.movielens import GENRES as NAMES

    text(folder, "u.data", lines(made.rows, "\t"))
    flags = {item: [int(name in GENRES[item]) for name in NAMES] for item in made.titles}
    rows = [[item, latin(title), "01-Jan-1995", "", "http://x", *flags[item]] for item, title in made.titles.items()]
    text(folder, "u.item", lines(rows, "|"), "latin-1")
    text(folder, "u.user", "1|24|M|technician|85711\n")
    return folder


def ml_1m(folder: Path, made: World) -> Path:
    text(folder, "ratings.dat", lines(made.rows, "::"))
    rows = [[item, latin(title), "|".join(GENRES[item])] for item, title in made.titles.items()]
    text(folder, "movies.dat", lines(rows, "::"), "latin-1")
    return folder


def ml_10m(folder: Path, made: World) -> Path:
    text(folder, "ratings.dat", lines(made.rows, "::"))
    rows = [[item, title, "|".join(GENRES[item])] for item, title in made.titles.items()]
    text(folder, "movies.dat", lines(rows, "::"))
    return folder


def ml_20m(folder: Path, made: World) -> Path:
    text(folder, "ratings.csv", quoted([["userId", "movieId", "rating", "timestamp"], *made.rows]))
    rows = [[item, title, "|".join(GENRES[item])] for item, title in made.titles.items()]
    text(folder, "movies.csv", quoted([["movieId", "title", "genres"], *rows]))
    text(folder, "tags.csv", "userId,movieId,tag,timestamp\n")
    return folder


def metadata_2023(made: World) -> list[dict[str, Any]]:
    return [
        {
            "main_category": "Toys",
            "title": title,
            "store": "Shop",
            "categories": list(GENRES[item]),
            "parent_asin": item,
        }
        for item, title in made.titles.items()
    ]


def amazon_2023(folder: Path, made: World) -> Path:
    rows = [(user, item, float(rating), seconds * 1000) for user, item, rating, seconds in made.rows]
    text(folder, "meta_Toys.jsonl.gz", objects(metadata_2023(made)))
    header = ["user_id", "parent_asin", "rating", "timestamp"]
    return text(folder, "Toys.csv.gz", quoted([header, *rows]))


def amazon_2023_reviews(folder: Path, made: World) -> Path:
    rows = [
        {"rating": float(rating), "title": 'not "the" product', "text": "x\ny", "images": [], "asin": f"{item}V",
         "parent_asin": item, "user_id": user, "timestamp": seconds * 1000, "verified_purchase": True}
        for user, item, rating, seconds in made.rows
    ]  # fmt: skip
    text(folder, "meta_Toys.jsonl", objects(metadata_2023(made)))
    return text(folder, "Toys.jsonl", objects(rows))


def amazon_2018(folder: Path, made: World) -> Path:
    rows = [
        {"overall": float(rating), "verified": True, "reviewTime": "10 17, 2015", "reviewerID": user, "asin": item,
         "reviewerName": "N", "reviewText": "t", "summary": "s", "unixReviewTime": seconds}
        for user, item, rating, seconds in made.rows
    ]  # fmt: skip
    about = [
        {"category": list(GENRES[item]), "title": title, "brand": "Shop", "main_cat": "Toys", "asin": item}
        for item, title in made.titles.items()
    ]
    text(folder, "meta_Toys.json.gz", objects(about))
    return text(folder, "Toys_5.json.gz", objects(rows))


def amazon_2018_ratings(folder: Path, made: World) -> Path:
    rows = [(item, user, float(rating), seconds) for user, item, rating, seconds in made.rows]
    about = [
        {"categories": [list(GENRES[item])], "title": title, "brand": "Shop", "main_cat": "Toys", "asin": item}
        for item, title in made.titles.items()
    ]
    text(folder, "meta_Toys.json", objects(about, repr))  # Python literals, as in 2014
    return text(folder, "Toys.csv", lines(rows, ","))


def steam(folder: Path, made: World) -> Path:
    rows = [
        {"username": user, "hours": 1.5, "products": 3, "product_id": item, "page_order": 0,
         "date": utc(seconds).strftime("%Y-%m-%d"), "text": "it's \"good\"", "early_access": False, "page": 1}
        for user, item, _, seconds in made.rows
    ]  # fmt: skip
    games = [
        {"publisher": "P", "genres": list(GENRES[item]), "app_name": title, "title": title, "id": item}
        for item, title in made.titles.items()
    ]
    text(folder, "steam_games.json.gz", objects(games, repr))
    return text(folder, "steam_reviews.json.gz", objects(rows, repr))


def steam_2(folder: Path, made: World) -> Path:
    by_user: dict[str, list[dict[str, Any]]] = {}
    for user, item, _, seconds in made.rows:
        posted = f"Posted {utc(seconds):%B} {utc(seconds).day}, {utc(seconds).year}."
        by_user.setdefault(user, []).append(
            {"funny": "", "posted": posted, "last_edited": "", "item_id": item, "recommend": True, "review": "ok"}
        )
    users = [{"user_id": user, "user_url": "http://x", "reviews": own} for user, own in by_user.items()]
    made.rows[:] = [row for user in by_user for row in made.rows if row[0] == user]  # the file is in this order
    games = [{"genres": list(GENRES[item]), "app_name": title, "id": item} for item, title in made.titles.items()]
    text(folder, "steam_games.json", objects(games, repr))
    return text(folder, "australian_user_reviews.json", objects(users, repr))


def yelp(folder: Path, made: World) -> Path:
    rows = [
        {"review_id": f"r{number}", "user_id": user, "business_id": item, "stars": float(rating), "useful": 0,
         "text": "line\nend", "date": utc(seconds).strftime("%Y-%m-%d %H:%M:%S")}
        for number, (user, item, rating, seconds) in enumerate(made.rows)
    ]  # fmt: skip
    about = [
        {"business_id": item, "name": title, "city": "Tempe", "stars": 3.0, "categories": ", ".join(GENRES[item])}
        for item, title in made.titles.items()
    ]
    text(folder, "yelp_academic_dataset_review.json", objects(rows))
    text(folder, "yelp_academic_dataset_business.json", objects(about))
    text(folder, "yelp_academic_dataset_tip.json", objects([{"user_id": "u"}]))
    return folder


def goodreads(folder: Path, made: World) -> Path:
    zone = timezone(timedelta(hours=-7))
    rows = [
        {"user_id": user, "book_id": item, "review_id": "r", "is_read": True, "rating": rating,
         "review_text_incomplete": "", "date_added": utc(seconds).astimezone(zone).strftime("%a %b %d %H:%M:%S %z %Y"),
         "date_updated": "", "read_at": "", "started_at": ""}
        for user, item, rating, seconds in made.rows
    ]  # fmt: skip
    books = [{"isbn": "", "book_id": item, "title": title, "authors": []} for item, title in made.titles.items()]
    text(folder, "goodreads_books_poetry.json.gz", objects(books))
    return text(folder, "goodreads_interactions_poetry.json.gz", objects(rows))


def mind(folder: Path, made: World) -> Path:
    """One impression for each click, with a piece of news that was not clicked."""
    rows = []
    for number, (user, item, _, seconds) in enumerate(made.rows):
        moment = utc(seconds)
        time = f"{moment.month}/{moment.day}/{moment.year} {moment:%I:%M:%S %p}"
        rows.append([number, user, time, "", f"N1-0 {item}-1"])
    news = [[item, "news", "world", title, "abstract", "http://x", "[]", "[]"] for item, title in made.titles.items()]
    text(folder, "behaviors.tsv", lines(rows, "\t"))
    text(folder, "news.tsv", lines(news, "\t"))
    return folder


def book_crossing(folder: Path, made: World) -> Path:
    def cells(row: Sequence[Any]) -> str:
        return ";".join('"' + str(cell).replace('"', '\\"') + '"' for cell in row) + "\n"

    rows = [["User-ID", "ISBN", "Book-Rating"], *([user, item, rating] for user, item, rating, _ in made.rows)]
    names = ["ISBN", "Book-Title", "Book-Author", "Year-Of-Publication", "Publisher", "Image-URL-S", "M", "L"]
    books = [
        [item, latin(title).replace("é", "&eacute;"), "O'Neil; A.", 2001, "P", "http://s", "http://m", "http://l"]
        for item, title in made.titles.items()
    ]
    text(folder, "BX-Books.csv", "".join(map(cells, [names, *books])), "latin-1")
    return text(folder, "BX-Book-Ratings.csv", "".join(map(cells, rows)), "latin-1").parent


def book_crossing_plain(folder: Path, made: World) -> Path:
    rows = [["User-ID", "ISBN", "Book-Rating"], *([user, item, rating] for user, item, rating, _ in made.rows)]
    names = ["ISBN", "Book-Title", "Book-Author", "Year-Of-Publication"]
    books = [[item, title, "O'Neil; A.", 2001] for item, title in made.titles.items()]
    text(folder, "Books.csv", quoted([names, *books]))
    return text(folder, "Ratings.csv", quoted(rows)).parent


def hetrec_tags(folder: Path, made: World) -> Path:
    rows = [[user, item, 7, seconds * 1000] for user, item, _, seconds in made.rows]
    again = [[user, item, 8, seconds * 1000 + 5] for user, item, _, seconds in made.rows]  # a second tag
    artists(folder, made)
    content = [["userID", "artistID", "tagID", "timestamp"], *again, *rows]
    text(folder, "user_taggedartists-timestamps.dat", lines(content, "\t"))
    return folder


def artists(folder: Path, made: World) -> None:
    rows = [[item, title, "http://x", "http://y"] for item, title in made.titles.items()]
    text(folder, "artists.dat", lines([["id", "name", "url", "pictureURL"], *rows], "\t"))


def hetrec_counts(folder: Path, made: World) -> Path:
    artists(folder, made)
    rows = [[user, item, rating] for user, item, rating, _ in made.rows]
    text(folder, "user_artists.dat", lines([["userID", "artistID", "weight"], *rows], "\t"))
    return folder


def lastfm_360k(folder: Path, made: World) -> Path:
    made.titles[UNTITLED] = UNTITLED  # its MusicBrainz id is empty: its name stands for it
    rows = [[user, "" if item == UNTITLED else item, made.titles[item], rating] for user, item, rating, _ in made.rows]
    return text(folder, "usersha1-artmbid-artname-plays.tsv", lines(rows, "\t"))


def lastfm_1k(folder: Path, made: World) -> Path:
    made.titles[UNTITLED] = UNTITLED
    rows = [
        [user, f"{utc(seconds):%Y-%m-%dT%H:%M:%SZ}", "" if item == UNTITLED else item, made.titles[item], "", "Track"]
        for user, item, _, seconds in made.rows
    ]
    return text(folder, "userid-timestamp-artid-artname-traid-traname.tsv", lines(rows, "\t"))


def any_csv(folder: Path, made: World) -> Path:
    header = ["Review", "Customer ID", "product_id", "Stars", "Created-At", "Product Title"]
    rows = [
        ["long,\ntext", user, item, rating, f"{utc(seconds):%Y-%m-%d %H:%M:%S}", made.titles.get(item, "")]
        for user, item, rating, seconds in made.rows
    ]
    return text(folder, "reviews.csv", quoted([header, *rows]))


def any_tsv(folder: Path, made: World) -> Path:
    header = ["user", "item", "rating", "time", "title"]
    rows = [[*row, made.titles.get(row[1], "")] for row in made.rows]
    return text(folder, "mine.tsv.gz", "\ufeff" + lines([header, *rows], "\t").replace("\n", "\r\n"))


def any_jsonl(folder: Path, made: World) -> Path:
    rows = [
        {"uid": user, "iid": item, "score": rating, "ts": seconds, "name": made.titles.get(item)}
        for user, item, rating, seconds in made.rows
    ]
    return text(folder, "mine.jsonl", objects(rows))


def split_csv(folder: Path, made: World) -> Path:
    """A table of interactions, semicolon-separated, and a table of items."""
    about = [[item, title, "Shop"] for item, title in made.titles.items()]
    text(folder, "catalogue.csv", quoted([["item_id", "title", "brand"], *about], ";"))
    header = ["user_id", "item_id", "rating", "timestamp"]
    return text(folder, "events.csv", quoted([header, *made.rows], ";"))


def headerless(folder: Path, made: World) -> Path:
    return text(folder, "events.csv", lines([[user, seconds, item] for user, item, _, seconds in made.rows], ","))


def day(seconds: int) -> int:
    return seconds - seconds % 86_400


def genres(item: str) -> list[str]:
    return [" ".join(GENRES[item])]


def shop(item: str) -> list[str]:
    return ["Shop", " ".join(GENRES[item]), "Toys"]


def ms(seconds: int) -> int:
    return seconds * 1000


GENRE_HEADER = "genres:token_seq"
SHOP_HEADER = "brand:token categories:token_seq main_category:token"
BOOK_HEADER = "author:token year:token"


def books(item: str) -> list[str]:
    return ["O'Neil; A.", "2001"]


LAYOUTS = [
    Layout(ml_100k, "MovieLens 100K", features=genres, title=latin, header=GENRE_HEADER),
    Layout(ml_1m, "MovieLens 1M or 10M", features=genres, title=latin, header=GENRE_HEADER),
    Layout(ml_10m, "MovieLens 1M or 10M", features=genres, header=GENRE_HEADER),
    Layout(ml_20m, "MovieLens 20M or later", features=genres, header=GENRE_HEADER),
    *(
        Layout(write, f"Amazon Reviews {name}", time, features=shop, header=SHOP_HEADER, lacks=("B000000009",))
        for write, name, time in (
            (amazon_2023, "2023", ms),
            (amazon_2023_reviews, "2023, reviews", ms),
            (amazon_2018, "2018 or 2014, reviews", lambda seconds: seconds),
            (amazon_2018_ratings, "2018 or 2014, ratings only", lambda seconds: seconds),
        )
    ),
    Layout(steam, "Steam reviews", day, rated=False, features=genres, header=GENRE_HEADER),
    Layout(steam_2, "Steam reviews, version 2", day, rated=False, features=genres, header=GENRE_HEADER),
    Layout(
        yelp,
        "Yelp reviews",
        features=lambda item: ["Tempe", *genres(item)],
        header="city:token categories:token_seq",
    ),
    Layout(goodreads, "Goodreads"),
    Layout(
        mind, "MIND", rated=False, features=lambda item: ["news", "world"], header="category:token subcategory:token"
    ),
    Layout(book_crossing, "Book-Crossing", None, features=books, title=latin, header=BOOK_HEADER),
    Layout(book_crossing_plain, "Book-Crossing", None, features=books, header=BOOK_HEADER),
    Layout(hetrec_tags, "Last.fm HetRec 2011, tags", ms, rated=False),
    Layout(hetrec_counts, "Last.fm HetRec 2011, listening counts", None),
    Layout(lastfm_360k, "Last.fm 360K", None),
    Layout(lastfm_1k, "Last.fm 1K, artists", rated=False),
    Layout(any_csv, "a table"),
    Layout(any_tsv, "a table"),
    Layout(any_jsonl, "a table"),
    Layout(
        split_csv,
        "a table",
        features=lambda item: ["Shop"],
        header="brand:token",
        options={"items": "catalogue.csv", "text": "brand"},
    ),
    Layout(headerless, "a table", rated=False, titled=False, options={"columns": "user,time,item"}),
]
