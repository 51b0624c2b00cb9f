"""The command ``recbole-llm audit``: leaks and duplicates in a data set, its split and its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from recbole_llm.disk import write_json
from recbole_llm.errors import InputError
from recbole_llm.logs import console_log
from recbole_llm.settings.check import check_command
from recbole_llm.settings.command import Command, parse_command

DEFAULT_MODEL = "BIGRec"
HELP = """\
usage: recbole-llm audit --dataset=<data set> [--model=<model>] [--<key>=<value> ...]

Looks for what can inflate metrics: duplicates, targets in histories, training rows later than the test, prompts seen in
training; and asks the untuned LLM what it already knows. Prints a line per check, marks suspicious ones with !, and
writes audit.md and audit.json to saved/audit-<data set>-<time>/.

  --dataset=<data set>            the data set
  --model=<model>                 the model whose prompts are checked (default: BIGRec)
  --<key>=<value>                 a setting, as for a run; config files too
"""


def parse(words: Sequence[str]) -> Command:
    """The words of ``recbole-llm audit``: those of a run, of one LLM model; BIGRec where none is named.

    Raises:
        InputError: a wrong word, or several models.
    """
    has_model = any(word.partition("=")[0] == "--model" for word in words)
    command = parse_command(list(words) if has_model else [f"--model={DEFAULT_MODEL}", *words])
    if not command.help and len(command.models) > 1:
        raise InputError("model", f"an audit is of one model, not of {len(command.models)}; name one", kind="conflict")
    return command


def main(words: Sequence[str]) -> None:
    """Print what was found, and write it beside.

    Raises:
        InputError: a wrong word, setting or file.
    """
    command = parse(words)
    if command.help:
        print(HELP)
        return
    check_command(command)
    from transformers.utils import logging as transformers_logging

    from recbole_llm.evaluation import protocol_of
    from recbole_llm.experiment.audit import audit  # RecBole and torch are loaded once the words are right
    from recbole_llm.experiment.run_folder import new_folder
    from recbole_llm.settings.command import settings_for
    from recbole_llm.settings.config import Config

    transformers_logging.disable_progress_bar()
    with console_log():
        (name,) = command.models
        config = Config(name, command.dataset, [], settings_for(name, command))
        if not config.is_llm or protocol_of(config).has_labels or config.resolution.facts.reads_items:
            raise InputError("model", f"{name} answers no prompts with titles; name BIGRec or LLaRA", kind="conflict")
        findings = audit(config)
    folder = new_folder(Path(config["checkpoint_dir"]), f"audit-{command.dataset}")
    text = "\n".join(f"{'!' if finding.warns else ' '} {finding}" for finding in findings)
    (folder / "audit.md").write_text(f"# Audit of {command.dataset}\n\n```text\n{text}\n```\n", encoding="utf-8")
    write_json(folder / "audit.json", [asdict(finding) for finding in findings])
    print(text)
    n_warning = sum(finding.warns for finding in findings)
    print(f"{n_warning} of {len(findings)} checks warn (marked !): {folder}")
