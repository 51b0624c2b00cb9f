"""The page of a table: whole, escaped, without anything from outside, and readable in a real browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from recbole_llm.report import Changed, PageFacts, ResultTable, RunResult, example_users, to_page, write_page
from recbole_llm.report.page import headline
from tests.browser import find_browser, open_page, print_page
from tests.pictures import drawn

NASTY = "<script>alert(1)</script> & \"千と千尋\": 'x' </table>"
NAME = "<b>Pop</b> & 'co'"  # of a model: plots show it too, in a font without Chinese
needs_browser = pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed (apt install chromium)")


def record(**facts: object) -> dict[str, object]:
    known = {"user_id": "u1", "item_id": "b", "history": ["A", NASTY], "target": "B", "answer": None}
    items = [{"item_id": "b", "title": "B", "score": 1.23456, "is_target": True}]
    return {**known, "outcome": "rank 1", "items": items, **facts}


@pytest.fixture(scope="module")
def table() -> ResultTable:
    values = {"Pop": 0.1, NAME: 0.2}
    results = [RunResult(name, "d", test={"ndcg@10": value}, wall_seconds=1) for name, value in values.items()]
    return ResultTable(results, {"torch": "2"}, {"d": "0" * 64}, command=f"recbole-llm {NASTY}", metric="ndcg@10")


@pytest.fixture(scope="module")
def facts(table: ResultTable, tmp_path_factory: pytest.TempPathFactory) -> PageFacts:
    from recbole_llm.report import plot_table

    with drawn():
        files = plot_table(table, tmp_path_factory.mktemp("pictures"))
    pictures = {path.stem: path.read_text() for path in files if path.suffix == ".svg"}
    examples = example_users({"Pop": [record()], NAME: [record(answer=NASTY)]})
    return PageFacts({"Split": NASTY}, [Changed("seed", NASTY, "1", "all")], examples, pictures)


class Tags(HTMLParser):
    """Opened and closed tags, and every attribute."""

    VOID = frozenset(("meta", "br", "path", "use", "rect"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_titles_and_names_are_text_whatever_they_hold(table, facts):
    page = to_page(table, facts)
    tags = Tags(page)
    assert not tags.open and "script" not in tags.seen
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 5
    assert NASTY not in page and "<b>" not in page and page.count("&lt;b&gt;Pop&lt;/b&gt; &amp; &#39;co&#39;") >= 2


def test_nothing_is_referred_to_outside_the_page(table, facts):
    tags = Tags(to_page(table, facts))
    assert not {"link", "img", "iframe", "object", "script", "base"} & set(tags.seen)
    loading = [value for name, value in tags.attributes if name in ("src", "href", "xlink:href", "data", "action")]
    assert all(value is not None and value.startswith("#") for value in loading)
    policy = [value for name, value in tags.attributes if name == "content" and value and "default-src" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_the_same_table_gives_the_same_page_and_a_bare_one_is_whole(table, facts):
    assert to_page(table, facts) == to_page(table, facts)
    bare = to_page(ResultTable((RunResult("Pop", "d"),)))
    assert not Tags(bare).open and "Examples" not in bare and "<pre" not in bare


def test_the_headline_says_what_the_table_says(table):
    assert headline(table) == f"By NDCG@10, {NAME} is best (0.2000)."
    tied = ResultTable([RunResult(name, "d", test={"ndcg@10": 0.1}) for name in "AB"], metric="ndcg@10")
    assert headline(tied) == "By NDCG@10, A and B are best (0.1000)."
    assert headline(ResultTable((RunResult("Pop", "d"),))) == ""


def test_examples_are_rows_that_every_model_has():
    other = record(item_id="c")
    found = example_users({"Pop": [record(), other], "SASRec": [record(outcome="rank 9")]})
    assert [(one.user, [shown.outcome for shown in one.shown]) for one in found] == [("u1", ["rank 1", "rank 9"])]
    assert example_users({}) == []


@needs_browser
def test_a_browser_shows_it_and_asks_for_nothing(table, facts, tmp_path):
    page = write_page(table, tmp_path, facts)
    for dark in (False, True):
        seen = open_page(page, tmp_path, dark)
        assert seen.requests == [] and seen.console == []
        assert "0.2000" in seen.dom and seen.dom.count("<svg") == 3
        corner = sum(seen.picture.getpixel((2, 2))) / 3
        assert corner < 60 if dark else corner > 240
        colours = seen.picture.getcolors(2**24)
        assert colours is not None and len(colours) > 100  # text and plots, no empty sheet
    assert print_page(page, tmp_path).startswith(b"%PDF")


@needs_browser
def test_the_browser_would_have_told(tmp_path):
    """The same look at a page that loads something and fails."""
    page = tmp_path / "bad.html"
    page.write_text('<p>x</p><img src="http://elsewhere.invalid/x.png"><script>nothing()</script>')
    seen = open_page(page, tmp_path)
    assert seen.requests == ["http://elsewhere.invalid/x.png"]
    assert any(re.search("nothing is not defined", line) for line in seen.console)
