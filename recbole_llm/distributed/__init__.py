"""Several processes of one command: which one this is, how work is divided, how results are exchanged.

A launcher (``accelerate launch``, ``torchrun``) starts one command several times. All processes read the same data,
hold the same weights and run the same code. Work that takes time is divided by whole batches, exactly as one process
would make them: batch b goes to process b mod count. So a batch has the bits that it has in one process, wherever it is
computed, and what is put together again in the order of the rows equals what one process computes.

Plain data go over gloo, so that no GPU is asked; gradients go over what accelerate has chosen for their device. In a
command without a launcher nothing here imports torch.
"""

from recbole_llm.distributed.connection import OtherProcessEnded
from recbole_llm.distributed.launcher import (
    asks_for_shards,
    check_devices,
    check_launch,
    needs_whole_llm,
    processes_flag,
    refuse_several,
)
from recbole_llm.distributed.messages import hear, is_first_to_fail, tell
from recbole_llm.distributed.processes import Process, alone, launched, on_main, process
from recbole_llm.distributed.sharded import sharded_like, whole_tensor

__all__ = [
    "OtherProcessEnded",
    "Process",
    "alone",
    "asks_for_shards",
    "check_devices",
    "check_launch",
    "hear",
    "is_first_to_fail",
    "launched",
    "needs_whole_llm",
    "on_main",
    "process",
    "processes_flag",
    "refuse_several",
    "sharded_like",
    "tell",
    "whole_tensor",
]
