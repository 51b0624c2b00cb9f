"""The connection between processes: a group for plain data, and the launcher's store of messages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

PATIENCE = timedelta(days=30)  # another may train a model meanwhile; one that has died shows by its connection


class OtherProcessEnded(RuntimeError):
    """Another process of the command has ended, so that this one cannot go on."""


def is_on(name: str) -> bool:
    """Whether an environment variable of the launcher says yes."""
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


@cache
def group() -> Any:
    """The group over which plain data go; all processes make it at once, on first use."""
    import torch.distributed as dist
    from accelerate import PartialState

    PartialState(cpu=is_on("ACCELERATE_USE_CPU"), timeout=PATIENCE)
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def is_connected() -> bool:
    """Whether this process has talked to the others."""
    return bool(group.cache_info().currsize)


def store() -> Any:
    """What the launcher keeps words in, which outlives a process."""
    from torch.distributed.distributed_c10d import _get_default_store

    group()
    return _get_default_store()


@contextmanager
def talking() -> Iterator[None]:
    """A context in which a lost connection is what it means."""
    try:
        yield
    except RuntimeError as error:  # torch's errors of groups and stores
        raise OtherProcessEnded(str(error)) from error
