"""Wrong answers are wrong, whichever way they are drawn, and a row's own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from recbole_llm.data.candidates import Candidates
from recbole_llm.data.catalog import ItemCatalog
from recbole_llm.data.loaders import train_loader
from recbole_llm.data.rows import SAMPLE_ID
from recbole_llm.llm.encoder import TextEncoder
from recbole_llm.model import base
from recbole_llm.objective.preference_settings import PreferenceSettings
from recbole_llm.prompt import TitlePromptEncoder, Wording
from recbole_llm.selection.row_selection import select_rows
from recbole_llm.trainer.negatives import (
    WrongAnswers,
    _popularity,
    as_they_are,
    contrasts_across,
    draw_negatives,
    grounded,
    known_items,
    own_texts,
)
from recbole_llm.trainer.preference import _prompt_vectors
from recbole_llm.trainer.preference_stages import Preference
from recbole_llm.trainer.self_play import OwnAnswersStage, some_rows
from tests.model.test_bigrec import trainer_of


@pytest.fixture(scope="module")
def with_rows(world: Path, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """A model, its training rows, and all rows of the split."""
    place = tmp_path_factory.mktemp("negatives") / "saved"
    shutil.copytree(llama, place / "llama")
    trainer, rows = trainer_of(world, place, "--train_sample_size=20")
    found, _ = select_rows(trainer.model, trainer.config, train_loader(trainer.config, rows).dataset, None)
    return trainer.model, found, rows


@pytest.fixture(scope="module")
def drawn_from(with_rows: tuple[Any, Any, Any]) -> tuple[Any, Any]:
    """A model and its training rows."""
    return with_rows[:2]


@pytest.mark.parametrize("kind", ["random", "popular", "similar"])
def test_wrong_answers_are_other_titles_that_the_history_lacks(drawn_from, kind):
    model, rows = drawn_from
    found, titles = draw_negatives(model, rows, kind, 3), model.catalog.representative
    targets = rows.readable[model.ITEM_ID].tolist()
    for own, history, target in zip(found, rows.histories, targets, strict=True):
        items = own[own > 0]
        assert len(set(items.tolist())) == len(items) == 3 and model.catalog.rankable[items].all()
        assert not set(titles[items]) & {*titles[list(history)].tolist(), int(titles[target])}
    some = np.array([7, 2])
    alone = some_rows(rows, some)
    assert alone.readable[SAMPLE_ID].tolist() == rows.readable[SAMPLE_ID][torch.from_numpy(some)].tolist()
    assert (draw_negatives(model, alone, kind, 3) == found[some]).all()
    across = contrasts_across(model, rows, found)(np.arange(len(found)))
    for row, (history, target) in enumerate(zip(rows.histories, targets, strict=True)):
        known = {*titles[list(history)].tolist(), int(titles[target])}
        assert across[row].tolist() == [int(titles[item]) not in known for item in found.flatten()]


def test_similar_ones_are_the_nearest_that_may_stand(drawn_from):
    model, rows = drawn_from
    found, vectors = draw_negatives(model, rows, "similar", 2), model.item_embeddings.astype(np.float64)
    for own, history, target in zip(found, rows.histories, rows.readable[model.ITEM_ID].tolist(), strict=True):
        distances = np.linalg.norm(vectors - vectors[target], axis=1)
        others = [item for item in np.flatnonzero(model.catalog.rankable) if item not in (*history, target)]
        assert own.tolist() == sorted(others, key=lambda item: (distances[item], item))[:2]


@pytest.mark.parametrize(("first_line", "length_penalty"), [(False, 1.0), (True, -2.0)])
def test_the_models_own_answers_are_those_of_an_evaluation(with_rows, monkeypatch, first_line, length_penalty):
    """With one beam, the rows of training are answered as they would be among the rows of the test."""
    model, rows, _ = with_rows
    for key, value in {"first_line": first_line, "length_penalty": length_penalty, "num_beams": 1}.items():
        monkeypatch.setitem(model.config.final_config_dict, key, value)
    asked: list[float] = []
    search, decode = model.free_answers.search, model.backbone.decode
    line = model.backbone.decode(rows.examples[0][1]).strip()

    def watched(*words: Any, **options: Any) -> Any:
        asked.append(options.get("length_penalty", words[3] if len(words) > 3 else None))
        return search(*words, **options)

    monkeypatch.setattr(model.free_answers, "search", watched)
    monkeypatch.setattr(type(model.backbone), "decode", lambda self, ids: f"{line}\nand more {decode(ids)}")
    found = own_texts(model, rows)
    assert found == model.generate_text(rows.readable) and asked == [length_penalty] * 2
    assert all(("\n" in text) != first_line for text in found) and all(text.startswith(line) for text in found)


def test_how_answers_are_searched_is_a_fact_of_them_where_it_is_not_the_usual(with_rows, monkeypatch):
    """Stages of the defaults are found again, by the name that they had before anything else was told."""
    model, rows, _ = with_rows

    def facts(self_negative: str = "grounded", **changed: Any) -> dict[str, Any]:
        settings = PreferenceSettings(preference="sprec", self_negative=self_negative)
        config = SimpleNamespace(final_config_dict={**model.config.final_config_dict, **changed})
        tuning = SimpleNamespace(config=config, model=model)
        start = SimpleNamespace(name="fine-tune-0")
        return OwnAnswersStage(tuning, rows, start, np.arange(2), settings, "answers-1").facts()

    usual = facts()
    assert set(usual) == {"from", "rows", "max_new_tokens"}
    approximate = {"faiss_index": "HNSW32", "faiss_search": "efSearch=64"}
    for changed in ({"length_penalty": 0.5}, {"first_line": True}, approximate):
        assert facts(**changed) == usual | changed
    assert facts("raw", **approximate) == facts("raw")  # a text as it is, is not searched for
    assert facts("raw") == usual | {"answers": "raw"}
    by_line = replace(model.prompts.layout, style="lines")
    monkeypatch.setattr(model.prompts, "layout", by_line)  # a text of several lines used to be taken as a whole
    assert facts("raw") == usual | {"answers": "raw, first line"} and facts() == usual


def test_a_catalogue_that_runs_out_gives_fewer(drawn_from):
    model, rows = drawn_from
    found = draw_negatives(model, rows, "random", 50)
    n_titles = int(model.catalog.rankable.sum())
    for own, history in zip(found, rows.histories, strict=True):
        assert (own > 0).sum() == n_titles - len(set(history)) - 1 and not own[(own > 0).sum() :].any()


def test_another_draw_is_of_other_items_and_the_first_stays_what_it_was(drawn_from):
    model, rows = drawn_from
    first, second = (draw_negatives(model, rows, "random", 2, draw=number) for number in (0, 1))
    assert (first == draw_negatives(model, rows, "random", 2)).all() and (first != second).any()
    across = contrasts_across(model, rows, second)(np.arange(len(first)))
    assert across.reshape(len(rows.histories), -1, 2)[np.arange(len(first)), np.arange(len(first))].all()


def test_what_stands_against_what_in_a_step_is_a_part_of_the_whole(drawn_from):
    model, rows = drawn_from
    found, n = draw_negatives(model, rows, "random", 3), len(rows.histories)
    across, step = contrasts_across(model, rows, found), np.array([11, 2, 7])
    whole = across(np.arange(n)).reshape(n, n, 3)
    assert (across(step) == whole[np.ix_(step, step)].reshape(3, 9)).all() and not whole.all()


def test_interactions_before_the_split_are_read_once_whoever_asks(with_rows, monkeypatch):
    model, rows, split = with_rows
    reads, load = [], base.load_rows
    monkeypatch.setattr(base, "load_rows", lambda *words, **options: reads.append(1) or load(*words, **options))
    model.__dict__.pop("pairs_before_split", None)
    for draw in range(3):
        draw_negatives(model, rows, "popular", 2, known_items(model, rows, of_user=True), draw)
    counts = np.bincount(model.pairs_before_split[:, 1], minlength=len(split.whole.item_counts))
    assert len(reads) == 1 and (counts == split.whole.item_counts).all()


def test_what_a_user_took_before_the_split_can_be_left_out_and_later_items_cannot(with_rows):
    model, rows, split = with_rows
    known = known_items(model, rows, of_user=True)
    users, later = rows.readable[model.USER_ID].tolist(), {}
    for part in (split.valid, split.test):
        for user, item in zip(
            part.inter_feat[model.USER_ID].tolist(), part.inter_feat[model.ITEM_ID].tolist(), strict=True
        ):
            later.setdefault(user, set()).add(item)
    before = {}
    for user, history, target in zip(users, rows.histories, rows.readable[model.ITEM_ID].tolist(), strict=True):
        before.setdefault(user, set()).update([*history, target])
    titles, every = model.catalog.representative, draw_negatives(model, rows, "random", 200, known)
    seen = 0
    for user, own, drawn in zip(users, known, every, strict=True):
        assert before[user] <= set(own)  # other training rows of the user are among them
        left = {int(titles[item]) for item in later[user]} - {int(titles[item]) for item in own}
        seen += len(left & set(drawn.tolist()))
        assert not {int(titles[item]) for item in own} & set(drawn[drawn > 0].tolist())
    assert seen  # nothing is left out for being a validation or test item
    assert known_items(model, rows) == rows.histories


def test_those_in_the_prompt_are_the_other_candidates_that_may_stand(drawn_from, monkeypatch):
    model, rows = drawn_from
    targets, ids = rows.readable[model.ITEM_ID].tolist(), rows.readable[SAMPLE_ID].numpy()
    order, generator = np.argsort(ids), np.random.default_rng(0)
    items = np.array([[target, *generator.choice(np.arange(1, 12), 5, replace=False)] for target in targets])
    monkeypatch.setattr(model, "candidates", Candidates(ids[order], items[order]))
    found, titles = draw_negatives(model, rows, "in_prompt", 2), model.catalog.representative
    every = draw_negatives(model, rows, "in_prompt", 6)
    for own, all_of, listed, history, target in zip(found, every, items, rows.histories, targets, strict=True):
        may = {int(titles[item]) for item in listed} - {int(titles[item]) for item in (*history, target)}
        may = {item for item in may if model.catalog.rankable[item]}
        assert set(all_of[all_of > 0].tolist()) == may
        assert set(own[own > 0].tolist()) <= may and (own > 0).sum() == min(2, len(may))


def test_a_generated_text_is_its_nearest_title_or_stands_as_it_is(drawn_from):
    model, rows = drawn_from
    some = replace(
        rows, readable=rows.readable[torch.arange(4)], examples=rows.examples[:4], histories=rows.histories[:4]
    )
    titles, targets = model.catalog.titles, some.readable[model.ITEM_ID].tolist()
    other = next(
        item
        for item in np.flatnonzero(model.catalog.rankable).tolist()
        if item not in some.histories[2] and titles[item] not in (titles[targets[2]],)
    )
    texts = [
        f'"{titles[targets[0]]}"',
        f' "{(titles[some.histories[1][0]] or "").upper()}" ',
        f'"{titles[other]}"',
        '"no such title',
    ]
    known = known_items(model, some)
    nearest, raw = grounded(model, some, texts, known), as_they_are(model, some, texts, known)
    assert nearest.items[:, 0].tolist()[0] == 0 and nearest.items[2, 0] == other
    assert raw.texts == ["", "", titles[other], "no such title"]
    assert raw.mask[:, 0].tolist() == [False, False, True, True] and raw.digest != nearest.digest
    right = [answer for _, answer in some.examples]
    (ids,) = raw.token_ids(model, right)
    assert ids[0] == right[0] and ids[2] == model.response(other)
    assert model.backbone.decode(ids[3][:-1]) == '"no such title"' and ids[3][-1] == model.backbone.eos_token_id
    assert nearest.token_ids(model, right)[0][2] == model.response(other)


def test_a_text_on_lines_is_the_title_of_its_first_line():
    """Its quotes belong to the title, and what goes on behind the line is no part of the answer."""
    titles = [None, "Heat", '"Heroes"', "Babe"]
    words = Wording("movie", "movies", "watched")
    prompts = TitlePromptEncoder(words, lambda text: [*map(ord, text)], titles, eos_token_id=0, style="lines")
    model: Any = SimpleNamespace(catalog=SimpleNamespace(titles=titles), ITEM_ID="i", prompts=prompts)
    rows: Any = SimpleNamespace(readable={"i": torch.tensor([1, 1, 2, 1])})
    texts = ["Heat\nBabe", "babe \nHeat", '"Heroes"', '"Heroes"\nBabe']
    found = as_they_are(model, rows, texts, [[2], [3], [3], [3]])
    assert found.texts == ["", "", "", '"Heroes"']
    assert found.token_ids(model, [[0]] * 4)[0][3] == prompts.item_response(2)


def test_generated_answers_are_cut_where_the_llm_has_no_positions(drawn_from):
    model, rows = drawn_from
    prompts = [len(prompt) for prompt, _ in rows.examples]
    texts = ["", *("no such title " * 300 for _ in prompts[1:])]

    def preference(wrong: WrongAnswers) -> Preference:
        start: Any = SimpleNamespace(name="start")
        return Preference(cast(Any, SimpleNamespace(model=model)), rows, start, wrong, cast(Any, None))

    whole = WrongAnswers(np.zeros((len(texts), 1), dtype=np.int64), texts)
    (found,) = preference(whole).wrong_answers.values()
    assert found[0] == rows.examples[0][1]
    assert all(size + len(answer) - 1 == 512 for size, answer in zip(prompts[1:], found[1:], strict=True))
    assert {answer[-1] for answer in found} == {model.backbone.eos_token_id}
    assert preference(whole).facts["cut"] == len(texts) - 1
    short = replace(whole, texts=["no such title"] * len(texts))
    assert "cut" not in preference(short).facts
    assert "cut" not in preference(WrongAnswers(np.ones((len(texts), 1), dtype=np.int64))).facts


def test_prompts_that_are_compared_keep_their_newest_items(drawn_from, monkeypatch):
    model, rows = drawn_from
    settings: Any = SimpleNamespace(prompts="llm")
    own: Any = SimpleNamespace(model=model, rows=rows, settings=settings)
    texts = [model.prompts.text(example) for example in model.examples(rows.readable)]
    short = min(len(tokens) for tokens in model.backbone.tokenizer(texts)["input_ids"]) - 4
    monkeypatch.setattr(model.llm.config, "max_position_embeddings", short)
    with model.untuned() as llm:
        expected = TextEncoder(llm, model.backbone.tokenizer, truncation_side="left").encode(texts)
        other = TextEncoder(llm, model.backbone.tokenizer).encode(texts)
    found = _prompt_vectors(own)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.allclose(found, other, atol=1e-3)


def test_the_runs_seed_draws_wrong_answers(drawn_from, monkeypatch):
    model, rows = drawn_from
    drawn = []
    for seed in (1, 2):
        monkeypatch.setitem(model.config.final_config_dict, "seed", seed)
        drawn.append(draw_negatives(model, rows, "random", 3))
    assert not np.array_equal(*drawn)


def test_items_that_share_a_title_share_its_popularity():
    catalog = ItemCatalog([None, "Babe", "Heat", "Babe"])
    model: Any = SimpleNamespace(catalog=catalog, pairs_before_split=np.array([[1, 3], [2, 3], [3, 1], [1, 2]]))
    assert _popularity(model).tolist() == [0, 3, 1, 0]
