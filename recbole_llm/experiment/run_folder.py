"""The folder of one run: settings, log, results."""

from __future__ import annotations

import pickle
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_llm.disk import write_json
from recbole_llm.distributed import on_main
from recbole_llm.errors import InputError, first_line
from recbole_llm.property_files import dump_yaml
from recbole_llm.settings.stage_checks import not_writable

if TYPE_CHECKING:
    from recbole_llm.settings.config import Config


# What parsers of JSON, arrays, tensors and tables raise on files that are cut short or hold something else.
_UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError),
    *(zipfile.BadZipFile, pickle.UnpicklingError),
)


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """A context in which a run's files are read: what is cut short, foreign or missing becomes one line.

    Raises:
        InputError: naming the folder and what a file holds instead.
    """
    try:
        yield
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(
            f"{folder}: a file of this run is damaged, missing or of another run ({type(error).__name__}: "
            f"{first_line(error)}); copy the whole folder again, or train again",
            kind="file",
        ) from error


class RunFolder:
    """``<checkpoint_dir>/<model>-<dataset>-<time>/``.

    Files: ``config.yaml`` (every setting, resolved; a config file for the same run), the log, ``stages.json`` (the
    stages it used), ``prompt.json``, ``adapter/`` (peft's own format, with a card) or ``model.pth`` (RecBole's),
    ``history.json``, ``timing.json`` (what the stages took), ``gammas.json`` (of re-weighting), ``metrics.json``,
    ``data.json`` (counts of the lines of the data set's files), ``ids.json`` (the numbers of users and items),
    ``valid_ranks.csv`` and ``test_ranks.csv``, or ``valid_clicks.csv`` and ``test_clicks.csv`` where clicks are
    predicted, or ``valid_answers.csv`` and ``test_answers.csv`` among candidates; with a curriculum also
    ``stage_table.md`` (and ``.csv``, ``.json``), ``curriculum.png``, ``curriculum.json``, ``distilled.json`` and, of
    several values of ``alpha``, ``curricula.csv``.

    Args:
        config: the run's config.
        label: the model's name in tables, which may say more than the model's own name.
    """

    def __init__(self, config: Config, label: str) -> None:
        self.path = on_main(lambda: _begin(config, label))
        self.log = self.path / f"{self.path.name}.log"

    def write(self, name: str, value: object) -> None:
        """Write plain data as JSON."""
        write_json(self.path / name, value)


def _begin(config: Config, label: str) -> Path:
    """Make the folder of a run that begins."""
    path = new_folder(Path(config["checkpoint_dir"]), f"{label}-{config['dataset']}")
    (path / "config.yaml").write_text(dump_yaml(config.settings()), encoding="utf-8")
    return path


def folder_stem(name: str) -> str:
    """What the name of a folder begins with: letters, digits, dots, dashes and underscores."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)


def new_folder(parent: Path, name: str) -> Path:
    """Make ``<name>-<time>``, a folder that did not exist before: what starts in the same second does not share one.

    Raises:
        InputError: ``parent``, the ``checkpoint_dir``, cannot be written to.
    """
    stem = f"{folder_stem(name)}-{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    for number in range(1, 1000):
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
        except OSError as error:
            if path.is_dir():
                continue
            raise not_writable(parent, error.strerror) from error
        return path
    raise InputError(f"checkpoint_dir: too many folders named {stem} in {parent}; set another one", kind="file")
