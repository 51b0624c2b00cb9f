"""Freed memory is used again without page faults."""

import ctypes
import platform
from types import SimpleNamespace

import pytest

from recbole_llm.llm.memory import keep_freed_memory
from tests.processes import fresh_python

FAULTS = """
import resource
import torch
from recbole_llm.llm.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**20, 2), torch.ones(2**20)  # 8 and 4 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
given_back = faults()
assert keep_freed_memory()
faults()
print(given_back, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_tensors_leave_their_memory_to_the_next():
    given_back, kept = map(int, fresh_python(code=FAULTS).stdout.split())
    assert kept < given_back / 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("its malloc may know other parameters"))
    assert not keep_freed_memory()


@pytest.mark.parametrize("refuses", [None, -3, -1])
def test_memory_is_kept_if_the_library_takes_both_thresholds(refuses, monkeypatch):
    """Those of malloc.h: M_MMAP_THRESHOLD is -3 and M_TRIM_THRESHOLD is -1."""
    given = {}

    def mallopt(parameter, value):
        given[parameter] = value
        return int(parameter != refuses)

    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert keep_freed_memory() == (refuses is None)
    assert given == {-3: 2**30} if refuses == -3 else given == {-3: 2**30, -1: 2**30}
