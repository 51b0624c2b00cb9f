"""Freed memory is used again without page faults."""

import platform

import pytest

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
