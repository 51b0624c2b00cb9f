"""The promises of SECURITY.md that no other test holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recbole_llm.experiment import recommend_command
from recbole_llm.experiment.load import load_run
from recbole_llm.property_files import dump_yaml, load_yaml
from recbole_llm.settings.data_folder import find_data
from tests.refusals import refused

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "recbole_llm"
# Calls that run what they read, or start a shell. torch.load is recbole_checkpoints' own, with its allow-list.
RUNS_WHAT_IT_READS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "joblib.load"),
    *(
        "torch.load",
        "pd.read_pickle",
        "pandas.read_pickle",
        "yaml.unsafe_load",
        "yaml.full_load",
        "shutil.unpack_archive",
    ),
}
ALLOWED = {("recbole_checkpoints.py", "torch.load")}
METHODS = {"extractall", "extract"}  # of archives
OPTIONS = {"shell": True, "allow_pickle": True}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call in the package, with its file."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield file.relative_to(PACKAGE).as_posix(), node


def dangers(file: str, call: ast.Call) -> Iterator[str]:
    """What a call may do that it must not."""
    name = ast.unparse(call.func)
    if name in RUNS_WHAT_IT_READS and (file, name) not in ALLOWED:
        yield name
    if isinstance(call.func, ast.Attribute) and call.func.attr in METHODS and "zip" in name + file:
        yield name
    if name == "yaml.load" and "Loader=PropertyLoader" not in ast.unparse(call):
        yield name
    for option in call.keywords:
        if option.arg in OPTIONS and getattr(option.value, "value", None) is OPTIONS[option.arg]:
            yield f"{name}({option.arg}={option.value.value})"  # type: ignore[attr-defined]


def test_nothing_in_the_package_runs_what_it_reads():
    assert [(file, danger) for file, call in calls() for danger in dangers(file, call)] == []


@pytest.mark.parametrize(
    "line", ["eval(text)", "yaml.load(text)", "np.load(file, allow_pickle=True)", "subprocess.run(words, shell=True)"]
)
def test_the_search_finds_what_it_is_for(line):
    call = ast.parse(line).body[0].value
    assert list(dangers("model/base.py", call))


def test_a_property_file_builds_plain_data_alone(tmp_path):
    trap, file = tmp_path / "trap", tmp_path / "own.yaml"
    file.write_text(f"topk: !!python/object/apply:os.system ['touch {trap}']\n", encoding="utf-8")
    with refused("config_files", "file"):
        load_yaml(file)
    assert not trap.exists()


def test_arrays_of_objects_are_not_read(tmp_path):
    """Stages and item vectors are read as numpy reads by default, which the search above holds it to."""
    np.save(tmp_path / "values.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(tmp_path / "values.npy")


@pytest.mark.parametrize("name", ["../mine", "a/b", "/etc/passwd", "..", "mine/"])
def test_a_data_set_does_not_leave_its_folder(name, tmp_path):
    for given in (True, False):
        with refused("dataset", "value"):
            find_data(name, str(tmp_path), given)


def test_a_run_folder_alone_does_not_make_code_run(tmp_path):
    """Whoever loads a run says that its LLM's code may run; a folder from elsewhere cannot say so for them."""
    settings = {"model": "BIGRec", "dataset": "ml-100k", "llm_path": "somebody/their-llm", "trust_remote_code": True}
    (tmp_path / "config.yaml").write_text(dump_yaml(settings), encoding="utf-8")
    with refused("trust_remote_code", "conflict", "somebody/their-llm"):
        load_run(tmp_path)
    words = (["--trust-remote-code"], ["--trust_remote_code"], [])
    assert [recommend_command.parse([str(tmp_path), "--users=all", *one]).trust_remote_code for one in words] == [
        True,
        True,
        False,
    ]
