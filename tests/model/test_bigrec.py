"""BIGRec's answers and scores against independent computations, with a small untuned LLM."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from recbole_llm.data.loaders import eval_loader, train_loader
from recbole_llm.data.rows import Rows, load_rows, row_pairs
from recbole_llm.evaluation import protocol_of
from recbole_llm.grounding import ItemIndex, PromptedRows, Ranking, rank_scores
from recbole_llm.llm.loss import answer_loss
from recbole_llm.prompt.titles import clean_answer
from recbole_llm.recbole_checkpoints import load_checkpoint
from recbole_llm.selection.training_rows import read_examples
from recbole_llm.settings.config import Config
from recbole_llm.trainer.llm_trainer import LLMTrainer
from recbole_llm.trainer.reweighting import Reweighting
from tests.families import save_family
from tests.refusals import refused
from tests.runs import histories_in, metrics_of, words_for, working_in

CUTOFFS = (1, 5, 10)


def trainer_of(world: Path, place: Path, *words: str) -> tuple[LLMTrainer, Rows]:
    usual = words_for("BIGRec", world, place, "--epochs=0", f"--llm_path={place / 'llama'}", *words)
    config = Config("BIGRec", world.name, argv=[word for word in usual if not word.startswith("--model=")])
    rows = load_rows(config, False)
    with working_in(place.parent):
        return LLMTrainer(config, config.model_class(config, rows.whole)), rows


@pytest.fixture(scope="module")
def plain(gaps: Path, place: Path) -> tuple[LLMTrainer, Rows]:
    return trainer_of(gaps, place)


def batch_of(trainer: LLMTrainer, rows: Rows, phase: str) -> Any:
    """All rows of a phase in one batch."""
    return next(iter(eval_loader(trainer.config, rows, phase)))[0]


def ids_of(rows: Rows, *tokens: str) -> list[int]:
    return [int(rows.whole.token2id("item_id", token)) for token in tokens]


def ranks_of(values: np.ndarray, targets: np.ndarray) -> list[int]:
    """1-based ranks by sorting, smaller first, equals by id; 0 where the target is not ranked."""
    orders = [sorted(range(1, len(row)), key=lambda item, row=row: (row[item], item)) for row in values]
    found = zip(orders, values, targets, strict=True)
    return [order.index(item) + 1 if np.isfinite(row[item]) else 0 for order, row, item in found]


# ------------------------------------------------------------------------------------------------------- long titles


@pytest.mark.parametrize("model", ["BIGRec", "LLaRA"])
def test_titles_longer_than_generated_answers_stay_within_the_positions(gaps, tmp_path, caplog, model):
    """GPT-2 learns a vector for each of its 512 positions, so that one token too many is an IndexError."""
    world = shutil.copytree(gaps, tmp_path / "data" / gaps.name)
    file = world / f"{gaps.name}.item"
    header, *rows = (line.split("\t") for line in file.read_text().splitlines())
    longer = [[row[0], row[1] and row[1] + " and the Very Long Subtitle" * 4, *row[2:]] for row in rows]
    longer.append(["nobody's", "An Endless Saga " * 300, *rows[0][2:]])  # no reason to cut or refuse anything
    file.write_text("\n".join(map("\t".join, [header, *longer])) + "\n")
    words = words_for(
        model, world, tmp_path / "saved", "--epochs=1", f"--llm_path={save_family('gpt2', tmp_path / 'gpt2')}",
        "--max_new_tokens=8", "--max_prompt_tokens=512", "--recommender_config={'epochs': 1}"
    )  # fmt: skip
    config = Config(model, world.name, argv=[word for word in words if not word.startswith("--model=")])
    whole = load_rows(config, False)
    recommender = config.model_class(config, whole.whole)
    assert recommender.prompts.max_prompt_tokens == 512 - 8
    pairs = [pair for pair in read_examples(recommender, whole.train) if pair is not None]
    targets = [item for item in whole.train.inter_feat["item_id"].tolist() if recommender.catalog.has_title[item]]
    assert max(len(prompt) + len(response) - 1 for prompt, response in pairs) == 512
    whole_titles = {tuple(recommender.response(item)) for item in targets}
    cut = [response for prompt, response in pairs if tuple(response) not in whole_titles]
    assert 0 < len(cut) < len(pairs) and {response[-1] for response in cut} == {recommender.backbone.eos_token_id}
    assert f"{len(cut)} titles to learn lost their end" in caplog.text
    assert recommender.calculate_loss(whole.train.inter_feat[:32]).item() > 0
    assert recommender._longest_target() > 8
    recommender.prepare()


def test_positions_that_leave_no_prompt_are_told_as_what_they_are(gaps, tmp_path):
    """Nobody set the limit that is too short, and a larger one would change nothing."""
    llm = save_family("gpt2", tmp_path / "gpt2")
    words = words_for("BIGRec", gaps, tmp_path / "saved", f"--llm_path={llm}", "--max_new_tokens=490")
    config = Config("BIGRec", gaps.name, argv=[word for word in words if not word.startswith("--model=")])
    with refused(
        "llm_path", "conflict", "its 512 positions leave 22 tokens for a prompt, too few for the prompt template"
    ):
        config.model_class(config, load_rows(config, False).whole)


# --------------------------------------------------------------------------------------------- answers and distances


def test_distances_are_those_of_the_embedded_answer_to_the_embedded_titles(plain):
    trainer, rows = plain
    model, batch = trainer.model, batch_of(*plain, "test")
    answers = [clean_answer(text) for text in model.generate_text(batch)]
    titles = [model.catalog.titles[item] or "" for item in range(model.catalog.n_items)]
    points, items = model.embed(answers).astype(np.float64), model.embed(titles).astype(np.float64)
    expected = np.linalg.norm(points[:, None] - items[None], axis=-1)
    expected[:, [0, *ids_of(rows, "i3")]] = np.inf
    np.testing.assert_allclose(model.distances(batch), expected, atol=1e-4)
    assert len(set(answers)) > 1  # the rows do not all get one answer


def test_the_judges_ranks_are_those_of_sorting_the_distances(plain):
    trainer, rows = plain
    assert trainer.gammas == {} and trainer.model.rescore is None
    evaluation = protocol_of(trainer.config).evaluate(trainer, eval_loader(trainer.config, rows, "test"))
    ranks = ranks_of(trainer.model.distances(batch_of(*plain, "test")), evaluation.pairs[:, 1])
    assert (evaluation.ranks + 1).tolist() == ranks
    assert evaluation.metrics == pytest.approx(metrics_of(ranks, CUTOFFS), abs=1e-14)


def test_items_of_one_title_have_one_score_and_stand_in_the_order_of_their_ids(plain):
    trainer, rows = plain
    twins = sorted(ids_of(rows, "i5", "i8", "i9"))
    distances = trainer.model.distances(batch_of(*plain, "test"))
    assert all(len(set(row[twins])) == 1 for row in distances)
    evaluation = protocol_of(trainer.config).evaluate(trainer, eval_loader(trainer.config, rows, "test"))
    for row, top in zip(distances, evaluation.top_items.tolist(), strict=True):
        whole = sorted(range(1, len(row)), key=lambda item, row=row: (row[item], item))
        assert top == whole[: len(top)]
        first = whole.index(twins[0])
        assert whole[first : first + 3] == twins


class Recorded:
    """Stands in for an index and remembers what it was asked."""

    exact = True

    def __init__(self, index: ItemIndex) -> None:
        self.index, self.asked = index, []

    def rank(self, queries: np.ndarray, targets: Any, k: int) -> Ranking:
        self.asked.append((len(queries), None if targets is None else list(targets), k))
        return self.index.rank(queries, targets, k)


def test_ranks_come_from_the_index_alone_and_are_those_of_the_dense_table(plain, monkeypatch):
    trainer, rows = plain
    model, batch = trainer.model, batch_of(*plain, "test")
    table = model.full_sort_predict(batch)
    recorded = Recorded(model.index)
    monkeypatch.setitem(model.grounding.__dict__, "index", recorded)
    for k in (3, 10, 50):
        found, expected = model.rank(batch, k), rank_scores(table, batch["item_id"], k)
        np.testing.assert_array_equal(found.ranks, expected.ranks)
        np.testing.assert_array_equal(found.top_items, expected.top_items)
        np.testing.assert_allclose(found.top_scores, expected.top_scores, rtol=1e-9)
    others = torch.full((len(batch),), ids_of(rows, "i8")[0])
    np.testing.assert_array_equal(model.rank(batch, 3, others).ranks, rank_scores(table, others, 3).ranks)
    without = type(batch)({name: batch[name] for name in batch.columns if name != "item_id"})
    alone = model.rank(without, 3)
    assert (alone.ranks == -1).all()
    np.testing.assert_array_equal(alone.top_items, rank_scores(table, None, 3).top_items)
    assert [k for _, _, k in recorded.asked] == [3, 10, 50, 3, 3] and recorded.asked[-1][1] is None
    with pytest.raises(AttributeError):  # a dense table is nothing that ranks ask for
        model.full_sort_predict(batch)


def test_an_evaluation_asks_the_index_and_makes_no_dense_table(plain, monkeypatch):
    trainer, rows = plain
    loader = eval_loader(trainer.config, rows, "test")
    expected = protocol_of(trainer.config).evaluate(trainer, loader)
    recorded = Recorded(trainer.model.index)  # has no distances: whoever asks for all of them fails
    monkeypatch.setitem(trainer.model.grounding.__dict__, "index", recorded)
    found = protocol_of(trainer.config).evaluate(trainer, loader)
    assert recorded.asked == [(len(rows.test), expected.pairs[:, 1].tolist(), max(CUTOFFS))]
    assert found.metrics == expected.metrics
    np.testing.assert_array_equal(found.ranks, expected.ranks)
    np.testing.assert_array_equal(found.top_items, expected.top_items)


def test_an_approximate_index_decides_ranks_and_stages(gaps, place, plain, caplog):
    trainer, rows = trainer_of(gaps, place, "--faiss_index=IVF4,Flat")
    batch = batch_of(trainer, rows, "test")
    caplog.set_level(logging.INFO)
    found, exact = trainer.model.rank(batch, 1), plain[0].model.rank(batch, 1)
    assert not trainer.model.index.exact and trainer.model.index.recall is not None
    assert "recall, measured on" in caplog.text
    listed = found.ranks >= 0  # one of four cells is looked into: what it lacks can only have stood before
    assert (found.ranks[listed] <= exact.ranks[listed]).all() and (~listed & (exact.ranks >= 0)).any()
    assert trainer.model.index.recall == pytest.approx((found.top_items == exact.top_items).mean())
    everywhere = trainer_of(gaps, place, "--faiss_index=IVF4,Flat", "--faiss_search=nprobe=4")[0].model
    np.testing.assert_array_equal(everywhere.rank(batch, 1).ranks, exact.ranks)
    assert {"faiss_index", "faiss_search"} <= set(type(trainer.model.grounding).settings)


def test_a_title_that_was_generated_exactly_is_at_distance_zero(plain):
    trainer, rows = plain
    model = trainer.model
    titled = [item for item in range(1, model.catalog.n_items) if model.catalog.rankable[item]]
    texts = [f'"{model.catalog.titles[item]}"' for item in titled]
    distances = model.index.distances(model.ground(texts))
    assert distances[np.arange(len(titled)), titled].tolist() == [0.0] * len(titled)
    assert distances.argmin(axis=1).tolist() == titled


@pytest.mark.parametrize("text", ["", '"', '""', "   ", "\n\t"])
def test_an_empty_answer_is_grounded_without_a_fuss(plain, text):
    assert np.isfinite(plain[0].model.ground([text])).all()


def test_a_prediction_is_the_entry_of_the_full_ranking(plain):
    trainer, rows = plain
    model, batch = trainer.model, batch_of(*plain, "test")
    full = model.full_sort_predict(batch)
    for item in ids_of(rows, "i1", "i3", "i5"):
        batch.update(type(batch)({"item_id": torch.full((len(batch),), item)}))
        assert torch.equal(model.predict(batch), full[:, item].float())
    again = batch[torch.tensor([2, 0, 2, 1])]  # rows of one history are answered once
    expected = full[
        torch.tensor([2, 0, 2, 1]), again["item_id"]
    ].float()  # of another batch: embeddings round otherwise
    torch.testing.assert_close(model.predict(again), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("words", [("--reweight=collaborative",), ("--grounding=likelihood", "--lm_weight=0.2")])
def test_a_prediction_is_that_of_its_own_user_and_history(gaps, place, words, cut):
    """The recommender reads users, and the whole history where prompts show the newest item alone."""
    own = ("--recommender=SASRec" if cut else "--recommender=BPR", "--recommender_config={epochs: 5}")
    trainer, rows = trainer_of(gaps, place, *words, *own)
    model, batch = trainer.model, batch_of(trainer, rows, "test")
    if "--reweight=collaborative" in words:
        model.rescore = Reweighting(trainer.config, model, "ndcg@10").rescorer(1.0)
    rng = np.random.default_rng(0)
    asked = batch[torch.from_numpy(rng.integers(0, 2, 24))]
    asked["user_id"] = torch.from_numpy(rng.integers(1, 4, 24))
    asked["item_id"] = torch.full((24,), ids_of(rows, "i1")[0])
    if cut:
        asked["item_id_list"][:, :3], asked["item_length"][:] = torch.from_numpy(rng.integers(1, 21, (24, 3))), 3
        asked["item_id_list"][:, 2] = ids_of(rows, "i2")[0]
        model.history_cut = lambda histories: [shown[-1:] for shown in histories]
    found, full = model.predict(asked), model.full_sort_predict(asked)
    torch.testing.assert_close(found, full[:, asked["item_id"][0]].float(), rtol=1e-4, atol=1e-5)
    histories = model.histories(asked)
    alike = [float(value) for value, shown in zip(found, histories, strict=True) if shown == histories[0]]
    assert max(alike) - min(alike) > 1e-3


def test_kept_answers_are_those_of_their_own_prompts(plain):
    model, batch = plain[0].model, batch_of(*plain, "test")
    given = model.rows(batch)
    rows = PromptedRows([given.histories[0]] * 3, [given.prompts[0], given.prompts[1], given.prompts[2]])
    alone = np.concatenate([model.embed_answers(rows.take([row])) for row in range(3)])
    assert len(np.unique(alone.round(3), axis=0)) > 1
    with model.answers_kept():
        np.testing.assert_allclose(model.embed_answers(rows), alone, atol=1e-4)
        np.testing.assert_allclose(model.embed_answers(rows.take([2, 0])), alone[[2, 0]], atol=1e-4)


def test_a_history_without_titles_is_a_miss_and_counted(plain, caplog):
    trainer, rows = plain
    batch = batch_of(*plain, "test")
    (untitled,) = ids_of(rows, "i3")
    batch["item_id_list"] = batch["item_id_list"].clone()
    batch["item_id_list"][1, : batch["item_length"][1]] = untitled
    assert trainer.model.generate_text(batch)[1] == ""
    scores = trainer.model.full_sort_predict(batch)
    ranking = trainer.model.rank(batch, 5)
    assert ranking.ranks[1] == -1 and not ranking.top_items[1].any() and np.isneginf(ranking.top_scores[1]).all()
    assert (np.delete(ranking.top_items, 1, axis=0) > 0).all()
    assert torch.isinf(scores[1]).all() and torch.isfinite(scores[[0, 2]]).sum() == 2 * 19
    assert "1 rows have no titled item in their history; they count as misses." in caplog.text


def test_recboles_training_hook_is_the_token_mean_of_the_titled_rows(plain):
    trainer, rows = plain
    model = trainer.model.eval()
    batch = rows.train.inter_feat[torch.arange(12)]
    examples = [example for example in model.token_pairs(batch) if example is not None]
    assert 0 < len(examples) < 12
    losses = []
    for prompt, answer in examples:
        ids = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        losses.append(answer_loss(model.llm, ids, torch.ones_like(ids), labels) * len(answer))
    mean = torch.stack(losses).sum() / sum(len(answer) for _, answer in examples)
    assert torch.allclose(model.calculate_loss(batch), mean, atol=1e-5)
    (untitled,) = ids_of(rows, "i3")
    batch["item_id"] = torch.full((12,), untitled)
    with pytest.raises(ValueError, match="no row of the batch has a titled history and a titled target"):
        model.calculate_loss(batch)


# ----------------------------------------------------------------------------------------------------- re-weighting


def reweighted(distances: np.ndarray, weights: np.ndarray, gamma: float) -> np.ndarray:
    """BIGRec, section 3.3, by hand, one row at a time."""
    result = np.full_like(distances, np.inf)
    for row, (own, weight) in enumerate(zip(distances, np.broadcast_to(weights, distances.shape), strict=True)):
        ranked = np.isfinite(own)
        low, high = own[ranked].min(), own[ranked].max()
        result[row, ranked] = (own[ranked] - low) / (high - low) * (1 + weight[ranked]) ** -gamma
    return result


def weights_by_hand(trainer: LLMTrainer, rows: Rows, batch: Any, kind: str, folder: Path) -> np.ndarray:
    """W of the formula: min-max over the catalogue of interaction counts, or of SASRec's scores."""
    if kind == "popularity":
        counts = Counter(item for items in histories_in(folder).values() for item in items[:-2])
        scores = np.array([[counts[token] for token in rows.whole.field2id_token["item_id"][1:]]], dtype=float)
        scores = np.repeat(scores, len(batch), axis=0)
    else:
        config = trainer.config.for_auxiliary("SASRec")
        model = config.model_class(config, rows.whole).eval()
        checkpoint = trainer.model.stages.root / trainer.model.stages.used["auxiliary-SASRec"] / "model.pth"
        model.load_state_dict(load_checkpoint(checkpoint)["state_dict"])
        scores = model.full_sort_predict(batch)[:, 1:].detach().double().numpy()
    low, high = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    return np.concatenate([np.zeros((len(scores), 1)), (scores - low) / (high - low)], axis=1)


@pytest.mark.parametrize("kind", ["popularity", "collaborative"])
def test_every_metric_is_judged_under_its_own_best_gamma(gaps, place, plain, kind):
    trainer, rows = trainer_of(gaps, place, f"--reweight={kind}", "--recommender_config={epochs: 2}")
    with working_in(place.parent):
        trainer.fit(train_loader(trainer.config, rows), eval_loader(trainer.config, rows, "valid"))
    distances, weights, targets = {}, {}, {}
    for phase in ("valid", "test"):
        batch = batch_of(trainer, rows, phase)
        distances[phase] = trainer.model.distances(batch)
        weights[phase] = weights_by_hand(trainer, rows, batch, kind, gaps)
        targets[phase] = batch["item_id"].numpy()

    def score(phase: str, gamma: float) -> dict[str, float]:
        table = reweighted(distances[phase], weights[phase], gamma)
        return metrics_of(ranks_of(table, targets[phase]), CUTOFFS)

    grid = [float(g) for g in range(100)]
    if kind == "collaborative":
        grid = [step / 100 for step in range(100)] + grid[1:]
    on_valid = [score("valid", gamma) for gamma in grid]
    for name, gamma in trainer.gammas.items():
        values = [metrics[name] for metrics in on_valid]
        assert gamma == (grid[int(np.argmax(values))] if max(values) else 0.0), name
    found = protocol_of(trainer.config).evaluate(trainer, eval_loader(trainer.config, rows, "test")).metrics
    assert found == pytest.approx({name: score("test", gamma)[name] for name, gamma in trainer.gammas.items()})
    assert trainer.best_valid_result == pytest.approx({name: max(m[name] for m in on_valid) for name in found})


def test_a_run_tuned_by_preference_alone_is_not_answered_by_the_untuned_llm(gaps, place, plain, tmp_path):
    plain[0].model.restore(tmp_path)  # which has no adapter
    with refused("", "file", "the folder 'adapter' is missing"):
        trainer_of(gaps, place, "--preference=dpo")[0].model.restore(tmp_path)


def test_gamma_of_zero_is_the_plain_ranking_and_a_large_one_is_not(gaps, place, plain):
    reference = protocol_of(plain[0].config).evaluate(plain[0], eval_loader(plain[0].config, plain[1], "test"))
    for gamma, same in ((0, True), (50, False)):
        trainer, rows = trainer_of(gaps, place, "--reweight=popularity", f"--gamma={gamma}")
        with working_in(place.parent):
            trainer.fit(train_loader(trainer.config, rows), eval_loader(trainer.config, rows, "valid"))
        evaluation = protocol_of(trainer.config).evaluate(trainer, eval_loader(trainer.config, rows, "test"))
        assert np.array_equal(evaluation.top_items, reference.top_items) == same
        assert np.array_equal(evaluation.top_items[:, 0], reference.top_items[:, 0])  # the nearest stays first
        assert np.array_equal(evaluation.pairs, reference.pairs)


def test_the_model_scores_plainly_outside_the_judge(gaps, place, plain):
    trainer, rows = trainer_of(gaps, place, "--reweight=popularity", "--gamma=50")
    with working_in(place.parent):
        trainer.fit(train_loader(trainer.config, rows), eval_loader(trainer.config, rows, "valid"))
    protocol_of(trainer.config).evaluate(trainer, eval_loader(trainer.config, rows, "test"))
    batch = batch_of(trainer, rows, "test")
    assert torch.equal(trainer.model.full_sort_predict(batch), plain[0].model.full_sort_predict(batch))
    assert len(row_pairs(rows.test)) == len(batch)


def test_prompts_of_other_numbers_of_candidates_are_of_other_models(gaps: Path, place: Path):
    four, five = (trainer_of(gaps, place, f"--candidates={n}")[0].model.facts() for n in (4, 5))
    assert four != five


def test_what_other_weights_have_answered_is_not_taken_over(gaps: Path, place: Path):
    model, asked = trainer_of(gaps, place)[0].model, list[int]()

    def answer(rows: Any) -> dict[int, int]:
        asked.extend(rows)
        return dict.fromkeys(rows, 0)

    with model.stages.unfinished({"test": "weights"}):
        for moved in (False, False, True):
            if moved:
                with torch.no_grad():
                    next(weight for weight in model.llm.parameters() if weight.requires_grad).add_(1)
            model.keep("answers", lambda: {"rows": [7]}).batch([7], answer)
    assert asked == [7, 7]


def test_the_padding_item_is_none_of_the_least_popular():
    model: Any = SimpleNamespace(
        catalog=SimpleNamespace(n_items=4), pairs_before_split=np.array([[1, 3], [2, 3], [3, 1], [1, 2]])
    )
    own: Any = SimpleNamespace(model=model)
    assert Reweighting._popularity(own)(None).tolist() == [0, 0, 0, 1]  # type: ignore[arg-type]
