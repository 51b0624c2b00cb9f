"""Several processes of one command: what they deal out, tell one another, and say when one of them fails."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import pytest
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin

from recbole_llm import distributed
from recbole_llm.distributed import Process, alone, check_launch, launched, on_main, process, refuse_several
from recbole_llm.property_files import find_properties
from tests.processes import fresh_python, together
from tests.refusals import refused


@pytest.fixture(autouse=True)
def not_launched(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


# ------------------------------------------------------------------------------------------------------- one process


def test_a_command_that_nobody_launched_imports_no_torch():
    code = """
        import sys
        from recbole_llm.distributed import check_launch, on_main, process, refuse_several, tell
        check_launch(), refuse_several("x"), tell("key", "word"), process().gather(None)
        assert process().share_out([1, 2], str) == ["1", "2"] and on_main(lambda: 3) == 3
        assert not {"torch", "accelerate"} & set(sys.modules)
    """
    fresh_python(code=code)


@pytest.mark.parametrize("n_batches", [0, 1, 2, 7])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_batch_is_dealt_to_one_process(n_batches, count):
    batches = list(range(n_batches))
    dealt = [Process(rank, count).own(batches) for rank in range(count)]
    assert sorted(batch for own in dealt for batch in own) == batches
    assert all(batch % count == rank for rank, own in enumerate(dealt) for batch in own)


def test_a_process_that_works_alone_is_one_of_one(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (process(), launched()) == (Process(1, 2), Process(1, 2))
    with alone(), alone():
        assert (process(), launched()) == (Process(), Process(1, 2))
    assert process() == Process(1, 2)


@pytest.mark.parametrize(
    ("variables", "key"),
    [
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "RANK"),
    ],
)
def test_an_environment_that_no_launcher_gives_is_refused(monkeypatch, variables, key):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with refused(key, "environment", "accelerate launch or torchrun"):
        check_launch()


def test_a_refusal_names_the_flag_of_the_launcher_in_use(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with refused("nproc_per_node", "environment", "3 were started; give --nproc_per_node=1"):
        refuse_several("import")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with refused("num_processes", "environment", "3 were started; give --num_processes=1"):
        refuse_several("import")


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with refused("nproc_per_node", "environment", "4 processes on a machine with 2 GPUs; give --nproc_per_node=2"):
        distributed.check_devices()


@pytest.mark.parametrize("file", sorted((find_properties() / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_takes_our_configs_as_they_are_meant(file):
    config = load_config_from_file(str(file))  # refuses keys that it does not know
    is_fsdp = config.distributed_type == DistributedType.FSDP
    assert is_fsdp is ("fsdp" in file.stem) and (config.mixed_precision, config.use_cpu) == ("no", False)
    assert config.num_processes == int(re.match(r"\d+", file.stem)[0])
    if is_fsdp:
        known = {field.name for field in fields(FullyShardedDataParallelPlugin)} | {"version", "offload_params"}
        assert {key.removeprefix("fsdp_") for key in config.fsdp_config} <= known
        assert config.fsdp_config["fsdp_version"] == 2


def test_deepspeed_is_refused_in_a_line(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with refused("use_deepspeed", "conflict", "give --use_fsdp"):
        check_launch()


# ----------------------------------------------------------------------------------------------------- two processes

TALK = """
    import json, sys
    from pathlib import Path
    import numpy as np
    import torch
    from recbole_llm.distributed import alone, hear, on_main, process, tell
    from recbole_llm.errors import InputError

    me, folder = process(), Path(sys.argv[1])
    calls = []
    found = {"shared": me.share_out(list("abcde"), lambda batch: calls.append(batch) or batch.upper())}
    found["computed"] = calls
    found["rows"] = me.gather_rows({2 * row + me.rank: row for row in range(2)})
    found["from_main"] = me.from_main(["main"] if me.is_main else None)
    found["sum"] = me.sum(np.array([0.1, me.rank])).tolist()
    found["on_main"] = on_main(lambda: [process().count, process().rank])
    try:
        on_main(lambda: (_ for _ in ()).throw(InputError("topk", "0 is not allowed", kind="value")))
    except InputError as error:
        found["error"] = [str(error), error.key, error.kind]
    if me.is_main:
        with alone():
            tell("word", "there")
    found["heard"] = hear("word")
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    weights[0].grad = torch.tensor([1.0, 2.0]) * (1 + me.rank)
    if me.rank:
        weights[1].grad = torch.tensor([5.0, 6.0])
    me.sum_gradients(weights)
    found["gradients"] = [None if weight.grad is None else weight.grad.tolist() for weight in weights]
    (folder / f"{me.rank}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("talk")
    together(TALK, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_know_the_same(talk):
    assert [own.pop("computed") for own in talk] == [["a", "c", "e"], ["b", "d"]]
    assert talk[0] == talk[1]
    assert talk[0] == {
        "shared": list("ABCDE"),
        "rows": {"0": 0, "2": 1, "1": 0, "3": 1},
        "from_main": ["main"],
        "sum": [0.2, 1.0],
        "on_main": [1, 0],
        "error": ["topk: 0 is not allowed", "topk", "value"],
        "heard": "there",
        "gradients": [[3.0, 6.0], [5.0, 6.0], None],
    }


def test_the_first_process_that_fails_says_why_and_the_other_ends_quietly():
    code = """
        import sys
        from recbole_llm.distributed import OtherProcessEnded, hear, is_first_to_fail, process
        process().gather(None)
        if process().rank == 1:
            print("first" if is_first_to_fail() else "second")
            sys.exit(2)
        try:
            hear("never told")
        except OtherProcessEnded:
            print("first" if is_first_to_fail() else "second")
            sys.exit(1)
    """
    main, other = together(code, status=None)
    assert (main.status, main.stdout.strip()) == (1, "second")
    assert (other.status, other.stdout.strip()) == (2, "first")


def test_a_lost_connection_is_another_process_that_ended():
    code = """
        import os, sys
        from recbole_llm.distributed import OtherProcessEnded, process
        process().gather(None)
        if process().rank == 1:
            os._exit(9)
        try:
            process().gather("anybody?")
        except OtherProcessEnded:
            sys.exit(3)
    """
    main, other = together(code, status=None)
    assert (main.status, other.status) == (3, 9)


def test_what_only_main_computes_needs_no_other_process():
    assert on_main(lambda: process().share_out([1, 2, 3], float)) == [1.0, 2.0, 3.0]
