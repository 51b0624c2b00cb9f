"""A command that was killed ends, typed again, as if nothing had been: bit-equal metrics and ranks."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from recbole_llm.settings.models import is_llm_model
from tests.kills import Ended, Warm
from tests.runs import words_for

FEW = ("--train_sample_size=24", "--valid_sample_size=6", "--test_sample_size=6", "--lr_scheduler=constant")
FEWER = (
    *("--train_sample_size=8", "--valid_sample_size=3", "--test_sample_size=3", "--distance_rows=3", "--sd_rows=6"),
    "--SOFT.train_batch_size=4",
)  # still two steps of an optimiser in an epoch
SHORT = ("--epochs=2", "--eval_step=1", "--stopping_step=0", "--checkpoint_minutes=0", "--lora_dropout=0.1")
SMALL = ("--num_beams=2", "--max_new_tokens=4", "--generation_batch_tokens=100", "--micro_batch_tokens=200")
CLASSIC = ("--epochs=4", "--eval_step=1", "--stopping_step=2")
SASREC = "--recommender_config={hidden_size: 16, inner_size: 16, epochs: 1}"
LABELS = ("--threshold={'rating': 4}", "--TALLRec.valid_metric=AUC")
METHODS = {
    "BIGRec": ("BIGRec",),
    "constrained": ("BIGRec", "--grounding=constrained", "--topk=[1,2]", "--valid_metric=NDCG@2"),
    "likelihood": ("BIGRec", "--grounding=likelihood"),
    "SOFT": ("SOFT", "--alpha=1", "--distance_rows=6", "--sd_rows=8"),
    "DEALRec": ("DEALRec", "--coreset_size=8", SASREC),
    "GORACS": ("GORACS", "--coreset_size=8", "--coreset_encoder=llm"),
    "iLoRA": ("iLoRA", SASREC, "--ilora_num_experts=2", "--lora_r=4"),
    "DPO": ("BIGRec", "--preference=dpo", "--pref_epochs=2"),
    "SPRec": ("BIGRec", "--preference=sprec", "--pref_rounds=2", "--pref_round_rows=8"),
    "TALLRec": ("TALLRec", "--llm_path=tiny", *LABELS),
    "SASRec": ("SASRec", "--hidden_size=16", "--inner_size=16"),
    "LightGCN": ("LightGCN",),
    "RecVAE": ("RecVAE",),
    "SAR": ("SAR", "--hidden_size=16", "--inner_size=16", "--sar_warmup_epochs=1"),
    "SOLID": ("SOLID", "--hidden_size=16", "--embedding_size=16", "--semantic_epochs=3"),
    "student": ("BIGRec", "--distill_into=SASRec", "--distill_config={epochs: 4, hidden_size: 16, inner_size: 16}"),
}


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as process:
        yield process


class Sweep:
    """One command, run whole, and killed again and again.

    Args:
        warm: forks.
        folder: of the runs.
        world: the data set.
        models: of the command.
        words: its further words.
    """

    def __init__(self, warm: Warm, folder: Path, world: Path, models: str, words: Sequence[str]) -> None:
        self._warm, self._folder, self._world = warm, folder, world
        self._models, self._words = models, words
        self.chains = 0
        self.killed: list[Ended] = []
        self.expected = self._left_by(self.run(self._new_folder()))

    def _new_folder(self) -> Path:
        self.chains += 1
        self.place = self._folder / str(self.chains)
        (self.place / "saved").mkdir(parents=True)
        return self.place

    def run(self, place: Path, at: int = 0, by: int = signal.SIGKILL) -> Ended:
        """Run the command in a folder."""
        own = [*FEW, *SHORT, *SMALL] if is_llm_model(self._models) else CLASSIC
        own = [*own, f"--{self._models}.train_batch_size=8", *self._words]
        words = words_for(self._models, self._world, place / "saved", *own)
        self.ended = self._warm.run(words, place, at, by)
        return self.ended

    def _left_by(self, ended: Ended) -> dict[str, bytes]:
        """What a finished command has found of each row, and its metrics; and nothing that is unfinished."""
        assert ended.status == 0, ended.output[-4000:]
        stages = self.place / "saved" / "stages"
        assert not [path for path in stages.iterdir() if ".partial" in path.name or path.name.startswith(".rows")]
        assert not list(stages.glob("*/unfinished"))
        runs = (self.place / "saved").glob(f"{self._models}-*")
        last = max((run for run in runs if (run / "metrics.json").is_file()), key=lambda run: run.stat().st_ctime_ns)
        folders = [last]
        if (last / "student.json").is_file():
            folders.append(last.parent / json.loads((last / "student.json").read_text())["folder"])
        names = ("metrics.json", "*_ranks.csv", "*_clicks.csv")
        files = [file for folder in folders for name in names for file in sorted(folder.glob(name))]
        return {f"{folders.index(file.parent)}/{file.name}": file.read_bytes() for file in files}

    def kill(self, points: Sequence[int]) -> list[str]:
        """Kill the command at a point behind where the last kill has left it, for each of them; end it at last.

        Returns:
            The names of the points that it died at; shorter where the command ended before.
        """
        place, names = self._new_folder(), []
        for number, at in enumerate(points):
            ended = self.run(place, at, (signal.SIGKILL, signal.SIGTERM)[number % 2])
            if not ended.was_killed:
                break
            names.append(ended.points[-1])
            self.killed.append(ended)
        else:
            ended = self.run(place)
        assert self._left_by(ended) == self.expected, f"killed at {names}"
        return names


def sweep_of(name: str, warm: Warm, folder: Path, world: Path, llama: Path, *more: str) -> Sweep:
    models, *words = METHODS[name]
    llm = [f"--llm_path={llama}"] if is_llm_model(models) else []
    return Sweep(warm, folder, world, models, [*llm, *words, *more])


def test_a_command_that_is_killed_twice_ends_as_if_nothing_had_been(warm, tmp_path, world, llama):
    """By SIGKILL, and by SIGTERM, of which a line tells how to go on."""
    sweep = sweep_of("SOFT", warm, tmp_path, world, llama, *FEWER)
    n_points = len(sweep.ended.points)
    sweep.kill([n_points // 3, n_points // 3])
    assert [ended.status for ended in sweep.killed] == [-signal.SIGKILL, 128 + signal.SIGTERM]
    (line,) = [line for line in sweep.killed[1].output.splitlines() if line.startswith("recbole-llm: stopped")]
    assert "what is finished is kept. To go on: recbole-llm --model=SOFT " in line


@pytest.mark.hostile
@pytest.mark.parametrize("name", METHODS)
def test_killed_anywhere_it_ends_as_if_nothing_had_been(warm, tmp_path, world, llama, name):
    """At least eight kills of each method, spread over all that it does."""
    sweep = sweep_of(name, warm, tmp_path, world, llama)
    n_points = len(sweep.ended.points)
    generator = np.random.default_rng(len(name))
    died: list[str] = []
    while len(died) < 8:
        died += sweep.kill(generator.integers(1, max(2, n_points // 3), 4).tolist())
    print(f"{name}: {n_points} points, {len(died)} kills in {sweep.chains - 1} runs: {', '.join(died)}")


@pytest.mark.hostile
def test_a_finished_commands_rows_are_not_answered_again_by_one_that_was_killed(warm, tmp_path, world, llama):
    """Killed after its last batch of answers and before its numbers are written: they are all found."""
    sweep = sweep_of("BIGRec", warm, tmp_path, world, llama)
    points = sweep.ended.points
    last = max(number for number, name in enumerate(points, start=1) if name == "behind batch")
    place = tmp_path / "again"
    (place / "saved").mkdir(parents=True)
    assert sweep.run(place, last).status == -signal.SIGKILL
    ended = sweep.run(place)
    assert ended.status == 0 and "rows of answers from an earlier run" in ended.output
    assert "before batch" in ended.points and "step" not in ended.points
