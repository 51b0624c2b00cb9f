"""``load_run``: a finished run, read from its folder."""

from __future__ import annotations

from pathlib import Path

from recbole_llm.experiment.run_record import Run, read_facts
from recbole_llm.experiment.trained import config_of


def load_run(folder: str | Path, *, trust_remote_code: bool = False, data_path: str | Path | None = None) -> Run:
    """Load a finished run, as :func:`recbole_llm.run` returned it. The model is loaded on first use.

    Args:
        folder: a run folder, ``saved/<model>-<dataset>-<time>``.
        trust_remote_code: whether code that comes with the run's LLM may run; needed for a run that was made with it.
        data_path: where the data set is now, if it was moved without the run; a project that was moved as a whole
            needs no path.

    Raises:
        InputError: no run folder, its data are missing, or its LLM needs ``trust_remote_code``.

    Example:
        >>> load_run("saved")
        Traceback (most recent call last):
        ...
        recbole_llm.errors.InputError: saved is not a run folder: ...
    """
    folder = Path(folder)
    config = config_of(folder, trust_remote_code, data_path)
    return Run(folder, config, *read_facts(folder, config))
