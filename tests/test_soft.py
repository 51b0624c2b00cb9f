"""SOFT through the command: its stages, equal runs of equal settings, what it leaves, and that a broken run goes on."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_llm.curriculum import DISTILLED
from recbole_llm.experiment.llm_run import write_stage_table
from recbole_llm.llm.backbone import Backbone
from recbole_llm.llm.search import BeamSearch
from recbole_llm.model.bigrec import BIGRec
from recbole_llm.prompt.titles import clean_answer
from recbole_llm.report import RunResult
from recbole_llm.stages import find_damage
from recbole_llm.trainer import distillation, finetune
from recbole_llm.trainer.optimizer_step import OptimizerStep
from tests.processes import forked_python
from tests.runs import Finished, ranked_alike, words_for

STAGES = ("fine-tune", "distil", "initial-distance", "curriculum")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``checkpoint_dir`` of the tests that may share stages."""
    return tmp_path_factory.mktemp("soft") / "saved"


@pytest.fixture(scope="module")
def words(llama: Path) -> tuple[str, ...]:
    """Rates and sizes with which a random LLM's answers differ from row to row and from epoch to epoch."""
    sizes = ("--train_sample_size=24", "--valid_sample_size=6", "--test_sample_size=6", "--distance_rows=6")
    own = [f"--{model}.{word}" for model in ("BIGRec", "SOFT") for word in ("learning_rate=0.05", "train_batch_size=4")]
    return (
        f"--llm_path={llama}",
        *sizes,
        *own,
        "--lr_scheduler=linear",
        "--epochs=3",
        "--stopping_step=0",
        "--alpha=10",
    )


@pytest.fixture(scope="module")
def soft(command: Any, stages: Path, words: tuple[str, ...]) -> Callable[..., Finished]:
    """``soft("--alpha=0")``: SOFT, or other ``models``, with the stages of this module unless ``saved`` is given.

    What another test of the module has run is not run again.
    """
    known: dict[tuple[str, ...], Finished] = {}

    def run(*more: str, models: str = "SOFT", saved: Path = stages, status: int = 0) -> Finished:
        key, is_shared = (models, *more), saved == stages and status == 0
        if is_shared and key in known:
            return known[key]
        others = tuple(f"--{model}." for model in ("BIGRec", "SOFT") if model not in models.split(","))
        mine = [word for word in words if not word.startswith(others)]
        finished = command(models, *mine, *more, saved=saved)
        assert finished.status == status
        if is_shared:
            known[key] = finished
        return finished

    return run


@pytest.fixture
def stages_without(both: Finished, stages: Path, tmp_path: Path) -> Callable[..., Path]:
    """``stages_without("curriculum")``: a copy of the module's stages in which these are still to be computed."""

    def copy(*names: str) -> Path:
        saved = tmp_path / "saved"
        shutil.copytree(stages / "stages", saved / "stages", ignore=lambda _, found: [
            name for name in found if name.startswith(names)
        ])  # fmt: skip
        return saved

    return copy


@pytest.fixture(scope="module")
def both(soft: Callable[..., Finished]) -> Finished:
    """BIGRec and SOFT in one command: the usual run of this module."""
    return soft(models="BIGRec,SOFT")


def adapter_of(finished: Finished, label: str = "SOFT") -> dict[str, torch.Tensor]:
    return load_file(finished.folders[label] / "adapter" / "adapter_model.safetensors")


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def timeless(finished: Finished, label: str = "SOFT") -> list[dict[str, Any]]:
    """The history without what the clock decides."""
    clock = ("seconds", "tokens_per_second")
    return [{k: v for k, v in r.items() if k not in clock} for r in finished.json(label, "history.json")]


def answers_of(finished: Finished) -> list[str]:
    lines = (finished.stage("SOFT", "distil") / "answers.jsonl").read_bytes().split(b"\n")[:-1]
    return [json.loads(line)["answer"] for line in lines]


def epochs_counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that every epoch which is trained from now on adds its number to."""
    train, counted = finetune.FineTuning._train_epoch, []

    def counting(self: finetune.FineTuning) -> dict[str, Any]:
        counted.append(self.epoch)
        return train(self)

    monkeypatch.setattr(finetune.FineTuning, "_train_epoch", counting)
    return counted


def stages_in(saved: Path) -> set[str]:
    return {folder.name for folder in (saved / "stages").iterdir() if folder.is_dir()}


def check_equal_runs(one: Finished, other: Finished, label: str = "SOFT", other_label: str = "SOFT") -> None:
    """Bit-equal adapters, and the same metrics and ranks."""
    assert largest_difference(adapter_of(one, label), adapter_of(other, other_label)) == 0
    for split in ("valid", "test"):
        assert getattr(one.result(label), split) == getattr(other.result(other_label), split)
        assert one.ranks(label, split) == other.ranks(other_label, split)


# ------------------------------------------------------------------------------------------------ stages and equality


def test_bigrec_and_soft_share_their_first_stage(both, stages):
    used = both.json("SOFT", "stages.json")
    assert set(used) == {"item-embeddings", *STAGES}
    assert used["fine-tune"] == both.json("BIGRec", "stages.json")["fine-tune"]
    assert len(list((stages / "stages").glob("fine-tune-*"))) == 1
    first = both.result("SOFT").notes
    assert any(note.endswith(": item-embeddings, fine-tune") for note in first)
    assert all(find_damage(stages / "stages" / name) is None for name in used.values())


def test_soft_is_bigrec_with_the_adaptive_curriculum(both, soft, stages):
    other = soft("--curriculum=adaptive", models="BIGRec")
    used = other.json("BIGRec", "stages.json")
    assert used == both.json("SOFT", "stages.json")
    check_equal_runs(both, other, other_label="BIGRec")
    assert timeless(both) == timeless(other, "BIGRec")


def test_a_second_run_finds_every_stage(both, soft):
    again = soft()
    check_equal_runs(both, again)
    assert again.json("SOFT", "history.json") == both.json("SOFT", "history.json")
    (note,) = [note for note in again.result("SOFT").notes if note.startswith("Wall time excludes stages")]
    assert all(stage in note for stage in STAGES)


def test_alpha_0_is_sd_only(both, soft):
    alpha, only = soft("--alpha=0"), soft("--curriculum=sd_only")
    check_equal_runs(alpha, only)
    assert alpha.json("SOFT", "stages.json")["curriculum"] != only.json("SOFT", "stages.json")["curriculum"]
    assert [record["weight"] for record in timeless(alpha)] == [1.0] * 3
    assert all(record["distance"] is None for record in timeless(only))
    assert "initial-distance" not in only.json("SOFT", "stages.json")


def test_fixed_1_is_sd_only_and_fixed_0_is_bigrec(both, soft):
    only, one, zero = soft("--curriculum=sd_only"), soft("--curriculum=fixed:1"), soft("--curriculum=fixed:0")
    assert one.json("SOFT", "stages.json") == only.json("SOFT", "stages.json")
    assert zero.json("SOFT", "stages.json") == both.json("BIGRec", "stages.json")
    check_equal_runs(zero, both, other_label="BIGRec")
    assert not (zero.folders["SOFT"] / "curriculum.png").exists()
    assert soft("--curriculum=none").json("SOFT", "stages.json") == zero.json("SOFT", "stages.json")


@pytest.mark.slow
def test_a_step_of_8_rows_at_once_and_one_after_the_other_are_equal(soft, tmp_path):
    step = ("--SOFT.train_batch_size=8", "--train_sample_size=8", "--epochs=1", "--curriculum=fixed:0.5")
    at_once = soft(*step, "--micro_batch_tokens=100000")
    one_by_one = soft(*step, "--micro_batch_tokens=1", "--generation_batch_tokens=1", saved=tmp_path / "saved")
    assert ranked_alike(at_once, one_by_one, "SOFT")
    answers = list(zip(answers_of(at_once), answers_of(one_by_one), strict=True))
    assert sum(one != other for one, other in answers) <= 1  # two beams may be as good as equal
    assert largest_difference(adapter_of(at_once), adapter_of(one_by_one)) < 1e-4
    for one, other in zip(timeless(at_once), timeless(one_by_one), strict=True):
        losses = [[record[name] for name in ("real_loss", "distilled_loss", "train_loss")] for record in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.fixture(scope="module")
def empty_answers(both: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The usual run's distilled answers, each of them empty."""
    file = tmp_path_factory.mktemp("empty") / "answers.jsonl"
    lines = (both.stage("SOFT", "distil") / "answers.jsonl").read_bytes().split(b"\n")[:-1]
    file.write_text("".join(json.dumps({**json.loads(line), "answer": ' "" '}) + "\n" for line in lines))
    return file


SLOW = [pytest.param(curriculum, marks=pytest.mark.slow) for curriculum in ("fixed:0.5", "adaptive")]


@pytest.mark.parametrize("curriculum", ["sd_only", *SLOW])
def test_distilled_answers_equal_to_the_true_ones_are_plain_fine_tuning(both, soft, empty_answers, curriculum):
    """Here by empty answers, in whose place the true ones are learnt."""
    finished = soft(f"--curriculum={curriculum}", f"--sd_file={empty_answers}", "--sd_empty=real")
    assert "24 of 24 distilled answers are empty (sd_empty: real)." in finished.log("SOFT")
    assert largest_difference(adapter_of(finished), adapter_of(both, "BIGRec")) < 1e-4
    assert ranked_alike(finished, both, "SOFT", "BIGRec")
    losses = [[record["train_loss"] for record in timeless(*run)] for run in ((finished,), (both, "BIGRec"))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_empty_answers_can_be_learnt_as_they_are(both, soft, empty_answers):
    kept = soft("--curriculum=sd_only", f"--sd_file={empty_answers}", "--sd_empty=keep")
    assert largest_difference(adapter_of(kept), adapter_of(both, "BIGRec")) > 1e-2
    assert timeless(kept)[-1]["distilled_loss"] < timeless(both, "BIGRec")[-1]["train_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("best_first", [True, False])
def test_of_several_alphas_the_best_on_validation_stays_and_answers_are_distilled_once(
    both, soft, stages_without, monkeypatch, best_first
):
    alone = {alpha: soft(f"--alpha={alpha}") for alpha in (10, 100)}
    scores = {alpha: finished.result("SOFT").valid["ndcg@10"] for alpha, finished in alone.items()}
    assert len(set(scores.values())) == 2
    other, best = sorted(scores, key=lambda alpha: scores[alpha])
    saved = stages_without("curriculum", "first-epoch")
    before = stages_in(saved)
    order = f"[{best}, {other}]" if best_first else f"[{other}, {best}.0, {best}]"
    trained = epochs_counted(monkeypatch)
    listed = soft(f"--alpha={order}", saved=saved)
    assert trained == [1, 2, 3, 2, 3]  # the first is the same for both
    check_equal_runs(listed, alone[best])
    used = listed.json("SOFT", "stages.json")
    assert used.pop("first-epoch") and used == alone[best].json("SOFT", "stages.json")
    assert listed.json("SOFT", "curriculum.json") == alone[best].json("SOFT", "curriculum.json")
    assert timeless(listed) == timeless(alone[best])
    table = pd.read_csv(listed.folders["SOFT"] / "curricula.csv").set_index("alpha")
    assert table["chosen"].to_dict() == {best: 1, other: 0}
    for alpha, own in table.iterrows():
        valid = alone[alpha].result("SOFT").valid
        assert {name: own[f"valid_{name}"] for name in valid} == pytest.approx(valid)
    assert f"curriculum: {{'alpha': {best:.1f}}} is the best on validation." in listed.log("SOFT")
    assert sorted(name.rpartition("-")[0] for name in stages_in(saved) - before) == [*["curriculum"] * 2, "first-epoch"]
    trained.clear()
    soft(f"--alpha=[{other}, {best}, 0]", saved=saved)
    assert trained == [2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["in the first epoch", "after the first epoch", "in the second curriculum"])
def test_a_list_of_alphas_that_is_interrupted_ends_as_if_nothing_had_been(
    both, soft, stages_without, monkeypatch, place
):
    best, saved = soft("--alpha=[10, 100]"), stages_without("curriculum", "first-epoch")
    save, step = finetune.save_state, OptimizerStep.take
    steps = iter(range(100))
    last = {"in the first epoch": 3, "after the first epoch": 100, "in the second curriculum": 20}[place]

    def step_or_stop(*arguments: Any) -> np.ndarray:
        if next(steps) == last:
            raise KeyboardInterrupt
        return step(*arguments)

    def save_and_stop(folder: Path, state: Any) -> None:
        save(folder, state)
        if place == "after the first epoch":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OptimizerStep, "take", step_or_stop)
        patch.setattr(finetune, "save_state", save_and_stop)
        soft("--alpha=[10, 100]", saved=saved)
    (partial,) = (saved / "stages").glob("*.partial")
    assert partial.name.startswith("curriculum" if place == "in the second curriculum" else "first-epoch")
    resumed = soft("--alpha=[10, 100]", saved=saved)
    check_equal_runs(resumed, best)
    assert timeless(resumed) == timeless(best)
    assert resumed.json("SOFT", "curriculum.json") == best.json("SOFT", "curriculum.json")
    assert best.json("SOFT", "stages.json").items() <= resumed.json("SOFT", "stages.json").items()


def test_other_metrics_of_known_weights_ask_the_llm_for_nothing(both, soft, monkeypatch):
    """Nor does the line of SOFT's fine-tuning, whose answers are BIGRec's."""
    soft("--metrics=[NDCG,Hit]")  # asks for the validation rows, which the first run answered within its training
    search, searched = BeamSearch.run, []
    monkeypatch.setattr(BeamSearch, "run", lambda self, *given: searched.append(given) or search(self, *given))
    again = soft("--metrics=[NDCG,MAP,Hit]")
    assert not searched and again.ranks("SOFT", "test") == both.ranks("SOFT", "test")
    assert any("fine-tune" in note and note.endswith("answers") for note in again.result("SOFT").notes)
    fine_tuned = pd.read_csv(both.folders["SOFT"] / "stage_table.csv").set_index("model")
    plain = both.result("BIGRec").test
    assert fine_tuned.loc["SOFT after fine-tune, test", "ndcg@10"] == pytest.approx(plain["ndcg@10"])
    assert "The answers were found in" in both.log("SOFT")


# ---------------------------------------------------------------------------------------------------- distilled answers


def test_answers_given_back_as_a_file_make_an_equal_run_without_fine_tuning(both, soft):
    file = both.stage("SOFT", "distil") / "answers.jsonl"
    given = soft(f"--sd_file={file}")
    check_equal_runs(given, both)
    assert timeless(given) == timeless(both)
    assert not {"fine-tune", "distil"} & set(given.json("SOFT", "stages.json"))
    assert not (given.folders["SOFT"] / "stage_table.md").exists()


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (lambda lines: lines[:-1], (), "has 23 answers for 24 training rows; leave sd_file out"),
        (lambda lines: lines[::-1], (), "line 1 of .* belongs to another row, prompt or order; leave sd_file out"),
        (lambda lines: lines, ("--train_sample_size=20",), "has 24 answers for 20 training rows"),
        (lambda lines: lines, ("--seed=1",), "line . of .* belongs to another row, prompt or order"),
        (lambda lines: lines, ("--domain=movie",), "line 1 of .* belongs to another row, prompt or order"),
    ],
)
def test_answers_of_other_rows_are_refused_in_one_line(both, soft, tmp_path, capsys, change, more, message):
    lines = (both.stage("SOFT", "distil") / "answers.jsonl").read_bytes().split(b"\n")[:-1]
    (tmp_path / "answers.jsonl").write_bytes(b"".join(line + b"\n" for line in change(lines)))
    capsys.readouterr()
    soft(*more, f"--sd_file={tmp_path / 'answers.jsonl'}", status=2)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(f"recbole-llm: error: sd_file: .*{message}", error.rstrip().split("\n")[-1])


class Untuned:
    """The untuned LLM as Hugging Face loads it: embeddings of titles, one text at a time."""

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def embed(self, text: str) -> np.ndarray:
        inputs = {"input_ids": torch.tensor([self.tokenizer(text)["input_ids"]])}
        return self.model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1].double().numpy()


@pytest.fixture(scope="module")
def untuned(llama: Path) -> Untuned:
    return Untuned(llama)


def test_nearest_keeps_the_beam_nearest_to_the_true_title(both, soft, untuned, monkeypatch):
    seen: list[tuple[str, list[str]]] = []
    generate = BIGRec.generate_beams

    def record(self: BIGRec, rows: Any) -> list[list[str]]:
        beams = generate(self, rows)
        seen.extend(zip((self.catalog.titles[item] for item in rows[self.ITEM_ID].tolist()), beams, strict=True))
        return beams

    monkeypatch.setattr(BIGRec, "generate_beams", record)
    finished = soft("--sd_select=nearest", "--curriculum=sd_only", "--epochs=3")
    assert len(seen) == 24 and all(len(beams) == 2 for _, beams in seen)
    chosen = answers_of(finished)
    assert answers_of(both) == [beams[0] for _, beams in seen]  # the first stage is the same
    for (title, beams), kept in zip(seen, chosen, strict=True):
        distances = [np.linalg.norm(untuned.embed(clean_answer(beam)) - untuned.embed(title)) for beam in beams]
        assert kept in beams and distances[beams.index(kept)] <= min(distances) + 1e-4
    assert chosen != answers_of(both)
    assert largest_difference(adapter_of(finished), adapter_of(soft("--curriculum=sd_only"))) > 1e-3


def test_some_rows_are_distilled_with_beams_and_epochs_of_their_own(both, soft):
    some = soft("--sd_rows=9", "--sd_num_beams=1", "--curriculum_epochs=2")
    used, usual = some.json("SOFT", "stages.json"), both.json("SOFT", "stages.json")
    assert used["fine-tune"] == usual["fine-tune"]
    assert all(used[stage] != usual[stage] for stage in ("distil", "initial-distance", "curriculum"))
    assert some.json("SOFT", "distilled.json")["rows"] == len(answers_of(some)) == 9
    history = some.json("SOFT", "history.json")
    assert len(history) == 2 and history[0]["real_loss"] is None
    assert "sd_rows: answers to 9 of 24 training rows." in some.log("SOFT")
    assert soft("--sd_rows=24").json("SOFT", "stages.json") == usual  # as many rows as there are


@pytest.mark.slow
def test_the_distance_of_some_rows_is_that_of_one_beam_and_their_file_gives_the_same_run(soft):
    some = soft("--sd_rows=9", "--sd_num_beams=1", "--curriculum_epochs=2")
    greedy = soft("--SOFT.num_beams=1", "--alpha=10", models="SOFT")
    distances = [one.json("SOFT", "stages.json")["initial-distance"] for one in (some, greedy)]
    assert distances[0] == distances[1]
    file = some.stage("SOFT", "distil") / "answers.jsonl"
    given = soft("--sd_rows=9", "--sd_num_beams=1", "--curriculum_epochs=2", f"--sd_file={file}")
    check_equal_runs(some, given)
    more = soft("--sd_rows=9", "--sd_num_beams=4", "--curriculum_epochs=2", f"--sd_file={file}")
    curricula = [one.json("SOFT", "stages.json")["curriculum"] for one in (given, more)]
    assert curricula[0] != curricula[1]  # its distances are of answers by other beams


def test_permuted_targets_use_the_same_answers_and_learn_something_else(both, soft):
    permuted = soft("--curriculum=sd_only", "--sd_permuted=True")
    plain = soft("--curriculum=sd_only")
    used = [run.json("SOFT", "stages.json") for run in (permuted, plain)]
    assert used[0]["distil"] == used[1]["distil"] and used[0]["curriculum"] != used[1]["curriculum"]
    assert largest_difference(adapter_of(permuted), adapter_of(plain)) > 1e-3


@pytest.mark.slow
def test_first_line_cuts_distilled_answers(soft, monkeypatch):
    decode = Backbone.decode
    monkeypatch.setattr(Backbone, "decode", lambda self, token_ids: f"{decode(self, token_ids)}\nand more")
    short = ("--epochs=1", "--train_sample_size=8", "--curriculum=sd_only")
    whole, first = answers_of(soft(*short)), answers_of(soft(*short, "--first_line=True"))
    assert any("\n" in text.strip() for text in whole)
    assert first == [text.strip().split("\n")[0] for text in whole]


def test_the_summary_of_the_distilled_answers_is_left(both):
    summary = both.json("SOFT", "distilled.json")
    answers = answers_of(both)
    assert summary["rows"] == len(answers) == 24
    assert summary["empty"] == sum(not clean_answer(text) for text in answers) / 24
    assert summary == json.loads((both.stage("SOFT", "distil") / "summary.json").read_text())
    assert np.load(both.stage("SOFT", "distil") / "nearest.npy").shape == (24, 2)


# ---------------------------------------------------------------------------------------------- distances and weights


def test_distances_are_of_a_fixed_sample_in_the_untuned_llms_space(soft, untuned, stages_without, monkeypatch):
    """Generated texts are recorded; their distances are computed again by Hugging Face alone."""
    found: list[tuple[float, list[int], bool]] = []
    measure = distillation.DistanceMeter.measure

    def record(self: distillation.DistanceMeter) -> float:
        texts = [clean_answer(text) for text in self.model.generate_text(self.rows)]
        items = self.rows[self.model.ITEM_ID].tolist()
        gaps = [
            untuned.embed(text) - untuned.embed(self.model.catalog.titles[item])
            for text, item in zip(texts, items, strict=True)
        ]
        state = self.model.adapter.trainable_state(self.model.llm)
        is_untuned = not any(weight.any() for name, weight in state.items() if "lora_B" in name)
        found.append((float(np.linalg.norm(gaps, axis=1).mean()), items, is_untuned))
        return measure(self)

    monkeypatch.setattr(distillation.DistanceMeter, "measure", record)
    finished = soft(saved=stages_without("initial-distance", "curriculum"))
    initial = finished.json("SOFT", "curriculum.json")["initial_distance"]
    history = finished.json("SOFT", "history.json")
    distances = [initial, *(record["distance"] for record in history[:-1])]
    assert distances == pytest.approx([distance for distance, _, _ in found], abs=1e-4)
    assert [is_untuned for _, _, is_untuned in found] == [True, False, False]
    assert len({tuple(items) for _, items, _ in found}) == 1 and len(found[0][1]) == 6
    weights = [min(float(np.exp(10 * (distance / initial - 1))), 1.0) for distance in distances]
    assert [record["weight"] for record in history] == pytest.approx(weights, rel=1e-9)


def test_history_and_plot_show_what_the_curriculum_did(both):
    history = both.json("SOFT", "history.json")
    assert [record["epoch"] for record in history] == [1, 2, 3]
    for record in history:
        weight, real, distilled = (record[name] for name in ("weight", "real_loss", "distilled_loss"))
        assert (real is None) == (weight == 1) and (distilled is None) == (weight < 1e-12)
        total = (1 - weight) * (real or 0) + weight * (distilled or 0)
        assert record["train_loss"] == pytest.approx(total)
        assert record["distance"] is None or record["distance"] >= 0
        assert {"learning_rate", "seconds", "tokens_per_second", "valid"} <= set(record)
    assert history[0]["weight"] == 1 and history[-1]["distance"] is None
    best = max(history, key=lambda record: record["valid"]["ndcg@10"])["epoch"]
    facts = both.json("SOFT", "curriculum.json")
    assert set(facts) == {"alpha", "initial_distance", "best_epoch"} and facts["best_epoch"] == best
    assert both.result("SOFT").valid == history[best - 1]["valid"]
    assert (both.folders["SOFT"] / "curriculum.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not (both.folders["BIGRec"] / "curriculum.png").exists()
    plain = both.json("BIGRec", "history.json")
    assert all("weight" not in record and "distance" not in record for record in plain)


def test_the_stage_table_counts_validation_and_test_rows_apart(tmp_path):
    stage = RunResult(
        model="SOFT after fine-tune", dataset="world", valid={"hit@5": 0.5}, test={"hit@5": 0.25}, n_rows=12
    )
    write_stage_table(SimpleNamespace(path=tmp_path), [stage], n_valid=7)
    lines = json.loads((tmp_path / "stage_table.json").read_text())["results"]
    assert [(line["model"].split()[-1], line["n_rows"]) for line in lines] == [("valid", 7), ("test", 12)]


def test_the_stage_table_shows_both_stages_on_both_splits(both):
    folder = both.folders["SOFT"]
    for suffix in ("md", "csv", "json"):
        assert (folder / f"stage_table.{suffix}").stat().st_size
    lines = json.loads((folder / "stage_table.json").read_text())["results"]
    names = [line["model"] for line in lines]
    assert names == [
        f"SOFT after {stage}, {split}" for stage in ("fine-tune", "curriculum") for split in ("valid", "test")
    ]
    plain, tuned = both.result("BIGRec"), both.result("SOFT")
    expected = [plain.valid, plain.test, tuned.valid, tuned.test]
    assert [line["test"] for line in lines] == expected
    assert [line["epochs"] for line in lines] == [3, 3, 6, 6]
    facts = both.json("SOFT", "curriculum.json")
    assert [line["best_epoch"] for line in lines[::2]] == [plain.best_epoch, 3 + facts["best_epoch"]]
    text = (folder / "stage_table.md").read_text()
    assert all(name in text for name in names) and "SOFT after curriculum, test" in both.log("SOFT")


def test_tensorboard_has_the_scalars_of_both_stages(soft, stages_without):
    saved = stages_without("fine-tune", "curriculum")
    finished = soft(saved=saved)
    folders = {file.parent for file in finished.folders["SOFT"].rglob("events.out.*")}
    scalars: dict[str, list[tuple[int, float]]] = {}
    for folder in folders:
        events = EventAccumulator(str(folder))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    plain = json.loads((finished.stage("SOFT", "fine-tune") / "history.json").read_text())
    columns = {"Loss/Train": (plain, "train_loss")} | {
        f"Curriculum/{tag}": (finished.json("SOFT", "history.json"), name)
        for tag, name in (
            ("Loss/Train", "train_loss"),
            ("Loss/Real", "real_loss"),
            ("Loss/Distilled", "distilled_loss"),
            ("Weight", "weight"),
            ("Distance", "distance"),
        )
    }
    for tag, (history, name) in columns.items():
        expected = [(record["epoch"], record[name]) for record in history if record[name] is not None]
        assert [step for step, _ in scalars.get(tag, [])] == [step for step, _ in expected], tag
        assert [value for _, value in scalars.get(tag, [])] == pytest.approx([value for _, value in expected])
    for group, history in (("", plain), ("Curriculum/", finished.json("SOFT", "history.json"))):
        values = [value for _, value in scalars[f"{group}Valid/ndcg@10"]]
        assert values == pytest.approx([record["valid"]["ndcg@10"] for record in history])


# ------------------------------------------------------------------------------------------------------- broken runs

PLACES = ("fine-tune", "distil", "initial-distance", "between epochs", "during an epoch", "at a distance")


def plant(place: str, stop: Callable[[], None], patch: Callable[[Any, str, Any], None]) -> None:
    """Make the command stop somewhere: ``stop`` is called when it gets there."""
    save, answer, measure, step = (
        finetune.save_state,
        distillation._answers,
        distillation.DistanceMeter.measure,
        OptimizerStep.take,
    )
    counts = {"chunk": 0, "step": 0}

    def save_and_stop(folder: Path, state: Any) -> None:
        save(folder, state)
        if folder.parent.name.startswith("fine-tune" if place == "fine-tune" else "curriculum"):
            stop()

    def answer_or_stop(*arguments: Any) -> list[str]:
        counts["chunk"] += 1
        if counts["chunk"] == 3:
            stop()
        return answer(*arguments)

    def measure_or_stop(self: distillation.DistanceMeter) -> float:
        state = self.model.adapter.trainable_state(self.model.llm)
        is_untuned = not any(weight.any() for name, weight in state.items() if "lora_B" in name)
        if is_untuned == (place == "initial-distance"):
            stop()
        return measure(self)

    def step_or_stop(self: OptimizerStep, *arguments: Any) -> np.ndarray:
        counts["step"] += DISTILLED in self._loss.passes.answer_lengths
        if counts["step"] == 4:
            stop()
        return step(self, *arguments)

    patch(distillation, "CHUNK", 5)
    if place in ("fine-tune", "between epochs"):
        patch(finetune, "save_state", save_and_stop)
    elif place == "distil":
        patch(distillation, "_answers", answer_or_stop)
    elif place in ("initial-distance", "at a distance"):
        patch(distillation.DistanceMeter, "measure", measure_or_stop)
    else:
        patch(OptimizerStep, "take", step_or_stop)


def check_partial(saved: Path, place: str) -> None:
    """What the broken run left behind is the stage it was in, and every earlier one is whole."""
    (partial,) = (saved / "stages").glob("*.partial")
    stage = place if place in STAGES else "curriculum"
    assert partial.name.startswith(stage)
    for earlier in STAGES[: STAGES.index(stage)]:
        assert len(list((saved / "stages").glob(f"{earlier}-*"))) == 1
    if place == "distil":
        (file,) = partial.glob("unfinished/distilled-answers-*.jsonl")
        assert [len(json.loads(line)) for line in file.read_text().splitlines()] == [5, 5]


def check_resumed(resumed: Finished, both: Finished, saved: Path) -> None:
    check_equal_runs(resumed, both)
    assert timeless(resumed) == timeless(both)
    assert resumed.json("SOFT", "curriculum.json") == both.json("SOFT", "curriculum.json")
    assert resumed.json("SOFT", "stages.json") == both.json("SOFT", "stages.json")
    assert answers_of(resumed) == answers_of(both)
    assert not list((saved / "stages").glob("*.partial")) and "Resuming after epoch" in resumed.log("SOFT")


@pytest.mark.slow
def test_a_command_interrupted_in_every_stage_ends_as_if_nothing_had_been(both, soft, tmp_path, monkeypatch):
    def interrupt() -> None:
        raise KeyboardInterrupt

    saved = tmp_path / "saved"
    for place in PLACES:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            plant(place, interrupt, patch.setattr)
            soft(saved=saved)
        check_partial(saved, place)
    check_resumed(soft(saved=saved), both, saved)


@pytest.mark.slow
def test_a_process_killed_in_every_stage_ends_as_if_nothing_had_been(both, soft, words, world, tmp_path):
    saved = tmp_path / "saved"
    saved.mkdir()
    mine = words_for("SOFT", world, saved, *(word for word in words if not word.startswith("--BIGRec.")))
    for place in PLACES:
        program = f"""
            import os, signal
            from recbole_llm import compat
            compat.apply()
            from recbole_llm.quick_start import main
            from tests.test_soft import plant

            plant({place!r}, lambda: os.kill(os.getpid(), signal.SIGKILL), setattr)
            main({mine!r})
        """
        forked_python(program, cwd=tmp_path, status=-signal.SIGKILL)
        check_partial(saved, place)
    check_resumed(soft(saved=saved), both, saved)
