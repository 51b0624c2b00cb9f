"""Run folders and stages: cut, overwritten, without files, with files of another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import recbole_llm
from recbole_llm import Run
from recbole_llm.disk import write_json
from recbole_llm.stages import StageStore, find_damage
from tests.hostile.cases import broken, outcome, tried, values
from tests.runs import working_in
from tests.stages import run_stage

pytestmark = pytest.mark.hostile
ASKED: dict[str, Any] = {"users": ["u1", "u2"], "k": 3}


@pytest.fixture(scope="module")
def runs(world: Path, saved: Path, llama: Path) -> dict[str, Run]:
    """A general, a sequential and an LLM model, each trained for an epoch."""
    shared = {"data_path": str(world.parent), "checkpoint_dir": str(saved), "epochs": 1, "show_progress": False}
    shared |= {"topk": [5], "valid_metric": "NDCG@5"}
    llm = {"llm_path": str(llama), "prompt_style": "plain", "num_beams": 2, "max_new_tokens": 6, "lora_dropout": 0}
    llm |= {"lora_target_modules": "auto", "train_batch_size": 32}
    saved.mkdir(parents=True, exist_ok=True)
    with working_in(saved.parent):
        found = {name: recbole_llm.run(name, "world", **shared) for name in ("Pop", "SASRec")}
        return {**found, "BIGRec": recbole_llm.run("BIGRec", "world", **shared, **llm)}


@pytest.fixture(scope="module")
def expected(runs: dict[str, Run]) -> dict[str, pd.DataFrame]:
    return {name: run.recommend(**ASKED) for name, run in runs.items()}


def copied(run: Run, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(run.folder, target)
    return target


def files_of(folder: Path) -> list[Path]:
    """What may be read again: no pictures, pages and logs."""
    ends = (".yaml", ".json", ".csv", ".pth", ".safetensors")
    return sorted(file for file in folder.rglob("*") if file.suffix in ends)


def asked(folder: Path) -> tuple[dict[str, float], pd.DataFrame]:
    run = recbole_llm.load_run(folder)
    return run.metrics, run.recommend(**ASKED)


def check(folder: Path, file: str, run: Run, expected: pd.DataFrame) -> None:
    """The folder is refused, or says what it said; only another config or table of metrics may say something else."""
    found, error = outcome(asked, folder)
    if error is None:
        assert found[1].equals(expected) or file == "config.yaml", file
        assert found[0] == run.metrics or file in ("config.yaml", "metrics.json"), file


@tried(40)
@given(st.data(), st.sampled_from(["Pop", "SASRec"]))
def test_a_broken_file_of_a_classic_run_is_refused_or_not_needed(
    runs: dict[str, Run], expected: dict[str, pd.DataFrame], tmp_path: Path, data: st.DataObject, name: str
) -> None:
    folder = copied(runs[name], tmp_path / "run")
    file = data.draw(st.sampled_from(files_of(folder)))
    content = file.read_bytes()
    spoiled = data.draw(
        broken(content) if len(content) < 10_000 else st.integers(0, len(content)).map(content.__getitem__)
    )
    file.write_bytes(spoiled if isinstance(spoiled, bytes) else content[:spoiled])
    check(folder, file.name, runs[name], expected[name])


@tried(12)
@given(st.data())
def test_a_broken_file_of_an_llm_run_is_refused_or_not_needed(
    runs: dict[str, Run], expected: dict[str, pd.DataFrame], tmp_path: Path, data: st.DataObject
) -> None:
    folder = copied(runs["BIGRec"], tmp_path / "run")
    file = data.draw(st.sampled_from(files_of(folder)))
    content = file.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    file.write_bytes(content[:cut] if len(content) > 4000 else data.draw(broken(content)))
    check(folder, file.name, runs["BIGRec"], expected["BIGRec"])


@pytest.mark.parametrize("name", ["Pop", "SASRec", "BIGRec"])
def test_any_missing_file_is_named_or_not_needed(
    name: str, runs: dict[str, Run], expected: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    for file in [*files_of(runs[name].folder), *(path for path in runs[name].folder.iterdir() if path.is_dir())]:
        folder = copied(runs[name], tmp_path / "run")
        own = folder / file.relative_to(runs[name].folder)
        shutil.rmtree(own) if own.is_dir() else own.unlink()
        check(folder, file.name, runs[name], expected[name])


@pytest.mark.parametrize(("name", "other"), [("Pop", "SASRec"), ("SASRec", "Pop"), ("SASRec", "BIGRec")])
def test_a_file_of_another_run_is_refused_or_not_needed(
    name: str, other: str, runs: dict[str, Run], expected: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    for file in files_of(runs[other].folder):
        if (runs[name].folder / file.name).is_file() and file.name not in ("config.yaml", "metrics.json", "run.json"):
            folder = copied(runs[name], tmp_path / "run")
            shutil.copy(file, folder / file.name)
            check(folder, file.name, runs[name], expected[name])


@tried(150)
@given(st.data(), st.sampled_from(["metrics.json", "run.json", "data.json", "history.json"]))
def test_a_changed_entry_of_a_json_file_is_refused_or_read(
    runs: dict[str, Run], tmp_path: Path, data: st.DataObject, name: str
) -> None:
    folder = copied(runs["Pop"], tmp_path / "run")
    found = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    if isinstance(found, dict) and found and data.draw(st.booleans()):
        found[data.draw(st.sampled_from(sorted(found)))] = data.draw(values)
    else:
        found = data.draw(values)
    try:
        text = json.dumps(found)
    except (TypeError, ValueError):
        return
    (folder / name).write_text(text, encoding="utf-8")
    run, _ = outcome(recbole_llm.load_run, folder)
    if run is not None:
        for attribute in ("metrics", "valid_metrics", "summary", "warnings", "history", "data"):
            outcome(getattr, run, attribute)
        repr(run)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage of one file."""
    store = StageStore(tmp_path_factory.mktemp("stages"))
    return run_stage(store, "thing", {"a": 1}, lambda own: write_json(own / "values.json", {"x": 1}))


@tried(300)
@given(st.data())
def test_a_stage_that_is_not_as_it_was_written_is_damaged(stage: Path, tmp_path: Path, data: st.DataObject) -> None:
    assert find_damage(stage) is None
    shutil.rmtree(tmp_path / "stage", ignore_errors=True)
    file = shutil.copytree(stage, tmp_path / "stage") / data.draw(st.sampled_from(["values.json", "stage.json"]))
    before = file.read_bytes()
    file.write_bytes(data.draw(broken(before)))
    damage = find_damage(file.parent)
    assert damage is None or "\n" not in damage
    if file.name == "values.json":
        assert (damage is None) == (file.read_bytes() == before)


@tried(150)
@given(values)
def test_a_manifest_of_anything_is_damage(tmp_path: Path, manifest: Any) -> None:
    try:
        (tmp_path / "stage.json").write_text(json.dumps(manifest), encoding="utf-8")
    except (TypeError, ValueError, UnicodeEncodeError):
        return
    assert find_damage(tmp_path)
