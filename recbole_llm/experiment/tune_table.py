"""The trials of a search as a table, and the best one's settings as a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from recbole_llm.disk import write_json
from recbole_llm.property_files import dump_yaml
from recbole_llm.report.layout import metric_label
from recbole_llm.settings.values import write_setting, write_value

if TYPE_CHECKING:
    import pandas as pd
    from optuna.trial import FrozenTrial

    from recbole_llm.settings.config import Config

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
CHOSEN = "Chosen on validation rows alone; the test rows are evaluated for the best trial, and for no other one."


@dataclass(frozen=True)
class TrialTable:
    """Trials in their order.

    Attributes:
        metric: metric that the trials are compared by, on validation rows.
        names: names of the settings that were searched.
        lines: a record per trial: ``trial`` (from 1), ``state``, ``score`` (of a pruned one where it was ended; None
            where there is none), ``values``, ``epochs``, ``note``, ``scores`` (by validated epoch), ``valid`` (all
            metrics), ``folder``.
        best_number: number of the best trial, from 1; None where no trial has ended with a score.
        command: the command line; empty where there was none.
    """

    metric: str
    names: tuple[str, ...]
    lines: tuple[dict[str, Any], ...]
    best_number: int | None
    command: str = ""

    @classmethod
    def of(
        cls,
        trials: Sequence[FrozenTrial],
        values: Sequence[Mapping[str, Any]],
        metric: str,
        best: int | None,
        command: str = "",
    ) -> TrialTable:
        """The table of Optuna's trials.

        Args:
            trials: Optuna's trials, in order.
            values: setting to value, for each trial.
            metric: metric that trials are compared by, on validation rows.
            best: number of the best one, from 0.
            command: the command line; empty where there was none.
        """
        lines = [
            {
                "trial": trial.number + 1,
                "state": STATES[trial.state.name],
                "score": trial.value,
                "values": dict(own),
                "epochs": trial.user_attrs.get("epochs"),
                "note": trial.user_attrs.get("reason", ""),
                "scores": dict(sorted(trial.intermediate_values.items())),
                "valid": trial.user_attrs.get("valid", {}),
                "folder": trial.user_attrs.get("folder", ""),
            }
            for trial, own in zip(trials, values, strict=True)
        ]
        names = tuple(values[0]) if values else ()
        return cls(metric, names, tuple(lines), None if best is None else best + 1, command)

    @property
    def n_ended(self) -> int:
        """Number of trials that ended with a score, pruned ones included."""
        return sum(line["state"] in ("complete", "pruned") for line in self.lines)

    def text(self) -> str:
        """The table as text for the terminal, the best trial marked by a star."""
        shown = str(tabulate(self._cells("*"), self._head(), tablefmt="plain", disable_numparse=True))
        return "\n".join(line.rstrip() for line in shown.splitlines())

    def markdown(self) -> str:
        """The table as Markdown for GitHub, the best trial in bold."""
        cells = [[cell.replace("|", "\\|") for cell in row] for row in self._cells("**")]
        lines = [
            "# Trials",
            "",
            str(tabulate(cells, self._head(), tablefmt="github", disable_numparse=True)),
            "",
            CHOSEN,
        ]
        return "\n".join([*lines, *(["", f"Command: `{self.command}`"] if self.command else [])]) + "\n"

    def csv(self) -> str:
        """One line per trial, unrounded; the score's column is ``valid_<metric>``."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self._columns())
        for line in self.lines:
            values = [write_setting(name, line["values"][name]) for name in self.names]
            writer.writerow([line["trial"], line["state"], line["score"], *values, line["epochs"], line["note"]])
        return stream.getvalue()

    def to_frame(self) -> pd.DataFrame:
        """One line per trial, unrounded."""
        import pandas as pd

        rows = [
            [line["trial"], line["state"], line["score"], *line["values"].values(), line["epochs"], line["note"]]
            for line in self.lines
        ]
        return pd.DataFrame(rows, columns=self._columns())

    def write(self, folder: Path, stem: str) -> None:
        """Write ``<stem>.csv``, ``<stem>.md`` and ``<stem>.json``, which also holds scores by epoch and run folders."""
        (folder / f"{stem}.csv").write_text(self.csv(), encoding="utf-8")
        (folder / f"{stem}.md").write_text(self.markdown(), encoding="utf-8")
        facts = {"metric": self.metric, "best": self.best_number, "command": self.command, "trials": self.lines}
        write_json(folder / f"{stem}.json", facts)

    def _columns(self) -> list[str]:
        return ["trial", "state", f"valid_{self.metric}", *self.names, "epochs", "note"]

    def _head(self) -> list[str]:
        return ["Trial", f"Valid {metric_label(self.metric)}", *self.names, "Epochs", "State"]

    def _cells(self, mark: str) -> list[list[str]]:
        rows = []
        for line in self.lines:
            score = "-" if line["score"] is None else f"{line['score']:.4f}"
            values = [_short(line["values"][name]) for name in self.names]
            state = f"{line['state']}: {line['note']}" if line["note"] else line["state"]
            number = str(line["trial"])
            if line["trial"] == self.best_number:
                number, score = (f"{mark}{cell}{mark if mark == '**' else ''}" for cell in (number, score))
            rows.append([number, score, *values, "-" if line["epochs"] is None else str(line["epochs"]), state])
        return rows


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else write_value(value)


def write_best(file: Path, config: Config) -> Path:
    """Write the settings of a run that differ from defaults as a config file, paths as they are from any folder."""
    found = config.settings()
    given = {key: found[key] for key in found["given"] if key in found}
    head = "# The best trial's settings: recbole-llm --config_files=" + str(file) + "\n"
    chosen = {"model": found["model"], "dataset": found["dataset"], **given}
    file.write_text(head + dump_yaml(chosen), encoding="utf-8")
    return file
