"""The stage store: computed once, resumed after a kill, rebuilt when damaged, never shared by different facts."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest
import torch
import transformers

import recbole_llm
from recbole_llm.stages import UNFINISHED, StageStore, find_damage, fingerprint, stage_seed
from tests.processes import forked_python, fresh_python
from tests.refusals import refused
from tests.stages import run_stage


def writer(text: str, calls: list[str]):
    def compute(folder: Path) -> None:
        calls.append(text)
        (folder / "result.txt").write_text(text)

    return compute


def test_the_same_facts_are_computed_once_in_any_order(tmp_path):
    calls: list[str] = []
    first = run_stage(StageStore(tmp_path), "s", {"a": 1, "b": [2]}, writer("x", calls))
    again = run_stage(StageStore(tmp_path), "s", {"b": [2], "a": 1}, writer("y", calls))
    assert first == again and calls == ["x"] and (first / "result.txt").read_text() == "x"


def test_other_facts_are_another_stage(tmp_path):
    calls: list[str] = []
    store = StageStore(tmp_path)
    assert run_stage(store, "s", {"a": 1}, writer("x", calls)) != run_stage(store, "s", {"a": 2}, writer("y", calls))
    assert calls == ["x", "y"]


@pytest.mark.parametrize("damage", ["changed", "removed", "no manifest"])
def test_a_damaged_stage_is_rebuilt_and_the_log_says_so(tmp_path, caplog, damage):
    calls: list[str] = []
    store = StageStore(tmp_path)
    place = run_stage(store, "s", {}, writer("x", calls))
    if damage == "changed":
        (place / "result.txt").write_text("z")
    elif damage == "removed":
        (place / "result.txt").unlink()
    else:
        (place / "stage.json").write_text("{")
    assert find_damage(place)
    assert (run_stage(store, "s", {}, writer("x", calls)) / "result.txt").read_text() == "x"
    assert calls == ["x", "x"] and "damaged" in caplog.text and find_damage(place) is None


def test_a_failed_stage_leaves_no_result_and_a_resumable_one_goes_on(tmp_path):
    def fails_after_one_file(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("power cut")

    store = StageStore(tmp_path)
    with pytest.raises(RuntimeError):
        run_stage(store, "s", {}, fails_after_one_file)
    seen: list[list[str]] = []
    run_stage(store, "s", {}, lambda folder: seen.append(sorted(os.listdir(folder))), resumable=True)
    assert seen == [["half.txt"]]


def test_what_is_not_resumable_starts_from_an_empty_folder(tmp_path):
    store = StageStore(tmp_path)
    with pytest.raises(ZeroDivisionError):
        run_stage(store, "s", {}, lambda folder: [(folder / "half.txt").write_text("half"), 1 / 0])
    assert not (run_stage(store, "s", {}, lambda folder: None) / "half.txt").exists()


def test_a_killed_process_holds_no_lock_and_leaves_no_final_folder(tmp_path):
    program = f"""
        import os, signal
        from recbole_llm.stages import StageStore
        from tests.stages import run_stage
        def compute(folder):
            (folder / "half.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        run_stage(StageStore({str(tmp_path)!r}), "s", {{"a": 1}}, compute, resumable=True)
    """
    fresh_python(code=program, status=-signal.SIGKILL)
    assert [path.name for path in tmp_path.glob("s-*")] == [f"s-{fingerprint({'a': 1})}.partial"]
    calls: list[str] = []
    place = run_stage(StageStore(tmp_path), "s", {"a": 1}, writer("x", calls), resumable=True)
    assert calls == ["x"] and (place / "half.txt").exists()


def test_the_manifest_tells_what_the_stage_depends_on(tmp_path):
    store = StageStore(tmp_path)
    place = run_stage(store, "s", {"a": 1}, writer("x", []))
    manifest = json.loads((place / "stage.json").read_text())
    assert (
        manifest["facts"] == {"a": 1} and list(manifest["files"]) == ["result.txt"] and store.used == {"s": place.name}
    )


def test_every_stage_draws_from_its_own_seed():
    seeds = {stage_seed(seed, name, epoch) for seed in (1, 2) for name in ("a", "b") for epoch in (0, 1)}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)
    assert stage_seed(1, "a") == stage_seed(1, "a")


def test_facts_must_be_plain_data():
    with pytest.raises(TypeError):
        fingerprint({"a": object()})


# ------------------------------------------------------------------------------------------------ formats and versions


def in_format(number: int, text: str = "x"):
    """``run_stage`` for a stage of this format."""

    def get(store: StageStore) -> Path:
        return run_stage(store, "s", {"a": 1}, writer(text, []), format_number=number)

    return get


def test_the_record_tells_the_format_and_who_wrote_it(tmp_path):
    manifest = json.loads((in_format(1)(StageStore(tmp_path)) / "stage.json").read_text())
    assert manifest["format"] == 1
    assert manifest["versions"] == {
        "recbole_llm": recbole_llm.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def test_a_stage_without_a_format_is_of_the_first_and_of_any_versions(tmp_path, caplog):
    place = in_format(1)(StageStore(tmp_path))
    manifest = json.loads((place / "stage.json").read_text())
    old = {name: value for name, value in manifest.items() if name not in ("format", "versions")}
    for record in (old, {**manifest, "versions": {"torch": "1.0"}}):
        (place / "stage.json").write_text(json.dumps(record))
        store = StageStore(tmp_path)
        assert (in_format(1, "y")(store) / "result.txt").read_text() == "x" and store.reused == ["s"]
    assert "rebuilding" not in caplog.text


@pytest.mark.parametrize(("before", "now"), [(1, 2), (3, 2)])
def test_a_stage_of_another_format_is_rebuilt_and_one_line_says_so(tmp_path, caplog, before, now):
    in_format(before)(StageStore(tmp_path))
    store = StageStore(tmp_path)
    assert (in_format(now, "y")(store) / "result.txt").read_text() == "y" and not store.reused
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"format {before} by recbole_llm {recbole_llm.__version__}" in line and f"writes format {now}" in line


def test_what_another_format_has_begun_is_not_gone_on_from(tmp_path):
    def half(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_stage(StageStore(tmp_path), "s", {}, half, resumable=True)
    seen: list[list[str]] = []
    run_stage(StageStore(tmp_path), "s", {}, lambda folder: seen.append(os.listdir(folder)), True, format_number=2)
    assert seen == [[]] and not list(tmp_path.glob("*.partial*"))


# ------------------------------------------------------------------------------------- what is kept until it is whole


def test_what_is_unfinished_survives_a_kill_and_goes_with_the_whole_stage(tmp_path):
    def half(folder: Path) -> None:
        (folder / UNFINISHED).mkdir(exist_ok=True)
        (folder / UNFINISHED / "rows").write_text("half")
        (folder / "result.txt").write_text("torn")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_stage(StageStore(tmp_path), "s", {}, half)
    seen: list[list[str]] = []
    place = run_stage(StageStore(tmp_path), "s", {}, lambda folder: seen.append(os.listdir(folder)))
    assert seen == [[UNFINISHED]] and os.listdir(place) == ["stage.json"]


def test_a_stage_that_lacked_its_name_alone_is_not_computed_again(tmp_path, monkeypatch):
    replace = os.replace

    def cut(source: object, target: object) -> None:
        if str(source).endswith(".partial"):
            raise KeyboardInterrupt
        replace(source, target)

    calls: list[str] = []
    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        run_stage(StageStore(tmp_path), "s", {}, writer("x", calls))
    monkeypatch.undo()
    place = run_stage(StageStore(tmp_path), "s", {}, writer("y", calls), resumable=True)
    assert calls == ["x"] and (place / "result.txt").read_text() == "x"


# ------------------------------------------------------------------------------------------------- disks that refuse


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "no space is left in .* for stage other; .* kept: make room",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space is left"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "no space is left"),
        (OSError("1000 requested and 12 written"), "fewer bytes were written"),
        (OSError(errno.EROFS, "Read-only file system"), r"cannot write stage other to .* \(Read-only file system\)"),
    ],
)
def test_a_disk_that_refuses_is_told_in_one_line_and_what_was_whole_stays(tmp_path, error, words):
    store, kept = StageStore(tmp_path), in_format(1)(StageStore(tmp_path))

    def fails(folder: Path) -> None:
        raise error

    with refused("checkpoint_dir", "environment", words):
        run_stage(store, "other", {}, fails)
    assert find_damage(kept) is None and not [path for path in tmp_path.glob("other-*") if path.suffix != ".partial"]
    assert run_stage(store, "other", {}, writer("x", [])).is_dir()


def test_errors_that_are_not_the_disks_pass(tmp_path):
    for error in (
        PermissionError(errno.EACCES, "denied", "/elsewhere/data.inter"),
        FileNotFoundError(2, "gone"),
        ValueError("28"),
    ):

        def fails(folder: Path, error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            run_stage(StageStore(tmp_path), "s", {}, fails)
        assert caught.value is error


def test_a_write_that_the_system_cuts_short_leaves_the_last_state(tmp_path):
    """A file size limit stands for a full disk: numpy's and safetensors' own writes fail half way."""
    program = f"""
        import resource, signal, sys
        import numpy, torch
        from pathlib import Path
        from safetensors.torch import save_file
        from recbole_llm.errors import InputError
        from recbole_llm.stages import StageStore
        from tests.stages import run_stage
        from recbole_llm.trainer.checkpoint import TrainingState, load_state, save_state

        def state(epoch, size):
            return TrainingState(epoch, {{"w": torch.full((size,), float(epoch))}}, {{}}, {{}}, {{"epoch": epoch}})

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        writes = {{
            "numpy": lambda folder: numpy.save(folder / "x.npy", numpy.zeros(100_000)),
            "safetensors": lambda folder: save_file({{"x": torch.zeros(100_000)}}, folder / "x.safetensors"),
            "state": lambda folder: [save_state(folder, state(1, 10)), save_state(folder, state(2, 100_000))],
        }}
        for name, compute in writes.items():
            try:
                run_stage(StageStore({str(tmp_path)!r}), name, {{}}, compute, resumable=True)
            except InputError as error:
                assert error.kind == "environment" and "\\n" not in str(error), error
                print(name, error)
        (partial,) = Path({str(tmp_path)!r}).glob("state-*.partial")
        assert load_state(partial).progress == {{"epoch": 1}}
    """
    told = forked_python(program).stdout.splitlines()
    assert [line.split()[0] for line in told] == ["numpy", "safetensors", "state"]
    assert all("checkpoint_dir: cannot write stage" in line for line in told)


def test_a_read_only_folder_is_read_and_not_written_to(tmp_path):
    """As another user: to root, no folder is read-only."""
    program = f"""
        import os
        from pathlib import Path
        from recbole_llm.errors import InputError
        from recbole_llm.stages import StageStore
        from tests.stages import run_stage

        if os.getuid() == 0:
            os.setuid(65534)
        store = StageStore({str(tmp_path / "stages")!r})
        assert (run_stage(store, "s", {{"a": 1}}, None) / "result.txt").read_text() == "x"
        try:
            run_stage(store, "s", {{"a": 2}}, lambda folder: None)
        except InputError as error:
            print(error.key, error.kind, error)
    """
    in_format(1)(StageStore(tmp_path / "stages"))
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "stages").chmod(0o555)
    told = forked_python(program).stdout
    (tmp_path / "stages").chmod(0o755)
    assert told.startswith("checkpoint_dir environment checkpoint_dir: cannot write stage s to")
