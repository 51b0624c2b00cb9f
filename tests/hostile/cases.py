"""What the hostile tests share: how a case may end, and values, texts and bytes to try."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from recbole_llm.errors import InputError, Kind

LONGEST = 2000  # characters of a message


def tried(examples: int) -> Any:
    """So many generated cases of a test, each as slow as it is; which ones, ``--hypothesis-seed`` decides."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
    return settings(max_examples=examples, suppress_health_check=checks, derandomize=False, database=None)


def outcome(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, InputError | None]:
    """What a call gives, or its refusal; any other exception is a failure of the test.

    A refusal is one printable line of bounded length, and of a kind that there is.
    """
    try:
        return function(*args, **options), None
    except InputError as error:
        text = str(error)
        assert text.strip() and text.isprintable() and len(text) <= LONGEST, repr(text)
        assert error.kind in get_args(Kind)
        return None, error


def alike(one: Any, other: Any) -> bool:
    """Equality under which NaN is itself, 1 is not True, and a list is not a text."""
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return type(one) is type(other) and bool(one == other)


# Texts that files, terminals, tokenizers and Unicode know something of their own about.
SPECIAL_TOKENS = (
    *("<s>", "</s>", "<pad>", "<unk>", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>", "[PAD]", "[INST]"),
    *("<bos>", "<eos>", "<a_0>", "<|sid_0_1|>", "<item_1>", "-1", "### Response:", "{history}", "{title}"),
)
ODD_TEXTS = (
    *("", " ", "\t", "\n", "\r", "\r\n", "\x85", "\u2028", "\x1b[31mred", "\x7f", "\ufeff", "\u00a0", "\u200b"),
    *('"', '""', "'", '"Heroes', 'Ruler 12"', '""Heroes""', "\\", "\\n", "a;b", "a,b", "a|b", "a\tb", "#", "%s", "{0}"),
    *(
        "caf\u00e9",
        "cafe\u0301",
        "\u05e9\u05dc\u05d5\u05dd",
        "\u202egnp.exe",
        "\U0001f600",
        "\U0001f468\u200d\U0001f469",
    ),
    *(
        "na",
        "NaN",
        "null",
        "None",
        "~",
        "no",
        "on",
        "true",
        "1e5",
        "007",
        "0x1F",
        "1_000",
        "12:30",
        "2020-01-01",
        "=1+1",
    ),
    *(
        "\u0661\u0662",
        "\u00bd",
        "\u1e9e",
        "\ufb01",
        "\u0130",
        "\U00010348",
        "\u0000x",
        "x\u0000",
        "..",
        "../x",
        "/",
        "x" * 300,
    ),
)
texts = st.sampled_from(SPECIAL_TOKENS + ODD_TEXTS) | st.text(max_size=20)
numbers = (
    st.integers(-3, 40)
    | st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400, -(10**400)])
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.sampled_from([0.0, -0.0, 5e-324, 1e308, 1 - 1e-16])
)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.integers(), inner, max_size=3),
    max_leaves=8,
)
FOREIGN = (b"bytes", 1j, {1, 2}, object(), int, len, range(3), [[1], [[2]]])
"""Values that no setting takes."""


@st.composite
def broken(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes after up to three accidents: cut, doubled, overwritten or given something in between."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 64)))
        between = draw(
            st.sampled_from([b"", b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\r", b"\n\n", b'"', b"{", b"9" * 400])
            | st.binary(max_size=8)
        )
        how = draw(st.sampled_from(["cut", "replace", "insert", "double"]))
        if how == "cut":
            content = content[:start]
        elif how == "double":
            content = content[:end] + content[start:]
        else:
            content = content[:start] + between + content[end if how == "replace" else start :]
    return content
