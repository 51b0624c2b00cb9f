"""What selectors are told of rows equals a computation row by row, and nothing but the rows decides who is chosen."""

from __future__ import annotations

import copy
import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.utils import init_seed
from torch.nn import functional as F

from recbole_llm.config import Config
from recbole_llm.data.rows import SAMPLE_ID, load_rows
from recbole_llm.errors import InputError
from recbole_llm.llm.text_encoders import find_text_encoder, load_text_encoder
from recbole_llm.trainer import row_inputs, row_selection
from recbole_llm.trainer.row_inputs import RowInputs, influence_weights, weighted
from recbole_llm.trainer.row_selection import FILE, read_selection, row_hashes, select_rows
from recbole_llm.trainer.tail import TransformerTail
from tests.encoders import save_encoder

N_ROWS = 24
Make = Callable[..., tuple[Any, Any, Any]]


@pytest.fixture(scope="module")
def make(world: Path, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """``make(coreset="el2n")``: config, rows and untuned model, with stages of the module unless told otherwise."""
    saved = tmp_path_factory.mktemp("rows") / "saved"

    def build(model: str = "BIGRec", **settings: Any) -> tuple[Any, Any, Any]:
        defaults = {
            "data_path": str(world.parent),
            "checkpoint_dir": str(saved),
            "llm_path": str(llama),
            "lora_target_modules": "auto",
            "prompt_style": "plain",
            "train_sample_size": N_ROWS,
            "coreset_size": 6,
            "recommender_config": {"hidden_size": 16, "inner_size": 16, "epochs": 2},
            "show_progress": False,
        }
        config = Config(model, world.name, config_dict={**defaults, **settings})
        init_seed(config["seed"], config["reproducibility"])
        rows = load_rows(config, few_shot=True)
        return config, rows, config.model_class(config, rows.whole).to(config["device"])

    return build


def inputs_of(config: Any, rows: Any, model: Any, pool: np.ndarray | None = None) -> RowInputs:
    """All rows by default; the recommender in double precision."""
    pool = np.arange(len(rows.train)) if pool is None else pool
    examples = model.examples(rows.train.inter_feat)
    inputs = RowInputs(model, config, rows.train, pool, [examples[place] for place in pool], rows.valid, [])
    inputs.recommender.model = copy.deepcopy(inputs.recommender.model).double()
    return inputs


@pytest.fixture(scope="module")
def plain(make: Make) -> RowInputs:
    return inputs_of(*make())


# ------------------------------------------------------------------------------------------------- from the recommender


def row_losses(recommender: Any, rows: Any) -> torch.Tensor:
    """Cross entropy over all items but padding. Returns: [rows]."""
    state = recommender.forward(rows["item_id_list"], rows["item_length"])
    logits = (state @ recommender.item_embedding.weight.T)[:, 1:]
    return logits.logsumexp(dim=1) - logits[torch.arange(len(rows)), rows["item_id"] - 1]


def gradients(recommender: Any, rows: Any, names: list[str]) -> torch.Tensor:
    """One backward pass per row. Returns: [rows, weights]."""
    weights = [dict(recommender.named_parameters())[name] for name in names]
    found = []
    for row in range(len(rows)):
        (loss,) = row_losses(recommender, rows[row : row + 1])
        parts = torch.autograd.grad(loss, weights, materialize_grads=True)
        found.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(found)


def hessian(recommender: Any, rows: Any, name: str, weights: np.ndarray) -> torch.Tensor:
    """Of the weighted sum of all rows' losses, one column after the other."""
    parameter = dict(recommender.named_parameters())[name]
    total = row_losses(recommender, rows) @ torch.from_numpy(weights)
    (gradient,) = torch.autograd.grad(total, parameter, create_graph=True)
    columns = [torch.autograd.grad(part, parameter, retain_graph=True)[0] for part in gradient.reshape(-1)]
    return torch.stack([column.reshape(-1) for column in columns])


def test_el2n_is_the_distance_of_the_probabilities_from_the_target(plain):
    recommender, rows = plain.recommender.model, plain.rows
    state = recommender.forward(rows["item_id_list"], rows["item_length"])
    probabilities = (state @ recommender.item_embedding.weight.T)[:, 1:].softmax(dim=1)
    error = probabilities - F.one_hot(rows["item_id"] - 1, probabilities.shape[1])
    np.testing.assert_allclose(plain.el2n(), error.norm(dim=1).detach(), rtol=1e-10)


def test_grand_is_the_norm_of_each_rows_gradient_by_all_weights(plain):
    recommender = plain.recommender.model
    names = [name for name, _ in recommender.named_parameters()]
    expected = gradients(recommender, plain.rows, names).norm(dim=1)
    np.testing.assert_allclose(plain.grand(), expected, rtol=1e-8)


@pytest.mark.parametrize("unit", ["row", "user"])
@pytest.mark.parametrize("target", ["train", "valid"])
def test_influence_is_that_of_dense_algebra(make, unit, target):
    """Of each row; or of each user, whose loss is the mean over all rows of the user."""
    config, rows, model = make(coreset_unit=unit, influence_target=target, damping_ratio=2.0)
    users = rows.train.inter_feat["user_id"].numpy()
    last = {user: place for place, user in enumerate(users.tolist())}
    pool = np.array(sorted(last.values() if unit == "user" else range(N_ROWS)))
    inputs = inputs_of(config, rows, model, pool)
    found = inputs.influence()
    recommender = inputs.recommender.model
    (name,) = influence_weights(recommender, "attention")
    facts = inputs.facts["influence"]
    assert facts["weights"] == [name] == ["trm_encoder.layer.1.multi_head_attention.dense.weight"]

    units = pool.tolist() if unit == "row" else users[pool].tolist()
    owner = np.array([units.index(own) for own in (range(N_ROWS) if unit == "row" else users.tolist())])
    mean = np.zeros((len(pool), N_ROWS))
    mean[owner, np.arange(N_ROWS)] = 1 / np.bincount(owner)[owner]  # mean over the rows of a unit
    own = torch.from_numpy(mean) @ gradients(recommender, rows.train.inter_feat, [name])
    matrix = hessian(recommender, rows.train.inter_feat, name, mean.mean(axis=0))
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert facts["largest_eigenvalue"] == pytest.approx(float(eigenvalues[-1]), rel=1e-3)
    judged = gradients(recommender, rows.valid.inter_feat, [name]) if target == "valid" else own
    damped = matrix + facts["damping"] * torch.eye(len(matrix))
    expected = own @ torch.linalg.solve(damped, judged.mean(dim=0)) / len(pool)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7 * float(expected.abs().max()))


def test_absolute_damping_and_single_row_steps_are_the_recursion_of_the_public_code(make):
    damp, scale, steps = 0.01, 0.05, 4
    config, rows, model = make(
        influence_method="lissa",
        influence_damping=damp * scale,
        influence_scale=scale,
        influence_steps=steps,
        influence_step_rows=1,
    )
    inputs = inputs_of(config, rows, model)
    found = inputs.influence()
    recommender = inputs.recommender.model
    (name,) = influence_weights(recommender, "attention")
    own = gradients(recommender, inputs.rows, [name])
    start = own.mean(dim=0)
    seed, estimate = model.stage_seed("influence"), start
    for step in range(steps):
        row = int(np.random.default_rng([seed, step]).integers(N_ROWS, size=1)[0])
        parameter = dict(recommender.named_parameters())[name]
        (loss,) = row_losses(recommender, inputs.rows[row : row + 1])
        (gradient,) = torch.autograd.grad(loss, parameter, create_graph=True)
        (image,) = torch.autograd.grad(gradient.reshape(-1) @ estimate, parameter)
        estimate = start + (1 - damp) * estimate - image.reshape(-1) / scale
    expected = own @ estimate / scale / N_ROWS  # that code does not divide by the scale, which changes no order
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))
    assert inputs.facts["influence"]["damping"] == pytest.approx(0.01 * 0.05)


def test_influence_is_the_same_through_the_whole_recommender(make, monkeypatch, caplog):
    for settings in ({"coreset_unit": "user"}, {"influence_weights": "ffn", "influence_target": "valid"}):
        inputs = inputs_of(*make(damping_ratio=2.0, **settings))
        found = inputs.influence()
        with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
            patch.setattr(row_inputs.TransformerTail, "inputs", lambda self, batch: None)
            whole = inputs.influence()
        assert "through the whole of SASRec in every step" in caplog.text
        np.testing.assert_allclose(found, whole, rtol=1e-6, atol=1e-9 * np.abs(whole).max())


def test_a_recommender_without_attention_has_no_tail(make):
    inputs = inputs_of(*make(recommender="GRU4Rec", recommender_config={"hidden_size": 8, "epochs": 1}))
    recommender = inputs.recommender.model
    assert TransformerTail.of(recommender, ["dense.weight"]) is None
    with pytest.raises(InputError, match="GRU4Rec has no ffn block; set influence_weights: all"):
        influence_weights(recommender, "ffn")


def test_weights_make_the_mean_over_rows_one_over_users(make):
    _, rows, _ = make()
    users = rows.train.inter_feat["user_id"].numpy()
    owners = np.unique(users, return_inverse=True)[1]
    weights = weighted(rows.train.inter_feat, owners)[row_inputs.WEIGHT].double().numpy()
    values = np.random.default_rng(0).normal(size=len(users))
    by_user = [values[users == user].mean() for user in np.unique(users)]
    assert (weights * values).mean() == pytest.approx(np.mean(by_user), rel=1e-6)


def test_batches_change_nothing_but_rounding(make, monkeypatch):
    whole = inputs_of(*make(damping_ratio=2.0))
    cut = inputs_of(*make(damping_ratio=2.0, eval_batch_size=5, micro_batch_tokens=1))
    for name, tolerance in (("el2n", 1e-10), ("grand", 1e-10), ("influence", 1e-5), ("effort", 1e-4)):
        np.testing.assert_allclose(getattr(cut, name)(), getattr(whole, name)(), rtol=tolerance, atol=1e-9)
    monkeypatch.setattr(row_inputs, "_LOGITS", 3 * whole.model.n_items)
    assert [len(batch) for batch in whole._batches(whole.rows)] == [3] * (N_ROWS // 3)


# --------------------------------------------------------------------------------------------------------- from the LLM


@pytest.mark.parametrize("which", ["answer", "all"])
def test_effort_is_the_norm_of_one_backward_pass_per_row(make, which):
    config, rows, model = make(effort_tokens=which, lora_dropout=0.5)
    inputs = inputs_of(config, rows, model)
    assert model.training
    found = inputs.effort()
    assert model.training and all(weight.grad is None for weight in model.parameters())
    model.eval()
    adapter = [weight for weight in model.llm.parameters() if weight.requires_grad]
    for row in (0, 7, N_ROWS - 1):
        prompt, response = inputs.examples[row]
        tokens = torch.tensor([prompt + response])
        log_probs = model.llm(input_ids=tokens).logits[0].log_softmax(dim=-1)
        first = len(prompt) if which == "answer" else 1
        losses = [-log_probs[place - 1, tokens[0, place]] for place in range(first, tokens.shape[1])]
        parts = torch.autograd.grad(torch.stack(losses).mean(), adapter, materialize_grads=True)
        norm = torch.sqrt(sum(part.double().square().sum() for part in parts))
        assert found[row] == pytest.approx(float(norm), rel=1e-4)


def test_modules_beside_the_llm_have_no_part_in_effort_and_get_no_gradient(make):
    config, rows, model = make("DEALRec", llm_recommender="LLaRA", epochs=1)
    inputs = inputs_of(config, rows, model)
    found = inputs.effort()
    projector = list(model.projector.parameters())
    assert all(weight.grad is None and weight.requires_grad for weight in projector)
    assert np.isfinite(found).all() and (found > 0).all()
    with torch.no_grad():  # the prompt itself holds projected vectors
        for weight in projector:
            weight.mul_(3)
    assert not np.allclose(inputs.effort(), found, rtol=1e-3)


def test_vectors_of_the_llm_do_not_depend_on_batches(make):
    one, other = (inputs_of(*make(generation_batch_tokens=tokens)).llm_vectors() for tokens in (1, 8192))
    assert one.shape == (N_ROWS, 32)
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("tokens", ["answer", "all"])
def test_gradient_norms_of_answers_are_the_effort_and_its_stage(make, tokens):
    inputs = inputs_of(*make("GORACS", effort_tokens=tokens))
    np.testing.assert_array_equal(inputs.gradient_norms(), inputs.effort())
    np.testing.assert_array_equal(inputs.get("gradient_norms"), inputs.get("effort"))
    assert "effort" in inputs.model.stages.used and "gradient-norms" not in inputs.model.stages.used


def test_quality_is_the_mean_log_probability_of_the_answers_tokens(make):
    inputs = inputs_of(*make(lora_dropout=0.5))
    found = inputs.quality()
    for row in (0, N_ROWS - 1):
        prompt, response = inputs.examples[row]
        with torch.no_grad():
            log_probs = inputs.model.eval().llm(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        own = [float(log_probs[len(prompt) - 1 + place, token]) for place, token in enumerate(response)]
        assert found[row] == pytest.approx(np.mean(own), rel=1e-5)


# -------------------------------------------------------------------------------------------------- from a text encoder


def test_embeddings_are_means_of_the_untuned_llms_states_over_prompt_and_answer(make):
    inputs = inputs_of(*make())
    with torch.no_grad():
        for name, weight in inputs.model.llm.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)  # tuned: it has no part in the vectors
    found, model = inputs.embeddings(), inputs.model
    assert found.dtype == np.float32 and found.shape == (N_ROWS, 32)
    row = inputs.rows[0:1]
    history, target = model.histories(row)[0], row["item_id"].item()
    text = f'{model.prompts.text(history)}"{model.catalog.titles[target]}"'
    tokens = torch.tensor([model.backbone.tokenizer(text)["input_ids"]])
    with model.untuned() as llm, torch.no_grad():
        states = llm(input_ids=tokens, output_hidden_states=True).hidden_states[-1][0]
    np.testing.assert_allclose(found[0], states.mean(dim=0), atol=1e-5)
    valid = inputs.valid_embeddings()
    assert valid.shape == (len(inputs.valid_data), 32)
    assert inputs.labels() is None and inputs.valid_labels() is None and inputs.get("labels") is None


def test_slots_of_item_vectors_are_no_text(make):
    texts = inputs_of(*make())._embedded
    assert inputs_of(*make("GORACS", llm_recommender="LLaRA"))._embedded == texts


def test_validation_rows_that_cannot_be_read_are_left_out(make):
    config, rows, model = make()
    model.catalog.has_title[rows.valid.inter_feat["item_id"][:2]] = False
    readable = sum(example is not None for example in model.examples(rows.valid.inter_feat))
    assert 0 < readable < len(rows.valid)
    assert len(inputs_of(config, rows, model).valid_embeddings()) == readable
    model.catalog.has_title[:] = False
    with pytest.raises(InputError, match="^coreset: no validation row has titles in field 'title'"):
        RowInputs(model, config, rows.train, np.zeros(0, dtype=int), [], rows.valid, []).valid_embeddings()


def test_an_encoder_of_texts_takes_the_place_of_the_llm(make, tmp_path):
    folder = save_encoder(tmp_path / "encoder", max_tokens=512)
    inputs = inputs_of(*make(coreset_encoder=str(folder)))
    expected = load_text_encoder(find_text_encoder(folder)).encode(inputs._embedded)
    np.testing.assert_allclose(inputs.get("embeddings"), expected, atol=1e-6)
    assert len(np.unique(expected, axis=0)) > 1
    own = inputs.model.stages.used["embeddings"]
    other = inputs_of(*make(coreset_encoder=str(save_encoder(tmp_path / "copy", max_tokens=512))))
    other.get("embeddings")
    assert other.model.stages.used["embeddings"] == own  # what it is decides, not where
    llm = inputs_of(*make())
    llm.get("embeddings")
    assert llm.model.stages.used["embeddings"] != own


# ----------------------------------------------------------------------------------------------------------- of clicks


@pytest.fixture(scope="module")
def clicks(make: Make) -> RowInputs:
    settings = {"tiny_steps": 5, "tiny_hidden_size": 32, "tiny_vocab_size": 512, "llm_path": "tiny"}
    config, rows, model = make("TALLRec", threshold={"rating": 4}, valid_metric="AUC", **settings)
    with torch.no_grad():  # a tie of Yes and No has no gradient of its own to speak of
        model.llm.get_output_embeddings().weight.mul_(3)
    examples = model.examples(rows.train.inter_feat)
    return RowInputs(model, config, rows.train, np.arange(N_ROWS), examples, rows.valid, [])


def two_way(inputs: RowInputs, row: int) -> torch.Tensor:
    """Cross entropy of the row's label under the softmax over No and Yes alone."""
    logits = inputs.model.llm(input_ids=torch.tensor([inputs.examples[row][0]])).logits[0, -1]
    return F.cross_entropy(logits[list(inputs.model.prompts.answer_token_ids)], torch.tensor(int(inputs.labels()[row])))


def test_labels_are_likes(clicks):
    expected = clicks.rows["label"].tolist()
    assert clicks.labels().tolist() == expected and set(expected) == {0, 1}
    assert clicks.valid_labels().tolist() == clicks.valid_data.inter_feat["label"].tolist()


def test_gradient_norms_of_clicks_are_of_the_choice_between_yes_and_no(clicks):
    found, quality = clicks.get("gradient_norms"), clicks.get("quality")
    assert "gradient-norms" in clicks.model.stages.used
    adapter = [weight for weight in clicks.model.llm.parameters() if weight.requires_grad]
    clicks.model.eval()
    for row in (0, 5, N_ROWS - 1):
        loss = two_way(clicks, row)
        parts = torch.autograd.grad(loss, adapter, materialize_grads=True)
        norm = torch.sqrt(sum(part.double().square().sum() for part in parts))
        assert found[row] == pytest.approx(float(norm), rel=1e-3)
        assert quality[row] == pytest.approx(-float(loss), rel=1e-4)


def test_the_answer_is_no_part_of_a_clicks_text(clicks):
    row, model = clicks.rows[0:1], clicks.model
    expected = model.prompts.text(model.histories(row)[0], model.likes(row)[0], row["item_id"].item())
    assert clicks._embedded[0] == expected


# -------------------------------------------------------------------------------------------------------- from the data


def test_history_lengths_count_all_training_interactions_of_a_user(make):
    config, rows, model = make(train_sample_size=None, coreset_unit="user")
    users = rows.train.inter_feat["user_id"].numpy()
    lengths = inputs_of(config, rows, model, np.array([0, len(users) - 1])).history_lengths()
    assert lengths.tolist() == [(users == users[0]).sum() + 1, (users == users[-1]).sum() + 1]
    config, rows, model = make()  # a sample of the rows still tells of the interactions in their histories
    lengths, longest = inputs_of(config, rows, model).history_lengths(), rows.train.inter_feat["item_length"].numpy()
    assert (lengths > longest).all()


def test_texts_are_titles(plain):
    titles = plain.model.catalog.titles
    row = plain.rows[0:1]
    items = [*row["item_id_list"][0, : row["item_length"].item()].tolist(), row["item_id"].item()]
    assert plain.texts()[0] == "; ".join(titles[item] for item in items)
    assert len(plain.target_texts()) == len(plain.valid_data)


# ----------------------------------------------------------------------------------------------------------- selection


def ids_of(rows: Any) -> list[int]:
    return rows.inter_feat[SAMPLE_ID].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"coreset": "random"},
        {"coreset": "herding", "coreset_vectors": "llm"},
        {"coreset": "dealrec", "coreset_unit": "user"},
        {"coreset": "recranker", "coreset_pool": 15},
        {"coreset": "goracs"},
        {"coreset": "moderate"},
        {"coreset": "fdmat"},
        {"coreset": "qdit"},
    ],
    ids=lambda settings: settings["coreset"],
)
def test_the_order_of_the_rows_has_no_part_in_the_choice(make, settings, tmp_path):
    config, rows, model = make(**settings, train_sample_size=None, checkpoint_dir=str(tmp_path))
    chosen, folder = select_rows(model, config, rows.train, rows.valid)
    order = torch.randperm(len(rows.train), generator=torch.Generator().manual_seed(1))
    shuffled = rows.train.copy(rows.train.inter_feat[order])
    other, other_folder = select_rows(model, config, shuffled, rows.valid)
    assert len(chosen) == 6 and ids_of(chosen) == sorted(ids_of(chosen)) == sorted(ids_of(other))
    assert folder != other_folder
    tables = [(place / FILE).read_text() for place in (folder, other_folder)]
    assert tables[0] == tables[1]
    in_order = [sample_id for sample_id in ids_of(shuffled) if sample_id in ids_of(chosen)]
    assert ids_of(other) == in_order


def test_choosing_rows_leaves_no_trace_in_the_model(make):
    """What the model depends on decides whose fine-tuning is found again."""
    config, rows, model = make(coreset="dealrec")
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    before = copy.deepcopy(model.facts())
    select_rows(model, config, rows.train, rows.valid)
    assert model.facts() == before and "auxiliary" not in vars(model)
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())


def test_inputs_are_computed_once_for_all_selectors_and_sizes(make, tmp_path):
    saved = str(tmp_path)
    config, rows, model = make(coreset="dealrec", checkpoint_dir=saved)
    select_rows(model, config, rows.train, rows.valid)
    for settings in ({"coreset_size": 0.5}, {"dealrec_weight": 2.0}, {"dealrec_n_groups": 3}):
        config, rows, model = make(coreset="dealrec", checkpoint_dir=saved, **settings)
        select_rows(model, config, rows.train, rows.valid)
        assert set(model.stages.reused) == {"auxiliary-SASRec", "influence", "effort"}
    config, rows, model = make(coreset="dealrec", checkpoint_dir=saved, influence_weights="ffn")
    select_rows(model, config, rows.train, rows.valid)
    assert set(model.stages.reused) == {"auxiliary-SASRec", "effort"}
    config, rows, model = make(coreset="dealrec", checkpoint_dir=saved, valid_sample_size=3)
    select_rows(model, config, rows.train, rows.valid)  # they choose the epoch of the recommender, and that is all
    assert "effort" in model.stages.reused


def test_norms_without_a_weight_are_not_computed(make):
    config, rows, model = make("GORACS", goracs_gradient_weight=0)
    _, folder = select_rows(model, config, rows.train, rows.valid)
    assert set(model.stages.used) == {"embeddings", "valid-embeddings", "coreset"}
    assert (folder / FILE).read_text().splitlines()[0] == "sample_id,row,selected,score"


def test_a_map_holds_all_selected_rows_and_a_draw_from_the_others(make, monkeypatch, tmp_path):
    monkeypatch.setattr(row_selection, "MAP_ROWS", 10)
    for settings, n_valid in (({"coreset": "goracs"}, 10), ({"coreset": "fdmat"}, 0)):
        config, rows, model = make(checkpoint_dir=str(tmp_path), **settings)
        chosen, folder = select_rows(model, config, rows.train, rows.valid)
        with np.load(folder / row_selection.MAP) as places:
            assert places["points"].shape == (10, 2) and places["selected"].sum() == len(chosen) == 6
            assert places["valid_points"].shape == (n_valid, 2)


def test_more_rows_than_there_are_is_all_of_them_with_a_warning(make, caplog):
    config, rows, model = make(coreset="random", coreset_size=1000)
    with caplog.at_level(logging.WARNING):
        chosen, _ = select_rows(model, config, rows.train, rows.valid)
    assert ids_of(chosen) == ids_of(rows.train)
    assert f"budget of 1000 exceeds the {N_ROWS} rows" in caplog.text


def test_a_surrogate_at_rest_leaves_the_choice_to_effort(make, caplog, monkeypatch, tmp_path):
    config, rows, model = make(coreset="dealrec", checkpoint_dir=str(tmp_path), dealrec_hard_prune_ratio=0)
    monkeypatch.setattr(row_inputs.MeanLoss, "gradient", lambda self: self.params * 0)
    with caplog.at_level(logging.WARNING):
        _, folder = select_rows(model, config, rows.train, rows.valid)
    assert "stationary point" in caplog.text
    lines = list(csv.DictReader((folder / FILE).open()))
    effort = np.array([float(line["effort"]) for line in lines])
    expected = 0.5 * (effort - effort.min()) / (effort.max() - effort.min())
    np.testing.assert_allclose([float(line["score"]) for line in lines], expected, rtol=1e-12)


# ---------------------------------------------------------------------------------------------------------- the file


def write(file: Path, lines: list[str]) -> Path:
    file.write_text("sample_id,row,selected\n" + "".join(f"{line}\n" for line in lines))
    return file


def test_a_file_is_read_by_ids_and_hashes(make, tmp_path):
    _, rows, _ = make()
    ids, hashes = ids_of(rows.train), row_hashes(rows.train)
    lines = [f"{ids[place]},{hashes[place]},{int(place in (2, 5))}" for place in reversed(range(N_ROWS))]
    assert read_selection(write(tmp_path / "a.csv", lines), rows.train).tolist() == [2, 5]
    only = [f"{ids[9]},{hashes[9]},1", "100000,feedbeef,0"]  # what is not selected may be of elsewhere
    assert read_selection(write(tmp_path / "b.csv", only), rows.train).tolist() == [9]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "selects no row"),
        (["{id},{hash},0"], "selects no row"),
        (["{id},{hash},1", "{id},{hash},1"], "selects 1 rows twice; give each once"),
        (["{id},feedbeef,1"], "selects row {id}, which is no row of this run; use the data, the split"),
        (["100000,{hash},1"], "selects row 100000, which is no row of this run"),
        (["x,{hash},1"], "holds no selection; give the coreset.csv of a run"),
        (["{id},{hash}"], "holds no selection"),
        (["{id},{hash},yes"], "holds no selection"),
    ],
)
def test_a_wrong_file_is_refused(make, tmp_path, lines, message):
    _, rows, _ = make()
    facts = {"id": ids_of(rows.train)[0], "hash": row_hashes(rows.train)[0]}
    file = write(tmp_path / "coreset.csv", [line.format(**facts) for line in lines])
    with pytest.raises(InputError, match=f"^coreset_file: {file} {message.format(**facts)}"):
        read_selection(file, rows.train)
