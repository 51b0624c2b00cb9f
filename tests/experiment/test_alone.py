"""An adapter asked by transformers and peft alone, where the LLM would answer otherwise if it were just asked.

The LLM here likes its padding token best and comes with defaults of generation, as instruct models do; a run forbids
the one and follows none of the others.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import recbole_llm
from recbole_llm.prompt.titles import clean_answer
from tests.families import save_family
from tests.processes import REPOSITORY
from tests.runs import working_in

DEFAULTS = {"repetition_penalty": 0.2, "do_sample": True, "temperature": 0.6, "top_p": 0.9}


@pytest.fixture(scope="module")
def headstrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the LLM: a constant in all embeddings gives the logit of padding a bias of about 2."""
    folder = save_family("llama", tmp_path_factory.mktemp("llm") / "headstrong", n_layers=1)
    llm, padding = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder).pad_token_id
    with torch.no_grad():
        llm.get_input_embeddings().weight[:, 0] += 0.15
        llm.get_output_embeddings().weight[padding, 0] += 1
    llm.generation_config.update(**DEFAULTS)
    llm.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "first_line"])
def run(request, small_llm, headstrong, tmp_path_factory) -> recbole_llm.Run:
    folder = tmp_path_factory.mktemp("alone")
    settings = {**small_llm, "llm_path": str(headstrong), "checkpoint_dir": str(folder / "saved")}
    with working_in(folder):
        return recbole_llm.run("BIGRec", "world", **settings, first_line=request.param)


@pytest.fixture
def two_lines(run: recbole_llm.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decoded has a line break in it, whoever decodes."""
    tokenizer = type(run.model.backbone.tokenizer)
    decode = tokenizer.decode

    def broken(self: Any, *words: Any, **options: Any) -> str:
        text = decode(self, *words, **options)
        return f"{text[:3]}a\nb{text[3:]}"

    monkeypatch.setattr(tokenizer, "decode", broken)


def test_card_and_server_answer_as_the_run_does(run, two_lines, capsys):
    folder = run.folder.resolve()
    prompt = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
    (expected,) = run.model.generate_text(run._asked().rows.test.inter_feat[:1])
    assert ("\n" in expected.strip()) is not run.config["first_line"]

    card = (folder / "adapter" / "README.md").read_text(encoding="utf-8")
    capsys.readouterr()
    with working_in(folder):
        exec(card.partition("```python\n")[2].partition("```")[0], {"__name__": "__main__"})
    assert capsys.readouterr().out == f"{expected}\n"
    server = runpy.run_path(str(REPOSITORY / "examples" / "serve_fastapi.py"))["PlainModel"](folder)
    assert server.answer(prompt["example"]["history"]) == clean_answer(expected)

    # Neither is so by chance: whoever leaves out one of both gets something else.
    ids = torch.tensor([prompt["example"]["token_ids"]])

    def answer(**options: Any) -> list[int]:
        told = {**prompt["generation"], "eos_token_id": prompt["eos_token_id"], "do_sample": False, **options}
        server.model.get_base_model().generation_config = GenerationConfig(**told)
        return server.model.generate(ids, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :].tolist()

    assert run.model.backbone.pad_token_id in answer(suppress_tokens=None)
    assert answer(repetition_penalty=DEFAULTS["repetition_penalty"]) != answer()
