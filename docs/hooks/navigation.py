"""What MkDocs cannot say in mkdocs.yml: all method pages, pages that are named nowhere, and the values of the axes.

A page of a new method appears under "Methods" by itself, any other new page under "Reference".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

AXES_HERE = "<!-- the axes and their values -->"
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):(?=<code>)")  # of docstrings; what follows says enough


def on_config(config: Any) -> Any:
    """Add every page to the navigation."""
    folder = Path(config["docs_dir"])
    named = set(_pages(config["nav"]))
    missing = sorted(str(file.relative_to(folder).as_posix()) for file in folder.rglob("*.md"))
    sections = {title: pages for entry in config["nav"] for title, pages in entry.items()}
    for page in (page for page in missing if page not in named):
        sections["Methods" if page.startswith("methods/") else "Reference"].append(page)
    return config


def _pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _pages(part)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write the axes and their values where a page asks for them."""
    return markdown.replace(AXES_HERE, axes_table()) if AXES_HERE in markdown else markdown


def axes_table() -> str:
    """The axes of the registry and their values, ours only."""
    from recbole_llm.registry import AXES
    from recbole_llm.settings.models import llm_model_names

    axes = {"model": llm_model_names(), **{name: list(values) for name, values in AXES.items()}}
    rows = [f"| `{name}` | {', '.join(f'`{value}`' for value in values)} |" for name, values in axes.items()]
    return "\n".join(["| key | values |", "|---|---|", *rows])


def on_page_content(html: str, **_: Any) -> str:
    """Take off the roles of docstrings, which Markdown does not know."""
    return ROLE.sub("", html)
