"""What the speed benchmarks share: procedures that take turns, peak memory in a process of its own, a table.

The procedures of a section take turns, so that a busy machine slows all of them; but where threads have to wait for a
core, waiting hides the work: read ratios at a load below the number of cores, or with ``--threads 1``. A ratio is the
median, over the turns, of (time of one procedure / time of another). Peak memory is that of a process of its own which
runs one procedure once, less that of a process which only builds model and data. Where a procedure takes minutes,
``--repeats 0`` runs each once in all, and leaves memory out.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.reports import write_report
from recbole_llm.report.environment import peak_mib, versions

Work = dict[str, Callable[[], Any]]  # name of a procedure -> the procedure


@dataclass(frozen=True)
class Goal:
    """How the times of two procedures should compare.

    Attributes:
        slow: name of the slower procedure.
        fast: name of the faster one.
        at_least: smallest ratio of their times that is good enough.
    """

    slow: str
    fast: str
    at_least: float


@dataclass(frozen=True)
class Section:
    """Procedures that are compared.

    Attributes:
        title: for the table.
        work: builds model and data, and gives the procedures.
        setting: sizes, for the table.
        goals: which times are compared.
        check: is given what each procedure returned and raises where they must agree and do not; it may return facts
            that are added to the setting.
    """

    title: str
    work: Callable[[], Work]
    setting: Mapping[str, Any]
    goals: tuple[Goal, ...]
    check: Callable[[dict[str, Any]], Mapping[str, Any] | None] = lambda results: None


def random_llama(width: int, layers: int, vocabulary: int, **options: Any) -> LlamaForCausalLM:
    """A random Llama in fp32, the same at every call; ``options`` are further ones of its config."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **options,
    )
    return LlamaForCausalLM(config)


def llama_with_lora(width: int, layers: int, vocabulary: int) -> nn.Module:
    """A random Llama in fp32 with LoRA on query and value."""
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(random_llama(width, layers, vocabulary, tie_word_embeddings=True), lora).train()


def measure(name: str, section: Section, repeats: int) -> dict[str, Any]:
    """Time and memory of a section's procedures, as plain data."""
    work = section.work()
    seconds, results = turn(work)
    facts = section.check(results) or {}
    turns = [turn(work)[0] for _ in range(repeats)] or [seconds]
    return {
        "title": section.title,
        "setting": {**section.setting, **facts},
        "seconds": {label: statistics.median(times[label] for times in turns) for label in work},
        "goals": [
            {
                "slow": goal.slow,
                "fast": goal.fast,
                "ratio": statistics.median(times[goal.slow] / times[goal.fast] for times in turns),
                "at_least": goal.at_least,
            }
            for goal in section.goals
        ],
        "peak_mib": peaks(name, work) if repeats else {},
    }


def turn(work: Work) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds and result of every procedure, each run once."""
    seconds, results = {}, {}
    for name, procedure in work.items():
        start = time.perf_counter()
        results[name] = procedure()
        seconds[name] = time.perf_counter() - start
    return seconds, results


def peaks(section: str, work: Work) -> dict[str, float]:
    """MiB that each procedure needs at most beyond what model and data take."""
    baseline = peak_of_process(section, "")
    return {name: peak_of_process(section, name) - baseline for name in work}


def peak_of_process(section: str, procedure: str) -> float:
    """Peak MiB of a new process that builds the section's model and data, and runs one procedure or none."""
    module = sys.modules["__main__"].__spec__.name
    command = [sys.executable, "-m", module, f"--threads={torch.get_num_threads()}", "--peak", section, procedure]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(result.stdout.splitlines()[-1])


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as plain text."""
    lines = []
    for result in results.values():
        setting = ", ".join(
            f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in result["setting"].items()
        )
        lines += ["", f"{result['title']}: {setting}", f"  {'procedure':<52}{'seconds':>10}{'peak MiB':>10}"]
        for name, seconds in result["seconds"].items():
            lines.append(f"  {name:<52}{seconds:10.3f}{result['peak_mib'].get(name, math.nan):10.0f}")
        for goal in result["goals"]:
            lines.append(f"  {goal['slow']} / {goal['fast']}: {goal['ratio']:.2f} (goal {goal['at_least']:g})")
    return "\n".join(lines)


def main(description: str | None, sections: Mapping[str, Section]) -> None:
    """Measure the chosen sections, print a table and write JSON on request."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(sections), help="comma-separated: %(default)s")
    parser.add_argument(
        "--repeats", type=int, default=7, help="turns after the first, which warms up (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch (default %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--peak", nargs=2, metavar=("SECTION", "PROCEDURE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        section, procedure = arguments.peak
        work = sections[section].work()
        work.get(procedure, lambda: None)()
        print(peak_mib())
        return
    chosen = arguments.sections.split(",")
    if unknown := set(chosen) - set(sections):
        parser.error(f"unknown section {sorted(unknown)[0]}; there are {', '.join(sections)}")
    settings = {"threads": arguments.threads, "repeats": arguments.repeats, "load average before": os.getloadavg()[0]}
    results = {name: measure(name, sections[name], arguments.repeats) for name in chosen}
    print(", ".join(f"{name} {value:.3g}" for name, value in settings.items()), table(results), sep="\n")
    if arguments.json:
        write_report(arguments.json, settings | {"environment": versions(), "sections": results})
