"""What a launcher requested, read from its environment variables, and what of it is refused."""

from __future__ import annotations

import os

from recbole_llm.distributed.connection import is_on
from recbole_llm.distributed.processes import launched
from recbole_llm.errors import InputError


def processes_flag() -> str:
    """The launcher's word for the number of processes."""
    is_accelerate = any(name.startswith("ACCELERATE_") for name in os.environ)
    return "--num_processes" if is_accelerate else "--nproc_per_node"


def check_launch() -> None:
    """Refuse an environment that no launcher gives.

    Raises:
        InputError: which variable is wrong.
    """
    numbers = {name: os.environ.get(name) for name in ("WORLD_SIZE", "RANK")}
    for name, text in numbers.items():
        if text is not None and not text.isdecimal():
            raise InputError(
                name, f"{text!r} is no number; start with accelerate launch or torchrun", kind="environment"
            )
    one = launched()
    if numbers["RANK"] is None and one.count > 1:
        message = f"{one.count} processes, but RANK is not set; start with accelerate launch or torchrun"
        raise InputError("WORLD_SIZE", message, kind="environment")
    if is_on("ACCELERATE_USE_DEEPSPEED"):
        message = "DeepSpeed's engine is not used; give --use_fsdp, or the processes alone, as in properties/accelerate"
        raise InputError("use_deepspeed", message, kind="conflict")
    if one.rank >= max(one.count, 1) or one.count < 1:
        message = f"process {one.rank} of {one.count} cannot be; start with accelerate launch or torchrun"
        raise InputError("RANK", message, kind="environment")


def refuse_several(what: str) -> None:
    """Refuse a command that one process runs.

    Args:
        what: names it.

    Raises:
        InputError: a launcher has started several.
    """
    count = launched().count
    if count > 1:
        flag = processes_flag()
        message = f"{what} runs in one process, and {count} were started; give {flag}=1, or start it without a launcher"
        raise InputError(flag.removeprefix("--"), message, kind="environment")


def check_devices() -> None:
    """Refuse more processes on this machine than it has GPUs, where it has any that may be used.

    Raises:
        InputError: with how many there are.
    """
    import torch

    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if gpus and here > gpus:
        flag = processes_flag()
        message = f"{here} processes on a machine with {gpus} GPUs; give {flag}={gpus} for each machine"
        raise InputError(flag.removeprefix("--"), message, kind="environment")


def asks_for_shards() -> bool:
    """Whether the launcher asks for FSDP."""
    return is_on("ACCELERATE_USE_FSDP")


def needs_whole_llm(key: str, what: str) -> InputError:
    """The refusal of what is not trained on sharded weights.

    Args:
        key: the setting.
        what: it asks for.
    """
    message = (
        f"{what} needs the whole LLM in every process; start without FSDP, as with properties/accelerate/1x80gb.yaml"
    )
    return InputError(key, message, kind="conflict")
