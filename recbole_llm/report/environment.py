"""What a result depends on besides the settings: versions, machine, commit, data."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

from recbole_llm.errors import InputError
from recbole_llm.hashing import hash_file

NOT_INSTALLED, NO_CHECKOUT = "not installed", "not a checkout"
CHECKOUT = Path(__file__).resolve().parents[2]

_PACKAGES = {  # name in the report -> distributions that provide it
    "recbole": ("recbole",),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "peft": ("peft",),
    "accelerate": ("accelerate",),
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "pandas": ("pandas",),
    "faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cu11", "faiss"),
    "POT": ("POT",),
}


def versions() -> dict[str, str]:
    """Versions and machine facts, read without importing any of the packages.

    Returns:
        ``python``, one entry per package (``not installed`` where missing), ``platform``, ``cpu_count`` and
        ``git_revision`` (of :func:`git_revision`; ``not a checkout`` for an installed package).

    Example:
        >>> versions()["python"].count(".")
        2
    """
    facts = {"python": platform.python_version(), "recbole-llm": _own_version()}
    facts.update({name: _version(distributions) for name, distributions in _PACKAGES.items()})
    facts["platform"] = platform.platform()
    facts["cpu_count"] = str(os.cpu_count() or "unknown")
    facts["git_revision"] = _revision_of_this_code()
    return facts


def revision() -> str:
    """What tells this code from another: its commit, or the package's version where it is no checkout."""
    found = _revision_of_this_code()
    return f"version {_own_version()}" if found == NO_CHECKOUT else found


@cache
def _revision_of_this_code() -> str:
    """As it was found first: what a process runs does not follow a checkout that changes under it."""
    return git_revision(CHECKOUT)


def _own_version() -> str:
    """Of this code, which a checkout on the path runs without being installed."""
    return str(import_module("recbole_llm").__version__)


def git_revision(folder: Path) -> str:
    """Short revision of the checkout whose root is ``folder``; a checkout that merely contains it does not count.

    ``-dirty`` follows where tracked files have changed, Markdown aside: no result depends on a page, and a table that
    is written into one would mark all later results.

    Example:
        >>> git_revision(Path("."))
        'not a checkout'
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != Path(folder).resolve():
        return NO_CHECKOUT
    found = _git(folder, "describe", "--always", "--exclude", "*")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":(exclude)*.md")
    return f"{found}-dirty" if found and changed != "" else found or "no commit"


def data_hash(paths: Iterable[str | os.PathLike[str]]) -> str:
    """SHA-256 of data files: of their names and bytes, not of their folder nor of the order given.

    Args:
        paths: files, such as the atomic files of a data set.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: a file cannot be read.

    Example:
        >>> _ = Path("a.inter").write_text("user_id:token")
        >>> len(data_hash(["a.inter"]))
        64
    """
    digest = hashlib.sha256()
    for path in sorted(map(Path, paths), key=lambda path: (path.name, str(path))):
        try:
            content = hash_file(path)
        except OSError as error:
            raise InputError(
                f"cannot read the data file {path}: {error.strerror}; check data_path", kind="file"
            ) from error
        digest.update(path.name.encode() + b"\0" + bytes.fromhex(content))
    return digest.hexdigest()


@cache
def _version(distributions: tuple[str, ...]) -> str:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return NOT_INSTALLED


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, None if it fails or git is missing."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def peak_mib() -> float:
    """Most memory this process has held so far, in MiB.

    Example:
        >>> peak_mib() > 0
        True
    """
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a Linux process also counts the parent it was started from
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource  # Windows has none

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
