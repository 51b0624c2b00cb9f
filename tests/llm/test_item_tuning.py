"""Views of items, contrastive tuning and item vectors, on a small LLM."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.adapter import LoraAdapter
from recbole_llm.llm import budget, item_tuning
from recbole_llm.llm.item_tuning import STATE, ContrastiveTuning, ItemReader, reduce_by_pca
from recbole_llm.llm.item_views import draw_view, encode_texts, item_text
from recbole_llm.llm.vector_settings import ItemVectorSettings
from tests.families import make_family
from tests.members import in_threads
from tests.refusals import refused

ITEMS = [
    [("title", f"{first} {second}"), ("genre", second), ("year", str(1990 + index))]
    for index, (first, second) in enumerate([("Silent", "River"), ("Golden", "Empire"), ("Broken", "Garden")] * 2)
]


def tuning(items=ITEMS, seed=0, progress=False, **settings):
    model, tokenizer = make_family("llama")
    adapter = LoraAdapter(r=4, alpha=16, dropout=0.1, target_modules="all")
    defaults = {"steps": 6, "batch": 3, "learning_rate": 0.01}
    reader = ItemReader(adapter.attach(model), tokenizer, "A movie:", ItemVectorSettings(**{**defaults, **settings}))
    return ContrastiveTuning(reader, adapter, items, seed, progress), adapter


@given(st.integers(1, 8), st.floats(0, 1), st.integers(0, 10**6))
def test_a_view_is_a_part_of_the_item(n, ratio, seed):
    item = [(f"name {index}", f"value {index}") for index in range(n)]
    view = draw_view(item, ratio, np.random.default_rng(seed))
    if n > 1:
        assert len(view) == max(1, n - int(ratio * n + 1e-9)) and set(view) <= set(item) and len(set(view)) == len(view)
    else:
        assert view[0][0] == "name 0" and view[0][1] in ("value", "0", "value 0")


def test_texts_end_in_eos_and_are_cut():
    _, tokenizer = make_family("llama")
    text = item_text("A movie:", ITEMS[0])
    whole, cut = encode_texts(tokenizer, [text], 1000)[0], encode_texts(tokenizer, [text], 5)[0]
    assert whole[-1] == cut[-1] == tokenizer.eos_token_id and whole[:4] == cut[:4] and len(cut) == 5
    assert whole[:-1] == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_states_of_single_texts(pooling):
    run, _ = tuning(pooling=pooling)
    found = run.reader.vectors(ITEMS)
    model, tokenizer = make_family("llama")
    for item in (0, 4):
        ids = torch.tensor([encode_texts(tokenizer, [item_text("A movie:", ITEMS[item])], 1024)[0]])
        with torch.no_grad():
            states = model.get_decoder()(input_ids=ids).last_hidden_state[0]
        expected = states.mean(dim=0) if pooling == "mean" else states[-1]
        np.testing.assert_allclose(found[item], expected.numpy(), rtol=1e-3, atol=1e-5)


def test_processes_share_the_items_and_find_what_one_finds():
    made, _ = tuning()

    def find():
        reader, batches = copy.deepcopy(made.reader), []
        reader.budget, pool = budget.TokenBudget(60), reader._pool
        reader._pool = lambda token_ids: batches.append(len(token_ids)) or pool(token_ids)
        return reader.vectors(ITEMS), batches

    ((one, whole),) = in_threads(1, [budget, item_tuning], find)
    several = in_threads(2, [budget, item_tuning], find)
    assert all(np.array_equal(found, one) for found, _ in several)
    assert [batches for _, batches in several] == [whole[0::2], whole[1::2]] and len(whole) > 2


def test_every_step_draws_new_views_of_all_items_in_turn():
    run, _ = tuning()
    assert [run.views(step) for step in range(4)] == [tuning()[0].views(step) for step in range(4)]
    first, second = ({attribute for view in side for attribute in view} for side in run.views(0))
    titles = [name for step in (0, 1) for side in run.views(step) for view in side for name in view]
    assert len(titles) and (first, second) != tuple({a for v in side for a in v} for side in run.views(2))
    order = [np.random.default_rng([0, epoch]).permutation(6) for epoch in (0, 1)]
    assert not np.array_equal(*order)


@pytest.mark.parametrize("loss", ["clip_soft", pytest.param("infonce", marks=pytest.mark.slow)])
def test_the_loss_falls_and_two_runs_are_one(loss, tmp_path):
    tau = 0.2 if loss == "infonce" else 3.0
    run, adapter = tuning(loss=loss, tau=tau, steps=30, learning_rate=0.003)
    losses = run.run(tmp_path / "one")
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) and len(losses) == 30
    again, other = tuning(loss=loss, tau=tau, steps=30, learning_rate=0.003)
    assert again.run(tmp_path / "two") == losses
    one, two = adapter.trainable_state(run.reader.model), other.trainable_state(again.reader.model)
    assert all(torch.equal(one[name], two[name]) for name in one) and float(run.log_tau.exp()) != pytest.approx(tau)


def test_a_tuning_that_was_stopped_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("recbole_llm.llm.item_tuning.SAVED_EVERY", 2)
    whole, adapter = tuning()
    losses = whole.run(tmp_path / "whole")
    broken, _ = tuning()
    loss, calls = broken.loss, []

    def fail(*views):
        calls.append(views)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(*views)

    broken.loss = fail
    with pytest.raises(KeyboardInterrupt):
        broken.run(tmp_path / "broken")
    resumed, other = tuning()
    assert resumed.run(tmp_path / "broken") == losses and not (tmp_path / "broken" / STATE).exists()
    one, two = adapter.trainable_state(whole.reader.model), other.trainable_state(resumed.reader.model)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_principal_components_keep_distances_and_the_order_of_variance():
    vectors = np.random.default_rng(0).normal(size=(9, 4)) * [5, 1, 3, 0.1]
    found, share = reduce_by_pca(vectors, 10)
    assert found.shape == (9, 4) and share == pytest.approx(1)
    np.testing.assert_allclose(
        np.linalg.norm(found[:, None] - found[None], axis=2),
        np.linalg.norm(vectors[:, None] - vectors[None], axis=2),
        atol=1e-5,
    )
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-6)
    assert (np.diff(found.var(axis=0)) <= 1e-6).all()
    assert reduce_by_pca(vectors, 2)[0].shape == (9, 2) and 0.9 < reduce_by_pca(vectors, 2)[1] < 1


def test_bad_settings_are_refused():
    for key, bad in {"batch": 1, "loss": "triplet", "tau": 0.0, "dropout_ratio": 1.5, "pooling": "max"}.items():
        with refused(f"scft_{key}", "value"):
            ItemVectorSettings(**{key: bad})


def test_a_vector_that_is_not_finite_names_its_item():
    run, _ = tuning()
    pool = run.reader._pool
    found = run.reader.vectors(ITEMS)
    texts = encode_texts(run.reader.tokenizer, [item_text("A movie:", item) for item in ITEMS], 1024)

    def breaks(token_ids):
        vectors = pool(token_ids)
        for row, ids in enumerate(token_ids):
            if list(ids) == texts[4]:
                vectors[row, 1] = float("inf")
        return vectors

    run.reader._pool = breaks
    assert np.isfinite(found).all()
    with refused("", "numeric", "Golden Empire.*is not finite; lower scft_learning_rate"):
        run.reader.vectors(ITEMS)


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path):
    run, adapter = tuning()
    loss, before = run.loss, {}

    def breaks(*views):
        found = loss(*views)
        if len(run.losses) == 2:
            before.update(adapter.trainable_state(run.reader.model))
            return found * float("nan")
        return found

    run.loss = breaks
    with refused("scft_learning_rate", "value", "not finite in step 3; set a lower one"):
        run.run(tmp_path)
    after = adapter.trainable_state(run.reader.model)
    assert before and all(torch.equal(after[name], weight) for name, weight in before.items())
