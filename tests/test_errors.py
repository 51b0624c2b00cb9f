"""What a refusal may look like: one line that any terminal prints, whatever value it names."""

from __future__ import annotations

import pytest

from recbole_llm.errors import InputError, NonFiniteError


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("two\nlines\r\n", "two\\nlines\\r\\n"),
        ("NUL \0", "NUL \\x00"),
        ("right \u202e to left", "right \\u202e to left"),
        ("half \ud800", "half \\ud800"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("Amélie (愛) 😀 שלום", "Amélie (愛) 😀 שלום"),
    ],
)
def test_a_message_is_one_printable_line(value: str, shown: str) -> None:
    error = InputError("title_field", f"'{value}' is no column", kind="data")
    assert str(error) == f"title_field: '{shown}' is no column" and str(error).isprintable()
    assert str(error).encode("utf-8")


def test_a_long_message_keeps_its_beginning_and_what_to_do() -> None:
    text = str(InputError("histories", f"'{'x' * 100_000}': no item has this title; did you mean Babe?"))
    assert (
        len(text) == 2000
        and text.startswith("histories: 'xxx")
        and text.endswith("x': no item has this title; did you mean Babe?")
    )


def test_what_is_not_finite_is_a_refusal_and_a_floating_point_error() -> None:
    error = NonFiniteError("the loss of row 3 is nan")
    assert isinstance(error, InputError) and isinstance(error, FloatingPointError)
    assert (error.key, error.kind, str(error)) == ("", "numeric", "the loss of row 3 is nan")
