"""Files of finished runs: the table in all formats, plots, rows, the HTML report."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_llm.evaluation import protocol_of
from recbole_llm.evaluation.protocol_sentences import protocol_in_words
from recbole_llm.experiment.comparison import compare_runs, find_baseline, leading_config
from recbole_llm.experiment.examples import FILE as EXAMPLES
from recbole_llm.prompt.settings import most_shown
from recbole_llm.report import (
    Changed,
    ExampleUser,
    PageFacts,
    ResultTable,
    data_hash,
    example_users,
    plot_table,
    versions,
    write_page,
)
from recbole_llm.report.comparison_plots import CAPTIONS
from recbole_llm.report.rows import NEEDS_PYARROW, has_pyarrow
from recbole_llm.settings.config import Config

if TYPE_CHECKING:
    from recbole_llm.experiment.run_record import Run

log = logging.getLogger(__name__)


def data_hash_of(config: Config) -> str:
    """Digest of the files of a run's data set."""
    return data_hash(sorted(Path(config["data_path"]).glob(f"{config['dataset']}.*")))


def table_of(runs: Sequence[Run], command: str = "", baseline: str = "") -> ResultTable:
    """The table of runs, with its comparisons where there are several models.

    Args:
        runs: evaluated on the same rows.
        command: the command line that gave them.
        baseline: the model that the others are compared with; the usual one by default.
    """
    labels = list(dict.fromkeys(run.result.model for run in runs))
    config = leading_config(runs)
    protocol = protocol_of(config)
    return ResultTable(
        tuple(sorted((run.result for run in runs), key=lambda result: labels.index(result.model))),
        environment=versions(),
        data_hash={config["dataset"]: data_hash_of(config)},
        command=command,
        title=protocol.title,
        reading=runs[0].data["lines"],
        metric=protocol.usual_metric,
        comparisons=compare_runs(runs, find_baseline(baseline, runs)) if len(labels) > 1 else (),
    )


def write_results(runs: Sequence[Run], table: ResultTable, folder: Path, want_rows: bool = False) -> None:
    """Write a table in every form, its plots, ``rows.parquet`` and ``report.html``.

    Args:
        runs: runs of the table.
        table: :func:`table_of` the runs.
        folder: folder to write into.
        want_rows: whether to say so where ``rows.parquet`` cannot be written.
    """
    table.write(folder)
    if has_pyarrow():
        table.to_parquet(folder / "rows.parquet")
    elif want_rows:
        log.info("rows.parquet, what every test row got, is left out: %s", NEEDS_PYARROW)
    write_report(runs, table, folder)


def write_report(runs: Sequence[Run], table: ResultTable, folder: Path) -> Path:
    """Draw the plots of a table and write the page that shows everything; returns the page."""
    drawn = [path for path in plot_table(table, folder) if path.suffix == ".svg"]
    facts = PageFacts(
        protocol=_in_words(runs),
        settings=changed_settings(runs),
        examples=_examples(runs),
        pictures={CAPTIONS[path.stem]: path.read_text(encoding="utf-8") for path in drawn},
    )
    return write_page(table, folder, facts)


def _in_words(runs: Sequence[Run]) -> dict[str, str]:
    """How the runs were evaluated, and how they are compared."""
    chosen_by: dict[str, dict[str, None]] = {}  # the names as keys, as seeds of one model name it again
    for run in runs:
        chosen_by.setdefault(protocol_of(run.config).valid_metric, {})[run.result.model] = None
    words = protocol_in_words(
        protocol_of(leading_config(runs)),
        {metric: list(models) for metric, models in chosen_by.items()},
        {run.result.model: most_shown(run.config) for run in runs},
        runs[0].result.n_rows,
    )
    seeds = list(dict.fromkeys(run.result.seed for run in runs))
    words["Seeds"] = f"Every model is trained with {_listed([str(seed) for seed in seeds])}."
    if any(run.config.is_llm for run in runs) and not protocol_of(runs[0].config).has_labels:
        words["Titles"] = "An LLM answers with titles; of items that share one, the lowest id stands for all."
    return words


def _listed(seeds: Sequence[str]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'the seeds'} {', '.join(seeds)}"


def changed_settings(runs: Sequence[Run]) -> list[Changed]:
    """The settings that differ from their defaults, in the order of their names; one line for models that share one."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.result.model, run)
    models: dict[tuple[str, str, str], list[str]] = {}
    for label, run in first.items():
        for key, (value, default) in run.config.resolution.differences().items():
            models.setdefault((key, _text(value), _text(default)), []).append(label)
    changed = [
        Changed(key, value, default, "all" if len(own) == len(first) else ", ".join(own))
        for (key, value, default), own in models.items()
    ]
    return sorted(changed, key=lambda one: one.key)


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def _examples(runs: Sequence[Run]) -> list[ExampleUser]:
    """The example rows of the first run of each model, as far as their folders hold some."""
    found: dict[str, Any] = {}
    for run in runs:
        file = run.folder / EXAMPLES
        if run.result.model not in found and file.is_file():
            found[run.result.model] = json.loads(file.read_text(encoding="utf-8"))
    return example_users(found)
