"""Finished runs loaded here, in a new process and elsewhere: the same scores, and nothing is trained again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.families import make_family
from tests.gguf_files import write_gguf
from tests.processes import forked_python
from tests.runs import working_in

SCORES = """
import json, sys
import torch
from recbole_llm.quick_start import load_data_and_model

def found_in(folder):
    config, model, dataset, _, _, test_data = load_data_and_model(folder)
    rows = next(iter(test_data))
    rows = rows[0] if isinstance(rows, tuple | list) else rows
    with torch.no_grad():
        scores = model.full_sort_predict(rows.to(model.device)) if config.task != "click" else model.predict(rows)
    return [config.effective_point(), torch.nan_to_num(scores.double().flatten()).tolist()]

if __name__ == "__main__":
    print(json.dumps(found_in(sys.argv[1])))
"""


def stages_in(saved: Path) -> set[str]:
    return {path.name for path in (saved / "stages").iterdir() if not path.name.startswith(".")}


def loads_again(finished: Any, label: str, saved: Path, elsewhere: Path) -> None:
    """Load a run in a new process and in this one, each from a folder of its own."""
    before = stages_in(saved)
    for name in ("a", "b"):
        (elsewhere / name).mkdir()
    output = forked_python(SCORES, finished.folders[label], cwd=elsewhere / "a").stdout
    names: dict[str, Any] = {"__name__": "here"}
    exec(SCORES, names)  # noqa: S102
    with working_in(elsewhere / "b"):
        found = names["found_in"](finished.folders[label])
    assert json.loads(output.splitlines()[-1]) == found and any(found[1])
    assert stages_in(saved) == before


@pytest.mark.parametrize("model", [pytest.param("LLaRA", marks=pytest.mark.slow), "iLoRA"])
def test_a_run_that_borrows_from_a_recommender_loads_without_training_one(command, saved, tmp_path, model):
    finished = command(model, "--epochs=1", "--recommender_config={epochs: 1}")
    loads_again(finished, model, saved, tmp_path)


@pytest.mark.slow
def test_a_run_with_a_gguf_file_reads_it_once_and_loads_in_a_new_process(command, tmp_path):
    saved = tmp_path / "saved"
    file = write_gguf(tmp_path / "llm.gguf", *make_family("llama"))
    finished = command("BIGRec", f"--llm_path={file}", "--epochs=1", saved=saved)
    assert (finished.stage("BIGRec", "gguf") / "model.safetensors").is_file()
    loads_again(finished, "BIGRec", saved, tmp_path)


COMBINATIONS = [
    (model, adapter, coreset, curriculum, grounding)
    for model, grounding in (
        ("BIGRec", "embedding"),
        ("BIGRec", "constrained"),
        ("BIGRec", "likelihood"),
        ("LLaRA", "embedding"),
        ("LLaRA", "likelihood"),
    )
    for adapter in ("lora", "ilora", "full")
    for coreset in ("none", "random", "goracs")
    for curriculum in ("none", "adaptive")
]


CLICKS = [(adapter, coreset) for adapter in ("lora", "ilora", "full") for coreset in ("none", "random", "goracs")]


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "coreset"), CLICKS)
def test_every_point_of_the_axes_loads_where_clicks_are_predicted(command, saved, tmp_path, adapter, coreset):
    axes = (f"--adapter={adapter}", f"--coreset={coreset}", "--threshold={'rating': 3}")
    few = ("--epochs=1", "--coreset_size=8", "--metrics=[AUC,LogLoss]", "--valid_metric=AUC")
    loads_again(command("TALLRec", *axes, *few, "--recommender_config={epochs: 1}"), "TALLRec", saved, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "adapter", "coreset", "curriculum", "grounding"), COMBINATIONS)
def test_every_point_of_the_axes_loads(command, saved, tmp_path, model, adapter, coreset, curriculum, grounding):
    axes = (f"--adapter={adapter}", f"--coreset={coreset}", f"--curriculum={curriculum}", f"--grounding={grounding}")
    few = ("--epochs=1", "--num_beams=10", "--coreset_size=8", "--recommender_config={epochs: 1}")
    loads_again(command(model, *axes, *few), model, saved, tmp_path)
