"""Two processes against one, through the command: equal results with equal weights, and losses that only round apart.

Each case is run by one process first. Two processes then run the same command twice: once beside the fine-tuned weights
of the first run, from which all answers, ranks and metrics must come out equal to the bit, and once from nothing.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from recbole_llm.property_files import find_properties
from tests.processes import REPOSITORY, Done, fresh_python, together
from tests.runs import Finished, run, words_for

# Small enough that every step and every search has several batches, the last of them smaller.
BATCHES = ("--micro_batch_tokens=400", "--generation_batch_tokens=500", "--effort_tokens=answer")
FEW = (
    *BATCHES,
    "--train_sample_size=20",
    "--valid_sample_size=5",
    "--test_sample_size=5",
    "--epochs=1",
    "--eval_step=1",
)
RECOMMENDER = "--recommender_config={epochs: 1, train_batch_size: 64}"
HALVES = ("--recommender_config={epochs: 1, train_batch_size: 64, eval_batch_size: 4}", "--eval_batch_size=4")
CLICKS = ("--threshold={'rating': 3}", "--metrics=[AUC,LogLoss]", "--valid_metric=AUC")
ONE = ("--topk=[1]", "--valid_metric=NDCG@1")
TITLES = ("--grounding=constrained", *ONE)
FAST = {"BIGRec": ("BIGRec", "--lora_dropout=0.1")}
SLOW = {
    "methods": {
        "SOFT": ("SOFT", "--distance_rows=7", "--sd_select=nearest"),
        "iLoRA": ("iLoRA", RECOMMENDER),
        "DEALRec": ("DEALRec", "--coreset_size=8", *HALVES),
        "vectors": ("BIGRec", "--coreset=k_center", "--coreset_vectors=recommender", *HALVES),
        "GORACS": ("GORACS", "--coreset_size=8"),
        "TALLRec": ("TALLRec", *CLICKS, "--coreset=el2n", "--coreset_size=8"),
    },
    "answers": {
        "LLaRA": ("LLaRA", "--candidates=5", RECOMMENDER),
        "constrained": ("BIGRec", *TITLES),
        "likelihood": ("BIGRec", "--grounding=likelihood", "--valid_metric=loss"),
        "trunks": ("BIGRec", "--train_unit=user"),
        "full": ("BIGRec", "--adapter=full", "--BIGRec.learning_rate=0.001"),
        "RecLoRA": ("BIGRec", "--adapter=reclora", "--reclora_num_loras=3", RECOMMENDER),
        "MoSARA": ("BIGRec", "--adapter=mosara", "--mosara_num_experts=2", "--lora_rank_rule=sara", "--sara_budget=9"),
        "Pop": ("Pop,SOLID,BIGRec", "--BIGRec.epochs=0"),
    },
    "losses": {
        "MSL": ("BIGRec", "--objective=msl", "--msl_temperature=adaptive", "--title_renormalize=True", *TITLES),
        "BEAR": ("BIGRec", "--objective=bear", "--title_renormalize=True", *TITLES),
        "CFT": ("BIGRec", "--objective=cft"),
        "DPO": ("BIGRec", "--preference=dpo", "--pref_epochs=1"),
        "SDPO": ("BIGRec", "--preference=sdpo", "--pref_epochs=1"),
        "DMPO": ("BIGRec", "--preference=dmpo", "--pref_epochs=1"),
        "SPRec": ("BIGRec", "--preference=sprec", "--pref_rounds=2", "--pref_round_rows=8"),
        "RPO": ("BIGRec", "--preference=rpo", "--pref_epochs=1", "--rpo_prompts=llm"),
    },
    "models": {
        "similar": ("TALLRec", *CLICKS, "--prompt_items=2", "--prompt_items_by=similar"),
        "SemID": ("SemID", "--sid_levels=2", "--sid_codes=4", *ONE),
        "TTDS": ("TTDS", "--sid_levels=2", "--sid_codes=4", *ONE, RECOMMENDER),
        "Laser": ("Laser", "--laser_fixed_epochs=1", "--laser_experts=2", "--laser_width=16", RECOMMENDER),
        "LLMEmb": ("LLMEmb", "--scft_steps=3", "--scft_batch=8", "--item_text_fields=[class]", RECOMMENDER),
        "lengths": (
            "BIGRec",
            "--history_policy=sar",
            "--history_lengths=[1,3]",
            "--history_updates=5",
            "--history_rows=6",
        ),
    },
}
COMMANDS = """
    import json, os, sys
    from pathlib import Path
    from recbole_llm.experiment.command import main
    from tests.pictures import undrawn
    with undrawn():
        for words, variables in json.loads(Path(sys.argv[1]).read_text()):
            os.environ.update(variables)
            if status := main(words):
                sys.exit(status)
"""
COPIED = ("fine-tune-", "bi-tuning-")
# The rounds of SPRec are trainings, and all but the first one's answers are those of weights that rounds have trained.
TRAINED = ("fine-tune", "first-epoch", "curriculum", "preference", "bi-tuning", "round-", "answers-2")
OF_TRAINED = (
    "stages/distil",
    "stages/reference",
    "stages/history-policy",
)  # made by weights that two processes have trained otherwise
TOLD = (
    "stage.json",
    "facts.json",
    "coreset.json",
    "README.md",
    "model.pth",
    "adapter_config.json",
)  # times, folders, sets


@dataclass(frozen=True)
class Case:
    """One command.

    Attributes:
        label: of the LLM model.
        one: what one process left.
        same: the ``checkpoint_dir`` of two processes that had its fine-tuned weights.
        anew: that of two processes that had nothing.
    """

    label: str
    one: Finished
    same: Path
    anew: Path

    def folder(self, saved: Path, label: str = "") -> Path:
        """The run folder of a model."""
        (found,) = saved.glob(f"{label or self.label}-world-*")
        return found

    def files(self, saved: Path, trained: bool) -> dict[str, Path]:
        """Files of the stages that are trained, or of the others."""
        names = json.loads((self.folder(saved) / "stages.json").read_text()).values()
        folders = [saved / "stages" / name for name in names if name.startswith(TRAINED) is trained]
        files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
        return {str(file.relative_to(saved)): file for file in files if file.name not in TOLD}


def copy_trained(saved: Path, other: Path) -> None:
    """Give the weights that one process has trained to a command that would train them."""
    for stage in (saved / "stages").iterdir():
        if stage.is_dir() and stage.name.startswith(COPIED):
            shutil.copytree(stage, other / "stages" / stage.name)


class Cases:
    """Runs commands by one process, and all of them by two."""

    def __init__(self, world: Path, root: Path, llama: Path) -> None:
        self.world, self.root, self.llama = world, root, llama
        self.done: dict[str, Case] = {}
        self.output: list[Done] = []

    def run(self, cases: dict[str, tuple[str, ...]]) -> dict[str, Case]:
        commands = []
        for name, (models, *words) in cases.items():
            label = models.split(",")[-1]
            llm = () if models == "TALLRec" else (f"--{label}.llm_path={self.llama}",)  # which has no token for Yes
            more = (*FEW, *llm, f"--{label}.train_batch_size=8", *words)
            folder = self.root / name
            one = run(models, self.world, folder / "one" / "saved", *more)
            assert one.status == 0
            same, anew = (folder / kind / "saved" for kind in ("same", "anew"))
            for saved in (same, anew):
                (saved / "stages").mkdir(parents=True)
                commands.append((words_for(models, self.world, saved, *more), {}))
            copy_trained(folder / "one" / "saved", same)
            self.done[name] = Case(label, one, same, anew)
        file = self.root / "commands.json"
        file.write_text(json.dumps(commands))
        self.output = together(COMMANDS, file, cwd=self.root)
        return self.done


def check(case: Case) -> None:
    """What must hold of two processes against one."""
    ours = case.files(saved := case.one.folders[case.label].parent, trained=False)
    for other in (case.same, case.anew):
        theirs = case.files(other, trained=False)
        assert theirs.keys() == ours.keys()  # the names of stages tell what they were made from, selections included
        compared = [name for name in ours if other is case.same or not name.startswith(OF_TRAINED)]
        assert [name for name in compared if ours[name].read_bytes() != theirs[name].read_bytes()] == []
        trained, by_two = case.files(saved, trained=True), case.files(other, trained=True)
        assert trained.keys() == by_two.keys()
        for name in trained:
            if name.endswith("history.json"):
                check_losses(*(json.loads(file.read_text()) for file in (trained[name], by_two[name])))
        assert not list(other.rglob("*.partial"))
    by_weights = {name.split("/")[1].partition("-")[0] for name in case.files(saved, trained=True)} - {"fine", "bi"}
    if not by_weights:  # what is trained after fine-tuning rounds apart
        folder, theirs = case.one.folders[case.label], case.folder(case.same)
        tables = [file.name for file in folder.glob("*.csv") if file.name.startswith(("test_", "valid_"))]
        assert len(tables) == 2
        for name in tables:
            assert (folder / name).read_bytes() == (theirs / name).read_bytes()
        assert case.one.json(case.label, "metrics.json") == json.loads((theirs / "metrics.json").read_text())


def check_losses(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    """Losses of epochs agree to 1e-5."""
    assert len(one) == len(two)
    for ours, theirs in zip(one, two, strict=True):
        for name in ("train_loss", "valid_loss", "real_loss", "distilled_loss", "tau", "distance", "right_ratio"):
            assert (ours.get(name) is None) == (theirs.get(name) is None)
            if ours.get(name) is not None:
                assert math.isclose(ours[name], theirs[name], rel_tol=1e-5, abs_tol=1e-5), (name, ours, theirs)


def check_training(case: Case) -> None:
    """The same stages are trained, and their losses agree."""
    trained, by_two = (case.files(saved, True) for saved in (case.one.folders[case.label].parent, case.anew))
    histories = [name for name in trained if name.endswith("history.json")]
    assert trained.keys() == by_two.keys() and histories
    for name in histories:
        check_losses(*(json.loads(file.read_text()) for file in (trained[name], by_two[name])))


def cases_of(request: Any, tmp_path_factory: pytest.TempPathFactory, cases: dict[str, tuple[str, ...]]) -> Cases:
    world, llama = (request.getfixturevalue(name) for name in ("world", "llama"))
    made = Cases(world, tmp_path_factory.mktemp("several"), llama)
    made.run(cases)
    return made


@pytest.fixture(scope="module")
def bigrec(request, tmp_path_factory):
    return cases_of(request, tmp_path_factory, FAST)


@pytest.fixture(scope="module")
def group_of(request, tmp_path_factory):
    """``group_of("losses")``: the cases of a group, run once."""
    return cache(lambda name: cases_of(request, tmp_path_factory, SLOW[name]))


def test_two_processes_do_what_one_does(bigrec):
    check(bigrec.done["BIGRec"])


def test_the_main_process_alone_writes_logs_and_tables(bigrec):
    case, (main, other) = bigrec.done["BIGRec"], bigrec.output
    assert (other.stdout, other.stderr) == ("", "")
    assert "is trained and evaluated by 2 processes" in main.stderr and "results:" in main.stdout
    one, two = case.one.folders["BIGRec"], case.folder(case.same)
    assert left_in(one) == left_in(two) and len(list(case.same.glob("results-*"))) == 1


def left_in(folder: Path) -> set[str]:
    """Names of what is in a run folder, but for those with a time in them."""
    files = [file for file in folder.rglob("*") if file.suffix != ".log" and not file.name.startswith("events")]
    return {str(file.relative_to(folder)) for file in files}


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), [(group, name) for group in SLOW for name in SLOW[group]])
def test_two_processes_do_what_one_does_elsewhere(group, name, group_of):
    check(group_of(group).done[name])


@pytest.mark.slow
def test_recboles_models_are_trained_by_the_main_process_and_the_log_says_so(group_of):
    case = group_of("answers").done["Pop"]
    (log,) = case.folder(case.same, "Pop").glob("*.log")
    assert "Pop is trained by the main process; the other 1 wait for it" in log.read_text(encoding="utf-8")
    one, two = (folder / "test_ranks.csv" for folder in (case.one.folders["Pop"], case.folder(case.same, "Pop")))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("config", ["2-cpu", "2-cpu-fsdp"])
def test_accelerate_starts_two_processes_by_our_configs(config, world, llama, tmp_path):
    """``accelerate launch`` as the page shows it: with the weights of one process its answers, else its losses."""
    more = [*FEW, f"--llm_path={llama}", "--BIGRec.train_batch_size=8", "--lora_dropout=0.1", "--use_gpu=False"]
    one = run("BIGRec", world, tmp_path / "one" / "saved", *more)
    (saved := tmp_path / "two" / "saved" / "stages").mkdir(parents=True)
    words = words_for("BIGRec", world, saved := saved.parent, *more)
    if config == "2-cpu":
        copy_trained(one.folders["BIGRec"].parent, saved)
    launch = (
        "-m",
        "accelerate.commands.launch",
        f"--config_file={find_properties() / 'accelerate' / f'{config}.yaml'}",
    )
    done = fresh_python(*launch, REPOSITORY / "run_recbole_llm.py", *words, cwd=saved.parent)
    assert "BIGRec is trained and evaluated by 2 processes" in done.stderr
    assert ("share the LLM's weights in training" in done.stderr) is (config == "2-cpu-fsdp")
    if config == "2-cpu":
        check(Case("BIGRec", one, saved, saved))
    else:
        check_training(Case("BIGRec", one, saved, saved))


TIGHT = """
    import os
    import torch
    from recbole_llm.model.base import LLMRecommender
    compute, left = LLMRecommender.answer_loss, [2]
    def answer_loss(model, *rows):
        left[0] -= os.environ["RANK"] == "1"
        if left[0] == 0:
            left[0] = 10**6
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(model, *rows)
    LLMRecommender.answer_loss = answer_loss
"""


@pytest.mark.slow
def test_one_process_that_runs_out_of_memory_makes_all_go_on_with_smaller_passes(world, llama, tmp_path):
    more = [*FEW, "--micro_batch_tokens=1000", f"--llm_path={llama}", "--BIGRec.train_batch_size=8"]
    one = run("BIGRec", world, tmp_path / "one" / "saved", *more)
    (saved := tmp_path / "two" / "saved").mkdir(parents=True)
    file = tmp_path / "commands.json"
    file.write_text(json.dumps([(words_for("BIGRec", world, saved, *more), {})]))
    main, _ = together(TIGHT + COMMANDS, file, cwd=tmp_path)
    assert "micro_batch_tokens: memory ran out at 1,000 tokens of a pass: going on with 500" in main.stderr
    check_training(Case("BIGRec", one, saved, saved))


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("SOFT", "--distance_rows=7", "--lora_dropout=0.1"),
        ("BIGRec", "--adapter=full", "--epochs=2"),
    ],
)
def test_weights_that_are_dealt_out_learn_as_whole_ones(words, world, llama, tmp_path):
    model, *more = words
    more = [*FEW, f"--llm_path={llama}", f"--{model}.train_batch_size=8", f"--{model}.learning_rate=0.001", *more]
    one = run(model, world, tmp_path / "one" / "saved", *more)
    saved = tmp_path / "two" / "saved"
    saved.mkdir(parents=True)
    file = tmp_path / "commands.json"
    file.write_text(json.dumps([(words_for(model, world, saved, *more), FSDP)]))
    main, other = together(COMMANDS, file, cwd=tmp_path)
    assert "which share the LLM's weights in training" in main.stderr and (other.stdout, other.stderr) == ("", "")
    check_training(Case(model, one, saved, saved))
