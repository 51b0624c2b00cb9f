"""The trie holds exactly the beginnings of all titles, and finds many of them at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.llm import TitleTrie
from tests.families import FAMILIES, make_tokenizer

EOS = 2
TITLES = st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=5), min_size=1, max_size=12)


def brute_allowed(titles, prefix):
    ended = [[*title, EOS] for title in titles]
    return sorted({title[len(prefix)] for title in ended if title[: len(prefix)] == prefix and title != prefix})


def prefixes_of(titles):
    return sorted({tuple([*title, EOS][:end]) for title in titles for end in range(len(title) + 2)})


@given(TITLES, st.lists(st.lists(st.sampled_from([EOS, 3, 4, 5, 6, 99]), max_size=7), max_size=10))
def test_children_are_those_of_brute_force(titles, others):
    trie = TitleTrie(titles, EOS)
    for prefix in [*map(list, prefixes_of(titles)), *others]:
        assert trie.allowed(prefix) == brute_allowed(titles, prefix)


@given(TITLES, st.lists(st.lists(st.integers(2, 6), min_size=3, max_size=3), max_size=10))
def test_many_prefixes_are_found_at_once(titles, others):
    trie = TitleTrie(titles, EOS)
    known = prefixes_of(titles)
    assert trie.n_nodes == len(known)
    for length in range(trie.max_length + 2):
        asked = [prefix for prefix in known if len(prefix) == length] + [tuple(row) for row in others if length == 3]
        nodes = trie.find(np.array(asked, dtype=np.int64).reshape(len(asked), length))
        for prefix, node in zip(asked, nodes, strict=True):
            assert (node >= 0) == (prefix in known)
            assert node < 0 or prefix == tuple(path_tokens(trie, node))
        assert len(set(nodes[nodes >= 0])) == len({prefix for prefix in asked if prefix in known})


def path_tokens(trie, node):
    tokens = []
    while node:
        tokens.insert(0, int(trie.tokens[node]))
        node = trie.parents[node]
    return tokens


@given(TITLES)
def test_arrays_agree_with_each_other(titles):
    trie = TitleTrie(titles, EOS)
    assert (trie.parents[1:] < np.arange(1, trie.n_nodes)).all()
    for node in range(trie.n_nodes):
        below = [
            other
            for other in range(trie.n_nodes)
            if path_tokens(trie, other)[: trie.depths[node]] == path_tokens(trie, node)
        ]
        assert below == list(range(node, trie.ends[node]))
        children = trie.children[trie.child_starts[node] : trie.child_starts[node + 1]]
        assert (trie.parents[children] == node).all() and len(children) == trie.n_children[node]
        assert node == 0 or node in trie.paths[trie.first_titles[node]]
    for item, title in enumerate(titles):
        row = trie.title_of_item[item]
        assert trie.tokens[trie.paths[row, : trie.lengths[row]]].tolist() == [*title, EOS]
        assert not trie.paths[row, trie.lengths[row] :].any()


@given(TITLES)
def test_a_finished_sequence_names_its_items(titles):
    trie = TitleTrie(titles, EOS)
    assert trie.n_titles == len(set(map(tuple, titles)))
    for title in titles:
        expected = [item for item, other in enumerate(titles) if other == title]
        assert trie.items(title) == trie.items([*title, EOS]) == expected
        assert trie.items([*title, 99]) == []
    assert TitleTrie([[*title, EOS] for title in titles], EOS).paths.tolist() == trie.paths.tolist()


def test_prefixes_duplicates_and_untitled_items():
    trie = TitleTrie([None, [7, 8], [7], [7, 8], [], [EOS]], EOS)
    assert trie.allowed([]) == [7]
    assert trie.allowed([7]) == [EOS, 8]
    assert trie.allowed([7, 8]) == [EOS]
    assert trie.allowed([7, 8, EOS]) == trie.allowed([8]) == trie.allowed([7, 8, EOS, EOS, 7]) == []
    assert trie.items([7]) == [2] and trie.items([7, 8]) == [1, 3] and trie.items([8]) == trie.items([]) == []
    assert trie.title_of_item.tolist() == [-1, 1, 0, 1, -1, -1]
    assert (trie.n_items, trie.n_titles, trie.n_nodes, trie.max_length) == (6, 2, 5, 3)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="no item has a title"):
        TitleTrie([None, []], EOS)
    with pytest.raises(ValueError, match="item 1 holds EOS"):
        TitleTrie([[5], [5, EOS, 6]], EOS)
    with pytest.raises(ValueError, match="negative"):
        TitleTrie([[5, -1]], EOS)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_ids_of_a_tokenizer(family):
    tokenizer = make_tokenizer(family)
    titles = ["Heat", "Heat 2", "Hé 🎬", '"Heat"', "Heat"]
    rows = [tokenizer(f'"{title}"', add_special_tokens=False)["input_ids"] for title in titles]
    trie = TitleTrie(rows, tokenizer.eos_token_id)
    assert [trie.items(row) for row in rows] == [[0, 4], [1], [2], [3], [0, 4]]


def test_prefixes_whose_hashes_are_equal_are_told_apart(monkeypatch):
    """With coefficients of 1 the prefixes 5 7 and 7 5 have one hash; others are drawn until all differ."""
    drawn = []

    class Generator:
        def __init__(self, seed):
            self.seed = seed
            drawn.append(seed)

        def integers(self, high, size):
            return np.zeros(size, dtype=np.int64) if self.seed < 2 else np.arange(size)

    titles = [[5, 7], [7, 5], [5, 6]]
    monkeypatch.setattr("recbole_llm.llm.trie.np.random.default_rng", Generator)
    trie = TitleTrie(titles, EOS)
    assert drawn == [0, 1, 2] and len(set(trie.hashes.tolist())) == trie.n_nodes
    assert [trie.items(title) for title in titles] == [[0], [1], [2]]
    assert [trie.allowed(title[:1]) for title in titles] == [[6, 7], [5], [6, 7]]
