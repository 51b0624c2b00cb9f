"""The facts are those of this machine; the data hash sees every byte and name, but neither folder nor order."""

import os
import platform
import subprocess
from importlib import metadata

import numpy as np

from recbole_llm.report import data_hash, environment, git_revision, versions
from tests.refusals import refused


def test_versions_are_those_installed():
    facts = versions()
    assert (facts["python"], facts["numpy"]) == (platform.python_version(), np.__version__)
    assert facts["torch"] == metadata.version("torch")
    assert facts["cpu_count"] == str(os.cpu_count())
    expected = {"transformers", "peft", "recbole", "faiss", "POT", "pandas", "scipy", "platform", "git_revision"}
    assert expected <= set(facts) and all(isinstance(value, str) and value for value in facts.values())


def test_a_missing_package_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(environment, "_PACKAGES", {"nothing": ("no-such-distribution",)})
    assert versions()["nothing"] == "not installed"


def test_git_revision_of_a_checkout_and_of_none(tmp_path, monkeypatch):
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert git_revision(tmp_path) == "not a checkout"
    git("init")
    assert git_revision(tmp_path) == "no commit"
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-m", "first")
    revision = git("rev-parse", "HEAD")
    assert revision.startswith(git_revision(tmp_path)) and len(git_revision(tmp_path)) >= 7
    (tmp_path / "page.md").write_text("a")
    git("add", "page.md")
    git("commit", "-m", "second")
    (tmp_path / "page.md").write_text("b")
    assert not git_revision(tmp_path).endswith("-dirty")  # no result depends on a page
    (tmp_path / "file").write_text("b")
    assert git_revision(tmp_path).endswith("-dirty")
    (tmp_path / "inner").mkdir()
    assert git_revision(tmp_path / "inner") == "not a checkout"


def test_data_hash(tmp_path):
    def files(folder, **contents):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name, content in contents.items():
            (tmp_path / folder / name).write_text(content)
        return [tmp_path / folder / name for name in contents]

    reference = data_hash(files("a", x="12", y="3"))
    assert len(reference) == 64 and set(reference) <= set("0123456789abcdef")
    assert data_hash(reversed(files("b", x="12", y="3"))) == reference
    others = [files("c", x="1", y="23"), files("d", x="12", z="3"), files("e", x="12"), files("f", x="12", y="4"), []]
    assert len({reference, *map(data_hash, others)}) == len(others) + 1
    with refused("", "file", "missing.inter"):
        data_hash([tmp_path / "missing.inter"])
