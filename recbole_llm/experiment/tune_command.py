"""The command ``recbole-llm tune``: search for the settings of one model, on its validation rows."""

from __future__ import annotations

from collections.abc import Sequence

from recbole_llm.experiment.tune_plan import TRIALS, Plan, check_plan, parse_plan
from recbole_llm.experiment.tune_space import KINDS
from recbole_llm.logs import console_log

HELP = f"""\
usage: recbole-llm tune --model=<model> --dataset=<data set> --params_file=hyper.test [--<key>=<value> ...]

Searches for the settings of one model that are best on the validation rows, then evaluates them on the test rows.

  --params_file=hyper.test        what to search, one setting per line, in RecBole's format:
                                      learning_rate loguniform -8,0
                                      alpha choice [0, 0.5, 1]
                                  kinds: {", ".join(KINDS)} (loguniform with plain bounds)
  --params="alpha choice [0, 1]"  the same on the command line, with ';' between settings
  --sampler=tpe                   tpe, random, or grid: every combination
  --trials=N                      number of trials (default: {TRIALS}, or all of a grid)
  --pruner=asha                   stop trials that fall behind after some epochs (default: none)
  --asha_min_epochs=1             validated epochs before the first comparison
  --asha_reduction=3              one trial in this many continues at each comparison
  --<key>=<value>                 a setting of all trials, as for a run; config files too

The same command resumes a stopped search; in several terminals, the processes share the trials.
"""


def parse(words: Sequence[str]) -> Plan:
    """The words of a command line.

    Raises:
        InputError: a wrong word.
    """
    return parse_plan(words)


def main(words: Sequence[str]) -> None:
    """Run a search and print its trials.

    Raises:
        InputError: a wrong word, setting or file.
    """
    if any(word.partition("=")[0] in ("--help", "-h") for word in words):
        print(HELP)
        return
    plan = check_plan(parse(words))
    from transformers.utils import logging as transformers_logging  # loaded once the words are right

    from recbole_llm.experiment.tune import BEST, run_plan

    transformers_logging.disable_progress_bar()
    with console_log():
        tuned = run_plan(plan, words)
    print(tuned.text())
    print(f"run the best settings: recbole-llm --config_files={tuned.folder / BEST}")
    print(f"results: {tuned.folder}")
