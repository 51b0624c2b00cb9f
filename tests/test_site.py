"""The documentation site builds without a warning, names every page, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec

import pytest

from recbole_llm.registry import AXES
from tests.processes import REPOSITORY, fresh_python

MISSING = find_spec("mkdocs") is None or find_spec("mkdocstrings") is None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING, reason="the extra 'docs' is not installed: pip install 'recbole-llm[docs]'"),
]

QUIET = {"NO_MKDOCS_2_WARNING": "1"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    fresh_python("-m", "mkdocs", "build", "--strict", "--site-dir", folder, env=QUIET)
    return folder


def test_every_page_is_in_the_navigation(site):
    links = set(re.findall(r'href="([\w/.-]+\.html)"', (site / "index.html").read_text(encoding="utf-8")))
    pages = {file.relative_to(REPOSITORY / "docs") for file in (REPOSITORY / "docs").rglob("*.md")}
    assert {str(page.with_suffix(".html").as_posix()) for page in pages} - {"index.html"} <= links


def test_the_page_of_the_axes_has_every_value(site):
    page = (site / "axes.html").read_text(encoding="utf-8")
    for name, values in AXES.items():
        for value in (name, *values):
            assert f"<code>{value}</code>" in page, (name, value)


def test_docstrings_show_their_examples_as_code_and_no_roles(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    assert "Examples:" in page and "&gt;&gt;&gt;" in page
    assert not re.search(r":(class|func|meth|mod|attr|data):", page)


def test_pages_load_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*src="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]*rel="(?:stylesheet|icon|preconnect)"[^>]*href="([^"]+)"', text)
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], page


def test_a_link_that_leads_nowhere_ends_the_build(tmp_path):
    for name in ("docs", "properties", "recbole_llm"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "mkdocs.yml", tmp_path)
    page = tmp_path / "docs" / "tune.md"
    page.write_text(page.read_text() + "\n[nowhere](tune.md#no-such-heading)\n")
    done = fresh_python("-m", "mkdocs", "build", "--strict", cwd=tmp_path, env=QUIET, status=None)
    assert done.status == 1 and "no-such-heading" in done.stderr
