"""Speed and memory against the ordinary procedure, both measured in the same run.

    python benchmarks/speed.py [--sections loss,beam,ranks] [--repeats 7] [--json out.json]

The procedures of a section take turns, so that a busy machine slows all of them; but where threads have to wait for a
core, waiting hides the work: judge ratios at a load below the number of cores, or with ``--threads 1``. A ratio is the
median, over the turns, of (time of the ordinary procedure / time of ours). Peak memory is that of a process of its own
which runs one procedure once, less that of a process which only builds model and data.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from recbole_llm.grounding import ItemIndex
from recbole_llm.llm import answer_loss, beam_search
from recbole_llm.report.environment import versions

Work = dict[str, Callable[[], Any]]  # name of a procedure -> the procedure; the ordinary one first, ours second

N_LAYERS, WIDTH = 4, 256

LOSS = {"vocabulary": 32_000, "rows": 8, "prompt": 100, "answer": 12}
BEAM = {"vocabulary": 8_000, "rows": 16, "prompt": 100, "of it shared": 60, "answer": 12, "beams": 4}
RANKS = {"items": 20_000, "queries": 512, "width": 256}


def make_model(vocab_size: int) -> LlamaForCausalLM:
    """A random Llama in fp32, its weights large enough for the answers of beam search to be no near-ties."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=WIDTH // 64,
        max_position_embeddings=512,
        initializer_range=0.06,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def loss_work() -> Work:
    """One forward and backward pass of the loss on the answers."""
    model = make_model(LOSS["vocabulary"]).train()
    ids = torch.randint(3, LOSS["vocabulary"], (LOSS["rows"], LOSS["prompt"] + LOSS["answer"]))
    mask, labels = torch.ones_like(ids), ids.clone()
    labels[:, : LOSS["prompt"]] = -100
    positions = torch.arange(ids.shape[1]).expand_as(ids)

    def backward(loss: Tensor) -> float:
        model.zero_grad()
        loss.backward()
        return loss.item()

    return {
        "logits everywhere": lambda: backward(
            model(input_ids=ids, attention_mask=mask, position_ids=positions, labels=labels, use_cache=False).loss
        ),
        "logits at answers": lambda: backward(answer_loss(model, ids, mask, labels, positions)),
    }


def beam_work() -> Work:
    """Beam search of as many steps as the answer has tokens: EOS is forbidden."""
    model, vocab_size = make_model(BEAM["vocabulary"]).eval(), BEAM["vocabulary"]
    n_new, n_beams = BEAM["answer"], BEAM["beams"]
    ids = torch.randint(3, vocab_size, (BEAM["rows"], BEAM["prompt"]))
    ids[:, : BEAM["of it shared"]] = ids[0, : BEAM["of it shared"]]

    def generate() -> list[list[int]]:
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_beams=n_beams,
            max_new_tokens=n_new,
            do_sample=False,
            early_stopping=False,
            suppress_tokens=[2],
        )
        return output[:, ids.shape[1] :].tolist()

    def search(share_prefix: bool) -> list[list[int]]:
        found = beam_search(
            model,
            ids.tolist(),
            eos_token_id=2,
            pad_token_id=0,
            num_beams=n_beams,
            max_new_tokens=n_new,
            forbidden_token_ids=[2],
            max_batch_tokens=ids.shape[0] * n_beams * (ids.shape[1] + n_new),  # one batch, like generate
            share_prefix=share_prefix,
        )
        return [generation.token_ids for generation in found]

    return {
        "generate": generate,
        "beam_search": lambda: search(share_prefix=False),
        "beam_search, prefix shared": lambda: search(share_prefix=True),
    }


def ranks_work() -> Work:
    """The rank of one target per query among all items; building the index counts as well."""
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(RANKS["items"], RANKS["width"], generator=generator)
    targets = torch.randint(1, RANKS["items"], (RANKS["queries"],), generator=generator)
    queries = items[targets] + torch.randn(RANKS["queries"], RANKS["width"], generator=generator)
    rankable = torch.ones(RANKS["items"], dtype=torch.bool)

    def two_argsorts() -> Tensor:
        ranks = torch.cdist(queries, items).argsort(dim=1).argsort(dim=1)
        return ranks.gather(1, targets[:, None]).squeeze(1)

    return {
        "cdist, two argsorts": two_argsorts,
        "ItemIndex.rank_of": lambda: ItemIndex(items, rankable=rankable).rank_of(queries, targets),
    }


WORKS: dict[str, Callable[[], Work]] = {"loss": loss_work, "beam": beam_work, "ranks": ranks_work}


def measure_loss(repeats: int) -> dict[str, Any]:
    """Answer-only loss against the model's own ``labels=`` loss."""
    work = loss_work()
    losses = [procedure() for procedure in work.values()]
    assert abs(losses[0] - losses[1]) < 1e-4, losses
    layers = N_LAYERS * (4 * WIDTH**2 + 3 * WIDTH * 3 * WIDTH)
    head = WIDTH * LOSS["vocabulary"]
    return {
        "title": "loss, forward and backward",
        "setting": LOSS | {"layers": N_LAYERS, "width": WIDTH, "output head / matrix products": head / (head + layers)},
        "goal": 2.0,
        "peak_mib": peaks("loss", work),
        **turns(work, repeats),
    }


def measure_beam(repeats: int) -> dict[str, Any]:
    """Beam search with one pass per prompt against ``generate``, at the same batch size."""
    work = beam_work()
    texts = [procedure() for procedure in work.values()]
    assert all(text == texts[0] for text in texts), "the searches disagree"
    return {
        "title": "beam search",
        "setting": BEAM | {"layers": N_LAYERS, "width": WIDTH},
        "goal": 1.5,
        "peak_mib": peaks("beam", work),
        **turns(work, repeats),
    }


def measure_ranks(repeats: int) -> dict[str, Any]:
    """Exact ranks by counting against sorting all distances twice."""
    work = ranks_work()
    sorted_ranks, counted = (procedure() for procedure in work.values())
    same = (sorted_ranks == counted).float().mean().item()
    assert same > 0.99, same  # float32 distances swap neighbours now and then
    return {
        "title": "exact ranks",
        "setting": RANKS | {"equal ranks": same},
        "goal": 5.0,
        "peak_mib": peaks("ranks", work),
        **turns(work, repeats),
    }


MEASURES = {"loss": measure_loss, "beam": measure_beam, "ranks": measure_ranks}


def turns(work: Work, repeats: int) -> dict[str, Any]:
    """Runs the procedures in turn (each has run once before): median seconds of each, and ratios to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, procedure in work.items():
            start = time.perf_counter()
            procedure()
            seconds[name].append(time.perf_counter() - start)
    ordinary, *ours = work
    ratios = {
        name: statistics.median(slow / fast for slow, fast in zip(seconds[ordinary], seconds[name], strict=True))
        for name in ours
    }
    return {"seconds": {name: statistics.median(times) for name, times in seconds.items()}, "ratio": ratios}


def peaks(section: str, work: Work) -> dict[str, float]:
    """MiB that each procedure needs at most beyond what model and data take."""
    baseline = peak_of_process(section, "")
    return {name: peak_of_process(section, name) - baseline for name in work}


def peak_of_process(section: str, procedure: str) -> float:
    """Peak MiB of a new process that builds the section's model and data, and runs one procedure or none."""
    command = [sys.executable, __file__, f"--threads={torch.get_num_threads()}", "--peak", section, procedure]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(result.stdout.splitlines()[-1])


def own_peak() -> float:
    """Peak resident memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a Linux process also counts the parent it was started from
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as plain text."""
    lines = [f"{'procedure':<44}{'seconds':>10}{'ratio':>8}{'goal':>7}{'peak MiB':>10}"]
    for result in results.values():
        setting = ", ".join(
            f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in result["setting"].items()
        )
        lines += ["", f"{result['title']}: {setting}"]
        for name, seconds in result["seconds"].items():
            ratio = f"{result['ratio'][name]:8.2f}{result['goal']:7.1f}" if name in result["ratio"] else " " * 15
            lines.append(f"  {name:<42}{seconds:10.3f}{ratio}{result['peak_mib'][name]:10.0f}")
    return "\n".join(lines)


def main() -> None:
    """Measures the chosen sections, prints a table and writes JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(MEASURES), help="comma-separated: %(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each procedure (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--peak", nargs=2, metavar=("SECTION", "PROCEDURE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        section, procedure = arguments.peak
        work = WORKS[section]()
        work.get(procedure, lambda: None)()
        print(own_peak())
        return
    sections = arguments.sections.split(",")
    if unknown := set(sections) - set(MEASURES):
        parser.error(f"unknown section {sorted(unknown)[0]}; there are {', '.join(MEASURES)}")
    settings = {"threads": arguments.threads, "repeats": arguments.repeats, "load average before": os.getloadavg()[0]}
    results = {section: MEASURES[section](arguments.repeats) for section in sections}
    print(", ".join(f"{name} {value:.3g}" for name, value in settings.items()), table(results), sep="\n\n")
    if arguments.json:
        report = settings | {"environment": versions(), "sections": results}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
