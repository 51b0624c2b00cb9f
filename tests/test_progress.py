"""One bar at a time: what stands on a terminal while bars are nested, one after the other, or end by an error."""

from __future__ import annotations

import io

import pytest
from tqdm import tqdm

from recbole_llm.progress import Bar


def drawn(out: io.StringIO) -> set[str]:
    """Names of the bars that were drawn."""
    return {line.partition(":")[0].strip() for line in out.getvalue().replace("\r", "\n").splitlines() if ":" in line}


@pytest.mark.parametrize("outer", [Bar, tqdm])
def test_a_bar_inside_another_is_not_drawn_and_still_counts(outer):
    out, seen = io.StringIO(), []
    for one in outer([1, 2], desc="outer", file=out):
        seen += [(one, two) for two in Bar("ab", desc="inner", file=out)]
    assert drawn(out) == {"outer"} and seen == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    with Bar(total=2, desc="next", file=out) as bar:
        bar.update()
    assert drawn(out) == {"outer", "next"}


def test_after_an_error_the_next_bar_is_drawn():
    out = io.StringIO()
    with pytest.raises(ValueError, match="stop"), Bar(total=2, desc="broken", file=out):
        raise ValueError("stop")
    list(Bar("a", desc="next", file=out))
    assert drawn(out) == {"broken", "next"}


def test_a_bar_that_is_off_hides_none():
    out = io.StringIO()
    for _ in Bar([1], desc="off", file=out, disable=True):
        list(Bar("a", desc="inner", file=out))
    assert drawn(out) == {"inner"}
