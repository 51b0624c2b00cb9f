"""LLaRA's hybrid prompts and iLoRA's gates in whole models: each row gets its own, in every place that computes.

The auxiliary recommender is a stub here; ``tests/test_llara.py`` runs the command with a real one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_llm.data.loaders import eval_loader
from recbole_llm.data.rows import load_rows
from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.llm.trunks import TrunkScorer
from recbole_llm.model.base import LLMRecommender
from recbole_llm.model.llara import LLaRA, hybrid_share
from recbole_llm.prompt import Example
from recbole_llm.settings.config import Config
from recbole_llm.trainer.llm_trainer import LLMTrainer
from tests.families import FAMILIES, save_family
from tests.refusals import refused
from tests.runs import words_for, working_in


class Stub:
    """In the place of an auxiliary recommender: random vectors, and states that follow from the history alone."""

    fingerprint, state_width = "auxiliary-stub", 6

    def __init__(self, n_items: int) -> None:
        vectors = np.random.default_rng(0).normal(size=(n_items, 5)).astype(np.float32)
        vectors[0] = 0
        self.vectors = vectors

    def item_vectors(self) -> np.ndarray:
        return self.vectors

    def sequence_states(self, histories: Any) -> np.ndarray:
        found = [np.random.default_rng(list(own)).normal(size=6) * bool(own) for own in histories]
        return 3 * np.array(found, dtype=np.float32)


@pytest.fixture(scope="module")
def build(gaps: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``build("iLoRA", "gpt2", "--lora_r=4")``: a trainer and its rows, over a stub, whose adapter has learned."""
    root = tmp_path_factory.mktemp("llara")
    folders = {family: save_family(family, root / family) for family in FAMILIES}
    patch = pytest.MonkeyPatch()
    patch.setattr(LLMRecommender, "auxiliary", property(lambda self: Stub(self.n_items)))

    def build(model: str, family: str = "llama", *words: str) -> tuple[LLMTrainer, Any]:
        usual = words_for(model, gaps, root / "saved", "--epochs=0", f"--llm_path={folders[family]}", *words)
        config = Config(model, gaps.name, argv=[word for word in usual if not word.startswith("--model=")])
        rows = load_rows(config, few_shot=False)
        with working_in(root):
            trainer = LLMTrainer(config, config.model_class(config, rows.whole))
        shake(trainer.model)
        return trainer, rows

    yield build
    patch.undo()


def shake(model: LLMRecommender) -> None:
    """Move the weights that learn away from their start, at which the adapter does nothing."""
    generator = torch.Generator().manual_seed(0)
    state = model.adapter.trainable_state(model.llm)
    changed = {name: weight + 0.2 * torch.randn(weight.shape, generator=generator) for name, weight in state.items()}
    model.adapter.load_trainable_state(model.llm, changed)


def rows_of(trainer: LLMTrainer, rows: Any, phase: str = "test") -> Any:
    return next(iter(eval_loader(trainer.config, rows, phase)))[0]


# ------------------------------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_have_a_slot_per_titled_item_and_are_bigrecs_otherwise(build, family):
    trainer, rows = build("LLaRA", family)
    plain = build("BIGRec", family)[0].model
    batch = rows.train.inter_feat
    for history, example, other in zip(
        trainer.model.histories(batch), trainer.model.token_pairs(batch), plain.token_pairs(batch), strict=True
    ):
        if example is None:
            assert other is None
            continue
        prompt, answer = example
        assert [-token for token in prompt if token < 0] == [i for i in history if trainer.model.catalog.has_title[i]]
        decode, text = plain.backbone.decode, [token for token in prompt if token >= 0]
        assert (decode(text), answer) == (decode(other[0]), other[1])


def test_no_prompt_depends_on_the_target(build):
    trainer, rows = build("LLaRA")
    model, batch = trainer.model, rows_of(trainer, rows)
    titled = np.flatnonzero(model.catalog.has_title)
    expected = [model.prompts.prompt(Example(history)) for history in model.histories(batch)]
    for target in titled[:5]:
        other = copy.copy(batch)
        other.interaction = {**batch.interaction, model.ITEM_ID: torch.full((len(batch),), int(target))}
        assert [prompt for prompt, _ in model.token_pairs(other)] == expected
    assert len({len(answer) for _, answer in model.token_pairs(batch)}) > 1


def test_no_answer_depends_on_the_target(build):
    trainer, rows = build("LLaRA")
    batch = rows_of(trainer, rows)
    before = trainer.model.full_sort_predict(batch)
    other = copy.copy(batch)
    other.interaction = {**batch.interaction, "item_id": torch.ones(len(batch), dtype=torch.long)}
    assert torch.equal(before, trainer.model.full_sort_predict(other))


def test_the_neutral_token_is_reserved_and_no_end(build):
    model = build("LLaRA")[0].model
    assert model.backbone.tokenizer.convert_ids_to_tokens(model.slots.neutral_token_id) == "<pad>"
    assert model.facts()["neutral"] == model.slots.neutral_token_id != model.backbone.eos_token_id


def test_item_vectors_are_those_of_the_recommender_and_decide_the_answers(build):
    trainer, rows = build("LLaRA")
    model, batch = trainer.model, rows_of(trainer, rows)
    assert torch.equal(model.projector.item_vectors, torch.from_numpy(Stub(model.n_items).vectors))
    before = model.generate_text(batch)
    model.projector.item_vectors[1:] = model.projector.item_vectors[1:].flip(0)
    assert model.generate_text(batch) != before


def test_the_projector_starts_from_the_runs_seed(build):
    def start(*words: str) -> torch.Tensor:
        trainer, rows = build("LLaRA", "llama", *words)
        return LLaRA(trainer.config, rows.whole).projector.layers[0].weight

    assert torch.equal(start(), start()) and not torch.equal(start(), start("--seed=7"))


# ----------------------------------------------------------------------------------------------------------- schedule


def test_the_share_of_hybrid_prompts_by_schedule():
    n = 5 * 5984  # LastFM in the paper, batches of 8
    for epoch in range(6):
        assert hybrid_share("linear", epoch * 5984, n) == epoch / 5
        assert hybrid_share("direct", epoch * 5984, n) == 1
        assert hybrid_share("two_stage", epoch * 5984, n) == float(epoch >= 2)


def drawn(model: LLaRA, steps: range, n_steps: int) -> list[bool]:
    found = []
    for step in steps:
        with model.training_step(step, n_steps):
            found.append(model.slots.hybrid)
        assert model.slots.hybrid
    return found


def test_prompts_are_drawn_by_the_step_alone_and_are_hybrid_outside(build):
    model = build("LLaRA", "llama", "--prompt_schedule=linear")[0].model
    found = drawn(model, range(400), 400)
    torch.manual_seed(1)
    np.random.seed(1)
    assert drawn(model, range(200, 400), 400) == found[200:]
    quarters = [np.mean(found[start : start + 100]) for start in range(0, 400, 100)]
    assert np.abs(np.array(quarters) - [0.125, 0.375, 0.625, 0.875]).max() < 0.15
    with pytest.raises(KeyboardInterrupt), model.training_step(0, 10):
        raise KeyboardInterrupt
    assert model.slots.hybrid
    assert all(drawn(build("LLaRA", "llama", "--prompt_schedule=direct")[0].model, range(20), 20))
    two = drawn(build("LLaRA", "llama", "--prompt_schedule=two_stage")[0].model, range(10), 10)
    assert two == [False] * 4 + [True] * 6


def test_text_alone_gives_another_loss_and_no_gradient_to_the_projector(build):
    trainer, rows = build("LLaRA", "llama", "--prompt_schedule=linear")
    model, batch = trainer.model, rows.train.inter_feat[:4]

    def gradient(context: Any) -> tuple[float, bool]:
        model.zero_grad()
        with context:
            loss = model.calculate_loss(batch)
        loss.backward()
        return loss.item(), any(p.grad is not None and p.grad.any() for p in model.projector.parameters())

    text, hybrid = gradient(model.training_step(0, 100)), gradient(ExitStack())
    assert not text[1] and hybrid[1] and abs(text[0] - hybrid[0]) > 1e-5


# --------------------------------------------------------------------------------------------- gates of the right rows


def as_one(model: LLMRecommender, compute: Callable[[Any], Any], batch: Any) -> list[Any]:
    """What each row gives alone."""
    return [compute(batch[torch.tensor([row])]) for row in range(len(batch))]


def gates_of(model: LLMRecommender, histories: Any) -> torch.Tensor:
    """What a search is given of rows of these histories."""
    return model.row_inputs(histories)["instance_gates"]


@pytest.mark.parametrize(
    ("model", "family"),
    [
        pytest.param(model, family, marks=[] if (model, family) == ("iLoRA", "gpt2") else pytest.mark.slow)
        for model in ("iLoRA", "BIGRec")
        for family in FAMILIES
    ],
)
def test_beams_of_a_row_are_those_of_its_own_history(build, model, family):
    """Batches are sorted by length; beams end, leave and move."""
    trainer, rows = build(model, family, "--adapter=ilora", "--num_beams=3", "--generation_batch_tokens=700")
    batch, model = rows_of(trainer, rows)[:6], trainer.model
    together = model.generate_beams(batch)
    assert together == [beams for (beams,) in as_one(model, model.generate_beams, batch)]
    with model.conditioned_on(model.histories(batch)[::-1]):  # what is said around a search is not used in it
        assert model.generate_beams(batch) == together


def test_gates_decide_the_answers_and_a_permutation_of_rows_would_show(build, monkeypatch):
    trainer, rows = build("BIGRec", "llama", "--adapter=ilora")
    batch, model = rows_of(trainer, rows), trainer.model
    right = model.generate_text(batch)
    inputs = model.row_inputs

    def rolled(histories: Any) -> dict[str, torch.Tensor]:
        return {name: values.roll(1, dims=0) for name, values in inputs(histories).items()}

    monkeypatch.setattr(model, "row_inputs", rolled)
    assert model.generate_text(batch) != right


def test_gates_of_others_are_those_of_another_trained_history_and_always_the_same(build):
    trainer, rows = build("BIGRec", "llama", "--adapter=ilora", "--ilora_permuted=True")
    model, own = trainer.model, build("BIGRec", "llama", "--adapter=ilora")[0].model
    trained = [list(history) for history in dict.fromkeys(map(tuple, own.histories(rows.train.inter_feat)))]
    with refused("ilora_permuted", "conflict", "before training there are no other rows' gates"):
        gates_of(model, trained)
    model.adapter.prepare_rows(trained)
    others, known = gates_of(model, trained), gates_of(own, trained)
    source = torch.cdist(others, known).argmin(dim=1)
    torch.testing.assert_close(others, known[source])
    assert (source != torch.arange(len(trained))).all() and len(source.unique()) > len(trained) / 3
    torch.testing.assert_close(gates_of(model, trained[::-1]), others.flip(0))
    assert model.facts() != own.facts()


def losses(model: LLMRecommender, batch: Any, n_answers: int = 2) -> torch.Tensor:
    """The loss of both targets in one pass; the second answer is the next row's."""
    examples = [pair for pair in model.token_pairs(batch) if pair is not None]
    histories = [
        h for h, pair in zip(model.histories(batch), model.token_pairs(batch), strict=True) if pair is not None
    ]
    answers = [own for _, own in examples]
    both = [[own, answers[0]][:n_answers] for own in answers]
    with torch.no_grad(), model.conditioned_on(histories):
        return model.answer_loss([prompt for prompt, _ in examples], both)


@pytest.mark.parametrize("model", ["iLoRA", "BIGRec"])
def test_both_targets_of_a_row_are_computed_with_its_own_gates_and_vectors(build, model, monkeypatch):
    trainer, rows = build(model, "llama", "--adapter=ilora")
    model, batch = trainer.model.eval(), rows.train.inter_feat[:12]
    readable = [row for row, pair in enumerate(model.token_pairs(batch)) if pair is not None]
    batch = batch[torch.tensor(readable)]
    together = losses(model, batch)
    first = model.token_pairs(batch)[0][1]
    alone = torch.zeros(2)
    for (prompt, answer), history in zip(model.token_pairs(batch), model.histories(batch), strict=True):
        with torch.no_grad(), model.conditioned_on([history]):
            alone += model.answer_loss([prompt], [[answer, first]])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)
    states = model.adapter.states.of
    monkeypatch.setattr(model.adapter.states, "of", lambda histories: states(histories).roll(1, dims=0))
    assert (losses(model, batch) - together).abs().max() > 0.05


@pytest.mark.parametrize("adapter", ["ilora", "reclora"])
def test_answers_that_only_some_rows_have_take_these_rows_gates_where_each_answer_is_a_pass(
    build, adapter, monkeypatch
):
    """Of an LLM with a local window: with ``sd_rows``, some rows have a distilled answer and some have none."""
    trainer, rows = build("BIGRec", "llama", f"--adapter={adapter}")
    model = trainer.model.eval()
    whole = rows.train.inter_feat[:12]
    readable = [row for row, pair in enumerate(model.token_pairs(whole)) if pair is not None]
    batch = whole[torch.tensor(readable)]
    pairs, histories = model.token_pairs(batch), model.histories(batch)
    prompts, bare = [prompt for prompt, _ in pairs], [5, 6, 7]
    answers = [[own, pairs[0][1] if row % 3 == 1 else []] for row, (_, own) in enumerate(pairs)]
    expected, apart = torch.zeros(2), []
    with torch.no_grad():
        for prompt, own, history in zip(prompts, answers, histories, strict=True):
            for kind, answer in enumerate(own):
                if answer:
                    with model.conditioned_on([history]):
                        expected[kind] += model.answer_loss([prompt], [[answer]])[0]
                    with model.conditioned_on([history] * 2):
                        apart.append(AnswerReader(model.scorer, None, bare, True).read([prompt], [[answer]]))
        monkeypatch.setattr(TrunkScorer, "takes_branches", lambda self, n_tokens=0: False)
        with model.conditioned_on(histories):
            together = model.answer_loss(prompts, answers)
            read = AnswerReader(model.scorer).read(prompts, answers)
        with model.conditioned_on(histories * 2):
            effects = AnswerReader(model.scorer, None, bare, True).read(prompts, answers)
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-3)
    sums = torch.zeros(2).index_add(0, read.answers, -read.log_probs)
    torch.testing.assert_close(sums, expected, rtol=1e-4, atol=1e-3)
    found = [
        effects.effects[(effects.rows == row) & (effects.answers == kind)]
        for row, own in enumerate(answers)
        for kind, answer in enumerate(own)
        if answer
    ]
    torch.testing.assert_close(torch.cat(found), torch.cat([one.effects for one in apart]), rtol=1e-4, atol=1e-3)


def test_noise_of_gates_is_in_training_only_whatever_mode_the_model_is_in(build):
    trainer, rows = build("BIGRec", "llama", "--adapter=ilora", "--ilora_gate=noisy", "--ilora_gate_noise=2")
    model, batch = trainer.model, rows_of(trainer, rows)
    expected = model.eval().generate_text(batch)
    model.train()
    assert model.generate_text(batch) == expected
    histories = model.histories(batch)
    assert torch.equal(gates_of(model, histories), gates_of(model, histories))
    assert model.llm.training and len({losses(model, batch).sum().item() for _ in range(3)}) == 3


@pytest.mark.parametrize("grounding", ["likelihood", pytest.param("constrained", marks=pytest.mark.slow)])
def test_title_scores_of_a_row_are_those_of_its_own_history(build, grounding):
    trainer, rows = build(
        "iLoRA", "llama", f"--grounding={grounding}", "--num_beams=17", "--topk=5", "--valid_metric=NDCG@5"
    )
    model, batch = trainer.model, rows_of(trainer, rows)
    together = model.full_sort_predict(batch)
    alone = torch.cat(as_one(model, model.full_sort_predict, batch))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------------- optimiser


def test_gate_and_projector_learn_at_their_own_rates(build):
    words = ("--iLoRA.learning_rate=0.1", "--weight_decay=0.5", "--gate_lr_ratio=0.25", "--side_weight_decay=0.01")
    trainer, _ = build("iLoRA", "llama", *words)
    model, groups = trainer.model, trainer.optimizer.param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 0.5), (0.025, 0.01), (0.1, 0.01)]
    gate = model.llm.base_model.lora_gate["default"].weight
    assert [p.shape for p in groups[1]["params"]] == [gate.shape]
    assert {id(p) for p in groups[2]["params"]} == {id(p) for p in model.projector.parameters()}
    every = {id(p) for p in model.parameters() if p.requires_grad}
    assert every == {id(p) for group in groups for p in group["params"]}
    assert len(build("BIGRec")[0].optimizer.param_groups) == 1


def test_the_schedule_of_prompts_is_a_fact_of_the_model(build):
    facts = [build("LLaRA", "llama", f"--prompt_schedule={name}")[0].model.facts() for name in ("direct", "linear")]
    assert facts[0] != facts[1]
