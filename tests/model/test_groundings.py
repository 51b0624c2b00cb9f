"""The three groundings against each other and against computations title by title, with a small untuned LLM."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_llm.data.candidates import row_candidates
from recbole_llm.data.loaders import eval_loader
from recbole_llm.data.rows import Rows
from recbole_llm.distributed import Process
from recbole_llm.evaluation import protocol_of
from recbole_llm.evaluation.candidate_choice import best_candidates
from recbole_llm.grounding import likelihood as likelihood_grounding
from recbole_llm.grounding import rank_scores
from recbole_llm.grounding.titles import title_trie
from recbole_llm.model import base
from recbole_llm.prompt import Example
from recbole_llm.prompt.titles import clean_answer
from recbole_llm.stages import find_damage
from recbole_llm.trainer.llm_trainer import LLMTrainer
from recbole_llm.trainer.tuning_stages import FineTuneStage
from tests.architectures import make_architecture
from tests.families import make_tokenizer
from tests.model.test_bigrec import CUTOFFS, batch_of, ids_of, ranks_of, trainer_of
from tests.refusals import refused
from tests.runs import Finished, metrics_of

TITLES = 17  # of the world with gaps: 20 items, one without a title, three that share one
ALL_BEAMS = f"--num_beams={TITLES}"


@pytest.fixture(scope="module")
def likelihood(gaps: Path, place: Path) -> tuple[LLMTrainer, Rows]:
    return trainer_of(gaps, place, "--grounding=likelihood")


def one_by_one(model: Any, batch: Any) -> np.ndarray:
    """Log-probability of each title after each row's prompt by the training loss: [rows, items], -inf if untitled."""
    titled = np.flatnonzero(model.catalog.has_title)
    answers = [model.prompts.item_response(item) for item in titled]
    found = np.full((len(batch), model.catalog.n_items), -np.inf)
    model.eval()
    for row, history in enumerate(model.histories(batch)):
        with torch.no_grad(), model.conditioned_on([history]):
            found[row, titled] = (
                -model.answer_loss([model.prompts.prompt(Example(history))], [answers]).double().numpy()
            )
    return found


def shake(model: Any) -> None:
    """Move the adapter away from its initial values, at which it does nothing."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.adapter.trainable_state(model.llm):
        own = model.llm.get_parameter(weight)
        own.data += 0.2 * torch.randn(own.shape, generator=generator)


# ------------------------------------------------------------------------------------------------------- likelihood


def test_likelihoods_are_those_of_the_training_loss_title_by_title(likelihood):
    trainer, rows = likelihood
    batch = batch_of(trainer, rows, "test")
    scores = trainer.model.full_sort_predict(batch).numpy()
    np.testing.assert_allclose(scores, one_by_one(trainer.model, batch), atol=1e-4)
    assert np.isneginf(scores[:, [0, *ids_of(rows, "i3")]]).all()
    assert all(len(set(row)) == 1 for row in scores[:, ids_of(rows, "i5", "i8", "i9")])
    assert np.ptp(scores[:, 1], axis=0) > 0.01  # the history counts


@pytest.mark.parametrize(
    "name", ["gpt_neo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mpt", "mamba"))]
)
def test_likelihoods_are_right_where_the_llm_takes_no_tree(name, gaps, place, monkeypatch):
    tokenizer = make_tokenizer("gpt2")
    special = {f"{kind}_token_id": tokenizer.eos_token_id for kind in ("bos", "eos", "pad")}
    model = make_architecture(name, vocab_size=len(tokenizer), **special)
    model.save_pretrained(place / name)
    tokenizer.save_pretrained(place / name)
    targets = "[x_proj]" if name == "mamba" else "all"  # peft leaves Mamba's other maps alone
    words = (f"--llm_path={place / name}", "--max_prompt_tokens=200", f"--lora_target_modules={targets}")
    trainer, rows = trainer_of(gaps, place, "--grounding=likelihood", *words)
    trainer.model.prepare()
    batch = batch_of(trainer, rows, "test")[:2]
    found = trainer.model.full_sort_predict(batch).numpy()
    titled = np.flatnonzero(trainer.model.catalog.has_title)
    for row, history in enumerate(trainer.model.histories(batch)):
        prompt = trainer.model.prompts.prompt(Example(history))
        for item in titled:
            title = trainer.model.prompts.item_response(item)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + title]), use_cache=False).logits[0]
            own = logits[len(prompt) - 1 : -1].double().log_softmax(-1).gather(1, torch.tensor(title)[:, None]).sum()
            assert found[row, item] == pytest.approx(own.item(), abs=1e-3)
    monkeypatch.setattr("recbole_llm.llm.title_ways.MAX_ROW_TITLES", TITLES - 1)
    with refused("grounding", "conflict", "^grounding: likelihood needs an LLM that scores 17 titles as a tree"):
        trainer.model.prepare()


def test_the_judges_ranks_are_those_of_sorting_the_likelihoods(likelihood):
    trainer, rows = likelihood
    evaluation = protocol_of(trainer.config).evaluate(trainer, eval_loader(trainer.config, rows, "test"))
    ranks = ranks_of(-one_by_one(trainer.model, batch_of(trainer, rows, "test")), evaluation.pairs[:, 1])
    assert (evaluation.ranks + 1).tolist() == ranks
    assert evaluation.metrics == pytest.approx(metrics_of(ranks, CUTOFFS), abs=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "ilora"])
def test_weights_of_a_row_are_those_of_its_own_history(gaps, place, adapter):
    words = ("--recommender_config={epochs: 2}", f"--adapter={adapter}", "--lora_r=4", "--generation_batch_tokens=300")
    found = {}
    for grounding in ("likelihood", "constrained"):
        trainer, rows = trainer_of(gaps, place, f"--grounding={grounding}", ALL_BEAMS, *words)
        shake(trainer.model)
        batch = batch_of(trainer, rows, "test")
        found[grounding] = trainer.model.full_sort_predict(batch).numpy()
    expected = one_by_one(trainer.model, batch)
    np.testing.assert_allclose(found["likelihood"], expected, atol=1e-4)
    np.testing.assert_allclose(found["constrained"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("grounding", "lm_weight"),
    [
        *[("likelihood", 0.3), ("constrained", 0.0)],
        *[pytest.param(*more, marks=pytest.mark.slow) for more in (("likelihood", 0.0), ("constrained", 0.3))],
    ],
)
def test_the_assistant_mixes_in_the_auxiliary_recommenders_probability_of_each_title(
    gaps, place, likelihood, grounding, lm_weight
):
    words = (f"--grounding={grounding}", f"--lm_weight={lm_weight}", "--recommender_config={epochs: 2}", ALL_BEAMS)
    trainer, rows = trainer_of(gaps, place, *words)
    batch = batch_of(trainer, rows, "test")
    trainer.model.prepare()
    titles = trainer.model.catalog.titles
    by_model = trainer.model.auxiliary.scores(batch)
    share = np.exp(by_model[:, trainer.model.catalog.has_title])
    names = [title for title in titles if title is not None]
    q = {name: share[:, [name == other for other in names]].sum(axis=1) / share.sum(axis=1) for name in names}
    language = one_by_one(likelihood[0].model, batch)
    expected = np.full_like(language, -np.inf)
    for item, title in enumerate(titles):
        if title is not None:
            expected[:, item] = lm_weight * language[:, item] + (1 - lm_weight) * np.log(q[title])
    np.testing.assert_allclose(trainer.model.full_sort_predict(batch).numpy(), expected, atol=1e-4)


def test_lengths_and_renormalisation_reach_the_scores(gaps, place, likelihood):
    batch = batch_of(*likelihood, "test")
    plain = likelihood[0].model.full_sort_predict(batch)
    model = trainer_of(gaps, place, "--grounding=likelihood", "--title_length_penalty=1")[0].model
    titled = np.flatnonzero(model.catalog.has_title)
    lengths = torch.tensor([len(model.prompts.item_response(item)) for item in titled])
    assert torch.allclose(model.full_sort_predict(batch)[:, titled] * lengths, plain[:, titled])
    model = trainer_of(gaps, place, "--grounding=likelihood", "--title_renormalize=True")[0].model
    share = model.full_sort_predict(batch)[:, model.catalog.rankable].exp()
    assert torch.allclose(share.sum(dim=1), torch.ones(len(batch), dtype=torch.float64))
    assert not torch.allclose(share, plain[:, model.catalog.rankable].exp())


# ------------------------------------------------------------------------------------------------------- candidates


def choosing(gaps: Path, place: Path, *words: str) -> tuple[LLMTrainer, Rows]:
    """As ``trainer_of``, with up to 15 candidates per row: to some fewer are left."""
    trainer, rows = trainer_of(gaps, place, "--grounding=likelihood", "--candidates=15", *words)
    model = trainer.model
    model.set_candidates(row_candidates(trainer.config, rows, ("valid", "test"), model.catalog, model.stages))
    shake(model)
    return trainer, rows


def alone(model: Any, batch: Any) -> np.ndarray:
    """Log-probability of each candidate, computed as the only answer to its row's prompt: [rows, n]."""
    listed = model.candidates.of(batch)
    found = np.full(listed.shape, -np.inf)
    model.eval()
    rows = zip(model.row_prompts(batch), model.histories(batch), listed.tolist(), strict=True)
    for row, (prompt, history, items) in enumerate(rows):
        for place, item in enumerate(items):
            if item:
                with torch.no_grad(), model.conditioned_on([history]):
                    found[row, place] = -float(model.answer_loss([prompt], [[model.prompts.item_response(item)]]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--lora_r=4",), ("--adapter=ilora", "--recommender_config={epochs: 2}")])
def test_candidates_are_scored_as_if_each_were_the_only_answer(gaps, place, words):
    trainer, rows = choosing(gaps, place, *words, "--generation_batch_tokens=300")
    batch = batch_of(trainer, rows, "test")
    expected = alone(trainer.model, batch)
    scores = trainer.model.candidate_scores(batch)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert np.isneginf(scores).any() and np.isfinite(scores[:, 0]).any()
    evaluation = protocol_of(trainer.config).evaluate(trainer, eval_loader(trainer.config, rows, "test"))
    best = trainer.model.candidates.of(batch)[np.arange(len(batch)), expected.argmax(axis=1)]
    assert evaluation.rows["answer"].tolist() == [trainer.model.catalog.titles[item] for item in best]
    assert evaluation.metrics["hit_ratio"] == (best == evaluation.pairs[:, 1]).mean()
    assert evaluation.metrics["valid_ratio"] == evaluation.metrics["valid_ratio_reference"] == 1


def test_settings_of_titles_hold_among_candidates(gaps, place):
    trainer, rows = choosing(gaps, place)
    batch = batch_of(trainer, rows, "test")
    plain = trainer.model.candidate_scores(batch)
    listed, there = trainer.model.candidates.of(batch), np.isfinite(plain)
    model = choosing(gaps, place, "--title_length_penalty=1")[0].model
    lengths = np.array(
        [[len(model.prompts.item_response(item)) if item else 1 for item in own] for own in listed.tolist()]
    )
    np.testing.assert_allclose((model.candidate_scores(batch) * lengths)[there], plain[there])
    model = choosing(gaps, place, "--title_renormalize=True")[0].model
    np.testing.assert_allclose(np.exp(model.candidate_scores(batch)).sum(axis=1), 1)
    model = choosing(gaps, place, "--lm_weight=0.3", "--recommender_config={epochs: 2}")[0].model
    theirs = np.take_along_axis(model.auxiliary.scores(batch), listed, axis=1)
    log_q = torch.from_numpy(np.where(there, theirs, -np.inf)).log_softmax(dim=1).numpy()
    mixed = 0.3 * plain[there] + 0.7 * log_q[there]
    np.testing.assert_allclose(model.candidate_scores(batch)[there], mixed, atol=1e-4)


def test_candidates_of_a_killed_evaluation_are_not_scored_again(gaps, place, monkeypatch):
    trainer, rows = choosing(gaps, place)
    model, batch = trainer.model, batch_of(trainer, rows, "test")
    expected, score, asked = model.candidate_scores(batch), likelihood_grounding.title_likelihoods, [0]

    def scored(*words: Any, dies_at: int, **options: Any) -> Any:
        if asked[0] == dies_at:
            raise KeyboardInterrupt
        asked[0] += 1
        return score(*words, **options)

    def scores(dies_at: int = -1) -> tuple[np.ndarray, int]:
        asked[0] = 0
        monkeypatch.setattr(likelihood_grounding, "title_likelihoods", partial(scored, dies_at=dies_at))
        with model.stages.unfinished({}):
            return model.candidate_scores(batch), asked[0]

    with pytest.raises(KeyboardInterrupt):
        scores(dies_at=2)
    found, n_asked = scores()
    assert np.array_equal(found, expected) and n_asked == len(batch) - 2
    with model.stages.unfinished({}):  # other weights are others' scores
        model.candidate_scores(batch)
        asked[0] = 0
        shake(model)
        assert not np.array_equal(model.candidate_scores(batch), expected) and asked[0] == len(batch)


def test_an_evaluation_hashes_the_weights_once_and_the_next_one_anew(gaps, place, monkeypatch):
    trainer, rows = trainer_of(gaps, place, "--grounding=likelihood")
    model, hashed, hash_tensors = trainer.model, list[str](), base.hash_tensors
    monkeypatch.setattr(base, "hash_tensors", lambda tensors: hashed.append(hash_tensors(tensors)) or hashed[-1])
    monkeypatch.setitem(trainer.config.final_config_dict, "eval_batch_size", 1)
    loader = eval_loader(trainer.config, rows, "test")
    assert len(loader) > 1
    with model.stages.unfinished({}):
        for number in (1, 2):
            protocol_of(trainer.config).evaluate(trainer, loader)
            assert len(hashed) == number
            shake(model)
        assert hashed[0] != hashed[1]
        for _ in range(2):  # outside an evaluation they may change
            model.keep("answers", dict)
    assert len(hashed) == 4


def test_processes_share_the_rows_whose_candidates_are_scored(gaps, place, monkeypatch):
    """Each computes every other row, by itself, and gets the others'."""
    trainer, rows = choosing(gaps, place)
    model, batch = trainer.model, batch_of(trainer, rows, "test")
    expected, given = model.candidate_scores(batch), [np.empty(0), np.empty(0)]

    class Told(Process):
        """Takes what it would be told from the whole result."""

        def complete(self, table: Any, batches: Any) -> None:
            given[self.rank] = table.copy()
            table[:] = expected

    for rank in (0, 1):
        monkeypatch.setattr(likelihood_grounding, "process", lambda rank=rank: Told(rank, 2))
        assert np.array_equal(model.candidate_scores(batch), expected)
        own = np.arange(len(batch)) % 2 == rank
        assert np.array_equal(given[rank][own], expected[own]) and np.isneginf(given[rank][~own]).all()


def test_a_row_without_a_prompt_names_no_candidate(gaps, place):
    trainer, rows = choosing(gaps, place)
    batch = batch_of(trainer, rows, "test")
    for unreadable in ([1], range(len(batch))):
        batch["item_id_list"] = batch["item_id_list"].clone()
        for row in unreadable:
            batch["item_id_list"][row, : batch["item_length"][row]] = ids_of(rows, "i3")[0]
        scores = trainer.model.candidate_scores(batch)
        best = best_candidates(trainer.model.candidates.of(batch), scores)
        assert (best == 0).nonzero()[0].tolist() == list(unreadable)


# ------------------------------------------------------------------------------------------------------ constrained


@pytest.mark.slow
def test_as_many_beams_as_titles_rank_as_the_likelihoods_do(gaps, place, likelihood):
    trainer, rows = trainer_of(gaps, place, "--grounding=constrained", ALL_BEAMS)
    batch = batch_of(trainer, rows, "test")
    exact = likelihood[0].model.full_sort_predict(batch)
    np.testing.assert_allclose(trainer.model.full_sort_predict(batch).numpy(), exact.numpy(), atol=1e-4)


def test_beams_are_titles_and_what_they_do_not_name_is_not_ranked(gaps, place, likelihood):
    trainer, rows = trainer_of(
        gaps, place, "--grounding=constrained", "--num_beams=3", "--topk=[1,3]", "--valid_metric=NDCG@3"
    )
    batch = batch_of(trainer, rows, "test")
    scores, exact = (model.full_sort_predict(batch) for model in (trainer.model, likelihood[0].model))
    named = torch.isfinite(scores)
    titles = trainer.model.catalog.representative
    assert {len(set(titles[row.nonzero()[:, 0]])) for row in named} == {3}  # no title twice
    np.testing.assert_allclose(scores[named].numpy(), exact[named].numpy(), atol=1e-4)
    evaluation = protocol_of(trainer.config).evaluate(trainer, eval_loader(trainer.config, rows, "test"))
    missed = ~named[torch.arange(len(batch)), batch["item_id"]]
    assert (evaluation.ranks[missed.numpy()] == -1).all() and missed.any()


# ------------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("grounding", ["likelihood", "constrained"])
def test_ranks_are_those_of_the_scores_without_a_table_where_beams_tell(gaps, place, grounding, monkeypatch):
    trainer, rows = trainer_of(
        gaps, place, f"--grounding={grounding}", "--num_beams=4", "--topk=[1,3]", "--valid_metric=NDCG@3"
    )
    model, batch = trainer.model, batch_of(trainer, rows, "test")
    batch["item_id_list"] = batch["item_id_list"].clone()
    batch["item_id_list"][1, : batch["item_length"][1]] = ids_of(rows, "i3")[0]
    expected = {k: rank_scores(model.full_sort_predict(batch), batch["item_id"], k) for k in (1, 3, 25)}
    if grounding == "constrained":
        monkeypatch.setattr(type(model.grounding), "scores", None)
    for k, ranking in expected.items():
        found = model.rank(batch, k)
        np.testing.assert_array_equal(found.ranks, ranking.ranks)
        np.testing.assert_array_equal(found.top_items, ranking.top_items)
        np.testing.assert_allclose(found.top_scores, ranking.top_scores, atol=1e-6)
    assert found.ranks[1] == -1 and (found.ranks >= 0).any()
    alone = model.rank(batch[torch.tensor([1])], 3)
    assert alone.ranks.tolist() == [-1] and not alone.top_items.any()


@pytest.mark.parametrize("grounding", ["likelihood", pytest.param("constrained", marks=pytest.mark.slow)])
def test_a_history_without_titles_is_a_miss_and_counted(gaps, place, grounding, caplog):
    trainer, rows = trainer_of(gaps, place, f"--grounding={grounding}", ALL_BEAMS)
    batch = batch_of(trainer, rows, "test")
    whole = trainer.model.full_sort_predict(batch)
    batch["item_id_list"] = batch["item_id_list"].clone()
    batch["item_id_list"][1, : batch["item_length"][1]] = ids_of(rows, "i3")[0]
    scores = trainer.model.full_sort_predict(batch)
    assert torch.isneginf(scores[1]).all()
    others = torch.arange(len(batch)) != 1
    np.testing.assert_allclose(scores[others].numpy(), whole[others].numpy(), atol=1e-5)
    assert "1 rows have no titled item in their history; they count as misses." in caplog.text
    assert torch.isneginf(trainer.model.full_sort_predict(batch[torch.tensor([1])])).all()


def test_a_prediction_is_the_entry_of_the_full_ranking(likelihood):
    trainer, rows = likelihood
    batch = batch_of(trainer, rows, "test")
    full = trainer.model.full_sort_predict(batch)
    for item in ids_of(rows, "i1", "i3", "i5"):
        batch.update(type(batch)({"item_id": torch.full((len(batch),), item)}))
        torch.testing.assert_close(trainer.model.predict(batch), full[:, item].float())


def test_free_text_stays_free(gaps, place, likelihood):
    batch = batch_of(*likelihood, "test")
    texts = likelihood[0].model.generate_text(batch)
    free = trainer_of(gaps, place)[0].model
    assert texts == free.generate_text(batch)
    assert any(free.catalog.lookup(clean_answer(text)) is None for text in texts)


def test_a_prompt_leaves_room_for_the_longest_title(gaps, place, caplog):
    words = ("--max_prompt_tokens=5000", "--max_new_tokens=2")
    models = {
        name: trainer_of(gaps, place, f"--grounding={name}", *words)[0].model for name in ("embedding", "likelihood")
    }
    positions = models["likelihood"].backbone.model.config.max_position_embeddings
    limits = {name: model.prompts.max_prompt_tokens for name, model in models.items()}
    longest = models["likelihood"].grounding.trie.max_length
    assert limits == {"embedding": positions - 2, "likelihood": positions - longest} and longest > 2
    assert f"Prompts are cut to {positions - longest} tokens" in caplog.text


# ------------------------------------------------------------------------------------------------ the whole command


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``checkpoint_dir`` of the runs below."""
    return tmp_path_factory.mktemp("groundings") / "saved"


@pytest.fixture(scope="module")
def finish(command: Any, stages: Path, llama: Path) -> Callable[..., Finished]:
    """``finish("likelihood")``: a short run of BIGRec, or another model, with a grounding."""

    def run(grounding: str, *words: str, model: str = "BIGRec") -> Finished:
        few = ("--train_sample_size=16", "--epochs=1", "--num_beams=10", f"--llm_path={llama}")
        finished = command(model, f"--grounding={grounding}", *few, *words, saved=stages)
        assert finished.status == 0
        return finished

    return run


@pytest.mark.parametrize(
    ("epochs", "grounding"),
    [
        *[(0, "constrained"), (1, "likelihood")],
        *[
            pytest.param(*more, marks=pytest.mark.slow)
            for more in ((0, "embedding"), (0, "likelihood"), (1, "constrained"), (1, "embedding"))
        ],
    ],
)
def test_a_run_ranks_by_its_grounding_and_computes_no_more_than_it_needs(finish, grounding, epochs):
    finished = finish(grounding, f"--epochs={epochs}")
    tuned = {"fine-tune"} if epochs else set()
    embedded = {"item-embeddings"} if grounding == "embedding" else set()
    assert set(finished.json("BIGRec", "stages.json")) == tuned | embedded
    assert finished.result("BIGRec").point.endswith(f"grounding={grounding})")
    ranks = [int(row["rank"] or 0) for row in finished.ranks("BIGRec")]
    metrics = metrics_of(ranks, CUTOFFS)
    assert {name: finished.result("BIGRec").test[name] for name in metrics} == pytest.approx(metrics)
    assert all(rank > 0 for rank in ranks) or grounding == "constrained"


@pytest.mark.slow
@pytest.mark.parametrize("grounding", ["constrained", "likelihood"])
def test_a_curriculum_still_learns_from_free_text_and_its_embeddings(finish, grounding):
    finished = finish(grounding, "--distance_rows=4", model="SOFT")
    used = finished.json("SOFT", "stages.json")
    assert set(used) == {"item-embeddings", "fine-tune", "distil", "initial-distance", "curriculum"}
    assert all(find_damage(finished.stage("SOFT", name)) is None for name in used)
    lines = (finished.stage("SOFT", "distil") / "answers.jsonl").read_bytes().split(b"\n")[:-1]
    assert len(lines) == 16 and all(isinstance(json.loads(line)["answer"], str) for line in lines)


def test_what_decides_validation_decides_the_stage(finish, monkeypatch):
    class Begun(Exception):
        """A stage is to be computed, and that is all that is asked."""

    def begin(self: FineTuneStage, folder: Path) -> None:
        raise Begun(folder.name)

    def stage(grounding: str, *words: str) -> str:
        with pytest.raises(Begun, match="^fine-tune-") as begun:
            finish(grounding, "--valid_sample_size=3", "--test_sample_size=2", *words)
        return str(begun.value)

    monkeypatch.setattr(FineTuneStage, "compute", begin)

    embedding = stage("embedding")
    assert embedding == stage("embedding", "--title_length_penalty=1")
    different = [embedding, stage("likelihood"), stage("likelihood", "--title_length_penalty=1")]
    aux = "--recommender_config={epochs: 1}"
    different += [stage("likelihood", "--lm_weight=0.5", aux), stage("likelihood", "--title_renormalize=True")]
    different += [stage("likelihood", "--lm_weight=0.5", "--recommender_config={epochs: 2}")]
    assert len(set(different)) == len(different)
    assert stage("likelihood", "--lm_weight=0.5", aux) == different[3]


# ------------------------------------------------------------------------------------------------ equal tokens


def test_titles_that_a_tokenizer_does_not_tell_apart_are_told_of(likelihood, monkeypatch, caplog):
    model = likelihood[0].model
    caplog.clear()
    whole = title_trie(model)
    assert "same tokens" not in caplog.text
    responses = {item: model.response(item) for item in np.flatnonzero(model.catalog.has_title).tolist()}
    first, second = np.flatnonzero(model.catalog.rankable)[:2].tolist()
    monkeypatch.setattr(model, "response", lambda item: responses[first if item == second else item])
    assert title_trie(model).n_titles == whole.n_titles - 1
    assert "1 of 17 different titles have the same tokens as another" in caplog.text
