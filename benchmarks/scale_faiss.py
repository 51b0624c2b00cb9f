"""The catalogue's index on a million items: time, memory and recall, beside torch.

    python -m benchmarks.scale_faiss                                        1,000,000 items, width 1,024, 1,000 queries
    python -m benchmarks.scale_faiss --items 50000 --way "HNSW32;efSearch=64"

A way is ``torch`` (``cdist`` and ``topk``, item block by item block) or a factory string of :class:`ItemIndex`, with
its search parameters behind a semicolon. Each runs in a process of its own; its memory is the peak of that process less
that of one which only reads the data. Items are a mixture: clusters in a subspace of 64 dimensions, and noise; queries
are items with noise, their targets those items. What was measured is written beside what is there, by size and way.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reports import RESULTS, read_report, rendered, write_report
from recbole_llm.grounding import ItemIndex, Ranking
from recbole_llm.report import peak_mib, versions

FILE = RESULTS / "scale_faiss.json"
WAYS = ("torch", "Flat", "IVF1024,SQ8;nprobe=16")
BLOCK = 2**14  # items that a block of torch's way and of the data has
SUBSPACE, CLUSTERS = 64, 2000


def make_data(folder: Path, n_items: int, width: int, n_queries: int, seed: int) -> None:
    """Write items, queries and targets."""
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(SUBSPACE, width)).astype(np.float32) / SUBSPACE**0.5
    centres = rng.normal(size=(CLUSTERS, SUBSPACE)).astype(np.float32)
    items = np.lib.format.open_memmap(folder / "items.npy", mode="w+", dtype=np.float32, shape=(n_items, width))
    for start in range(0, n_items, BLOCK):
        count = min(BLOCK, n_items - start)
        own = centres[rng.integers(CLUSTERS, size=count)] + 0.5 * rng.normal(size=(count, SUBSPACE))
        items[start : start + count] = own.astype(np.float32) @ basis + 0.05 * rng.normal(size=(count, width))
    targets = rng.integers(1, n_items, n_queries)
    queries = items[targets] + 0.5 * (rng.normal(size=(n_queries, SUBSPACE)).astype(np.float32) @ basis)
    np.savez(folder / "queries.npz", queries=queries, targets=targets)
    items.flush()


def by_torch(items: torch.Tensor, queries: torch.Tensor, targets: torch.Tensor | None, k: int) -> Ranking:
    """Nearest items but item 0, and ranks of targets if there are some, block by block, in single precision."""
    values, ids = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    ranks = torch.zeros(len(queries), dtype=torch.int64)
    of_target = None if targets is None else (queries - items[targets]).norm(dim=1, keepdim=True)
    for start in range(1, len(items), BLOCK):
        own = torch.cdist(queries, items[start : start + BLOCK])
        near, columns = own.topk(min(k, own.shape[1]), largest=False)
        if targets is not None:
            there = ((targets >= start) & (targets < start + own.shape[1])).nonzero()[:, 0]
            own[there, targets[there] - start] = torch.inf  # rounding must not put the target before itself
            ranks += (own < of_target).sum(dim=1)
        values, ids = torch.cat((values, near), dim=1), torch.cat((ids, columns + start), dim=1)
        values, order = values.topk(min(k, values.shape[1]), largest=False)
        ids = ids.gather(1, order)
    return Ranking(ranks.numpy(), ids.numpy(), -values.double().numpy())


def measured(way: str, folder: Path, k: int) -> dict[str, float]:
    """Seconds of one way; the ranking is left in the folder."""
    items = np.load(folder / "items.npy")
    asked = np.load(folder / "queries.npz")
    queries, targets = asked["queries"], asked["targets"]
    if way == "data":
        return {}
    clock = [time.perf_counter()]
    if way == "torch":
        table, points = torch.from_numpy(items), torch.from_numpy(queries)
        clock.append(time.perf_counter())
        by_torch(table, points, None, k)
        clock.append(time.perf_counter())
        ranking = by_torch(table, points, torch.from_numpy(targets), k)
    else:
        factory, _, parameters = way.partition(";")
        index = ItemIndex(items, factory=factory, search_parameters=parameters)
        index.recall = 1.0  # it is measured here, not in the time of a search
        clock.append(time.perf_counter())
        index.search(queries, k)
        clock.append(time.perf_counter())
        ranking = index.rank(queries, targets, k)
    clock.append(time.perf_counter())
    np.savez(ranking_file(folder, way), ranks=ranking.ranks, top_items=ranking.top_items)
    return dict(zip(("build", "top_k", "top_k_and_ranks"), np.diff(clock).tolist(), strict=True))


def in_process(way: str, folder: Path, k: int, threads: int) -> dict[str, float]:
    """As :func:`measured`, in a new process, with its peak memory."""
    command = [sys.executable, "-m", "benchmarks.scale_faiss", "--run", way, str(folder), "--k", str(k)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, ways: tuple[str, ...], k: int, threads: int) -> dict[str, dict[str, float]]:
    """Every way's seconds, MiB beyond the data, and how much of the exact ranking (``Flat``) it gives."""
    data = in_process("data", folder, k, threads)["peak_mib"]
    found: dict[str, dict[str, float]] = {}
    for way in ways:
        found[way] = in_process(way, folder, k, threads)
        found[way]["peak_mib"] -= data
        print(way, json.dumps(found[way]), flush=True)
    if ranking_file(folder, "Flat").exists():
        with np.load(ranking_file(folder, "Flat")) as saved:
            exact_items, exact_ranks = saved["top_items"], saved["ranks"]
        for way in ways:
            with np.load(ranking_file(folder, way)) as saved:
                rows = zip(saved["top_items"], exact_items, strict=True)
                found[way]["recall"] = float(np.mean([np.isin(best, own).mean() for own, best in rows]))
                found[way]["equal_ranks"] = float((saved["ranks"] == exact_ranks).mean())
    return found


def ranking_file(folder: Path, way: str) -> Path:
    """Where the ranking of a way is left."""
    return folder / f"ranking {way}.npz"


def render(file: Path = FILE) -> Iterator[str]:
    """The lines of the page's Markdown."""
    return rendered(file, _lines)


def _lines(reports: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| items x width | queries | way | threads | load before | build s | top-k s | top-k and ranks s | peak MiB "
        "beyond the data | recall of the exact top-k | equal ranks |"
    )
    yield "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for report in reports.values():
        setting = report["setting"]
        for way, found in report["ways"].items():
            cells = [
                f"{setting['items']:,} x {setting['width']:,}",
                f"{setting['queries']:,}",
                f"`{way}`",
                str(setting["threads"]),
                f"{found['load average before']:.1f}",
                *(f"{found[name]:.1f}" for name in ("build", "top_k", "top_k_and_ranks")),
                f"{found['peak_mib']:,.0f}",
                *(f"{found[name]:.4f}" if name in found else "" for name in ("recall", "equal_ranks")),
            ]
            yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure, and print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000, help="default %(default)s")
    parser.add_argument("--width", type=int, default=1024, help="of the vectors (default %(default)s)")
    parser.add_argument("--queries", type=int, default=1000, help="default %(default)s")
    parser.add_argument("--k", type=int, default=10, help="length of the lists (default %(default)s)")
    parser.add_argument("--way", action="append", help=f"repeatable; by default {', '.join(WAYS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the data (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default %(default)s")
    parser.add_argument("--data", type=Path, help="folder to keep the data in, and to find them again")
    parser.add_argument("--json", type=Path, default=FILE, help="file to write to (default: %(default)s)")
    parser.add_argument("--run", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        found = measured(arguments.run[0], Path(arguments.run[1]), arguments.k)
        print(json.dumps({**found, "peak_mib": peak_mib()}))
        return
    ways = tuple(arguments.way or WAYS)
    setting = {name: getattr(arguments, name) for name in ("items", "width", "queries", "k", "seed", "threads")}
    facts = {"load average before": os.getloadavg()[0], "git_revision": versions()["git_revision"]}
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.data or Path(temporary)
        folder.mkdir(exist_ok=True)
        if not (folder / "queries.npz").exists():
            make_data(folder, arguments.items, arguments.width, arguments.queries, arguments.seed)
        found = compare(folder, ways, arguments.k, arguments.threads)
    known = read_report(arguments.json)
    report = known.setdefault(f"{arguments.items} x {arguments.width}", {"setting": setting, "ways": {}})
    if report["setting"] != setting:
        report.update(setting=setting, ways={})
    report["environment"] = versions()
    report["ways"].update({way: {**own, **facts} for way, own in found.items()})
    write_report(arguments.json, known)
    print("\n".join(_lines(known)))


if __name__ == "__main__":
    main()
