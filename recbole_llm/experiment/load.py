"""A finished run again, from its folder."""

from __future__ import annotations

from pathlib import Path

from recbole_llm.experiment.run import Run, read_facts
from recbole_llm.experiment.trained import config_of


def load_run(folder: str | Path) -> Run:
    """A finished run, as :func:`recbole_llm.run` returned it; the model is loaded once it is asked for.

    Args:
        folder: a run folder, ``saved/<model>-<dataset>-<time>``.

    Raises:
        InputError: no run folder, or its data are missing.

    Example:
        >>> load_run("saved")
        Traceback (most recent call last):
        ...
        recbole_llm.errors.InputError: saved is not a run folder: ...
    """
    folder = Path(folder)
    config = config_of(folder)
    return Run(folder, config, *read_facts(folder, config))
