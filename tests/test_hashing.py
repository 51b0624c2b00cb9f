"""Digests are SHA-256 of JSON, of bytes in row-major order, and of files: in every process and on every stack."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from recbole_llm import hashing
from recbole_llm.hashing import hash_arrays, hash_file, hash_json

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda own: st.lists(own, max_size=4) | st.dictionaries(st.text(), own, max_size=4),
    max_leaves=8,
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_known_digests():
    assert hash_json(["Ä", None, 1]) == sha256(b'["\\u00c4", null, 1]')
    assert hash_json([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"
    assert hash_arrays() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@settings(max_examples=40)
@given(PLAIN)
def test_json_is_hashed_with_its_keys_in_order(value):
    assert hash_json(value) == sha256(json.dumps(value, sort_keys=True).encode())
    if isinstance(value, dict):
        assert hash_json(dict(reversed(value.items()))) == hash_json(value)


def test_what_is_no_plain_data_is_refused():
    with pytest.raises(TypeError):
        hash_json({"a": object()})


@given(arrays.arrays(st.sampled_from(["int64", "float32", "float64", "bool"]), arrays.array_shapes(min_side=0)))
def test_arrays_are_hashed_as_their_values_in_row_major_order(array):
    assert hash_arrays(array) == hash_arrays(np.asfortranarray(array)) == sha256(array.tobytes())
    assert hash_arrays(array.T) == sha256(np.ascontiguousarray(array.T).tobytes())
    assert hash_arrays(array[::2], array) == sha256(array[::2].tobytes() + array.tobytes())


@pytest.mark.parametrize("size", [0, 1, 4, 10])
def test_a_file_is_hashed_whole_however_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int):
    monkeypatch.setattr(hashing, "_BLOCK", 4)
    content = bytes(range(size))
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file") == sha256(content)
