"""RecBole's sequential models on item vectors: the embedding, the losses, the alignment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recbole_llm.classic.with_vectors import VectorEmbedding, VectorInputs, with_vectors
from recbole_llm.data.loaders import train_loader
from recbole_llm.data.rows import load_rows
from recbole_llm.llm.contrastive import soft_target_loss
from recbole_llm.settings.config import Config
from recbole_llm.settings.training import READERS, AlignmentSettings


def made(world: Path, backbone: str, **rat: Any) -> tuple[Any, Any, torch.Tensor]:
    """A model, its first batch, and the vectors."""
    settings = AlignmentSettings(backbone=backbone, **rat)
    pairs = {"loss_type": "CE" if settings.loss == "ce" else "BPR"}
    shown = {"data_path": str(world.parent), "train_batch_size": 16, "show_progress": False, **pairs}
    config = Config(backbone, world.name, settings=shown)
    rows = load_rows(config, False)
    batches = train_loader(config, rows)  # first, as in training: BERT4Rec's names the columns of its masks
    vectors = torch.randn(rows.whole.item_num, 10, generator=torch.Generator().manual_seed(0))
    vectors[0] = 0
    aligned = torch.randn(rows.whole.item_num, 64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = with_vectors(config.model_class)(config, rows.whole, VectorInputs(vectors.clone(), settings, aligned))
    return model, next(iter(batches)), vectors


def test_an_embedding_is_two_linear_maps_of_the_vector():
    vectors = torch.randn(6, 10)
    layer = VectorEmbedding(vectors, 4, n_more=1)
    expected = layer.second(layer.first(vectors))
    torch.testing.assert_close(layer.weight[1:6], expected[1:])
    assert layer.weight.shape == (7, 4) and not layer.weight[0].any() and layer.weight[1:].any(dim=1).all()
    torch.testing.assert_close(layer(torch.tensor([[2, 6]])), layer.weight[[2, 6]][None])
    assert layer.first.weight.shape == (5, 10)


@pytest.mark.parametrize("backbone", READERS)
def test_without_alignment_the_loss_is_the_models_own_and_vectors_stay(world, backbone):
    model, batch, vectors = made(world, backbone, alpha=0)
    plain, _, _ = made(world, backbone, alpha=0.5)
    plain.load_state_dict(model.state_dict())
    model.eval(), plain.eval()
    found, other = model.calculate_loss(batch), plain.calculate_loss(batch)
    targets = batch[model.POS_ITEMS if backbone == "BERT4Rec" else model.POS_ITEM_ID]
    torch.testing.assert_close(other - found, 0.5 * plain.alignment(targets))
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
    assert torch.equal(model.item_embedding.vectors, vectors)
    assert model.item_embedding.first.weight.grad.any() and model.item_embedding.second.bias.grad is not None


def test_scores_are_those_of_recboles_model_with_these_embeddings(world):
    model, batch, _ = made(world, "SASRec")
    plain_class = type(model).__mro__[2]
    plain = plain_class(Config("SASRec", world.name, settings={"data_path": str(world.parent)}), model_dataset(world))
    with torch.no_grad():
        state = {name: value for name, value in model.state_dict().items() if "item_embedding" not in name}
        plain.load_state_dict({**state, "item_embedding.weight": model.item_embedding.weight})
        model.eval(), plain.eval()
        torch.testing.assert_close(model.full_sort_predict(batch), plain.full_sort_predict(batch))


def model_dataset(world: Path) -> Any:
    return load_rows(Config("SASRec", world.name, settings={"data_path": str(world.parent)}), False).whole


def test_the_loss_against_one_negative_is_two_logistic_losses(world):
    model, batch, _ = made(world, "GRU4Rec", loss="bce", alpha=0)
    model.eval()
    state = model.forward(batch[model.ITEM_SEQ], batch[model.ITEM_SEQ_LEN])
    scores = [(state * model.item_embedding(batch[key])).sum(dim=1) for key in (model.POS_ITEM_ID, model.NEG_ITEM_ID)]
    ones = torch.ones(len(scores[0]))
    expected = sum(
        F.binary_cross_entropy_with_logits(own, label) for own, label in zip(scores, (ones, 0 * ones), strict=True)
    )
    torch.testing.assert_close(model.calculate_loss(batch), expected)


def test_an_item_counts_once_and_no_more_items_than_asked_for(world):
    model, _, _ = made(world, "SASRec", tau=1.5)
    one = model.alignment(torch.tensor([3, 5, 7]))
    torch.testing.assert_close(model.alignment(torch.tensor([[7, 5, 0], [3, 5, 7]])), one)
    expected = soft_target_loss(model._aligned[[3, 5, 7]], model.item_embedding.weight[[3, 5, 7]], 1.5)
    torch.testing.assert_close(one, expected)
    few, _, _ = made(world, "SASRec", tau=1.5, align_items=2)
    few.load_state_dict(model.state_dict())
    pairs = [float(model.alignment(torch.tensor(pair))) for pair in ([3, 5], [3, 7], [5, 7])]
    assert np.isclose(float(few.alignment(torch.tensor([3, 5, 7]))), pairs).any()


def test_vectors_learn_where_they_are_not_frozen(world):
    model, batch, vectors = made(world, "SASRec", freeze=False)
    model.calculate_loss(batch).backward()
    assert model.item_embedding.vectors.grad.any() and "item_embedding.vectors" in dict(model.named_parameters())
