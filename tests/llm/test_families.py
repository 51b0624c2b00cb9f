"""What every family of LLMs must do before a run may trust it: the loss, the search, the adapter.

That each fast path equals plain passes or is left is tested in test_capabilities.py, on the same architectures.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import GenerationConfig

from recbole_llm.adapter import LoraAdapter
from recbole_llm.llm.capabilities import FastPath
from recbole_llm.llm.generation import beam_search
from recbole_llm.llm.loss import answer_loss
from tests.adapter.training import logits, train
from tests.architectures import ARCHITECTURES, COMMON_FIRST, VOCABULARY, make_architecture
from tests.llm.test_capabilities import FAILS

EOS, PAD, NEW_TOKENS = 2, 0, 5
PROMPTS = [[5, 9, 7, 11, 30, 31], [5, 9, 7, 44, 60, 12]]
PAGE = Path(__file__).parents[2] / "docs" / "llms.md"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_loss_is_that_of_labels(name):
    model = make_architecture(name)
    ids = torch.tensor(PROMPTS)
    labels = ids.clone()
    labels[0, :3] = labels[1, :4] = -100
    logits_of_all = model(input_ids=ids, use_cache=False).logits[:, :-1].reshape(-1, VOCABULARY)
    expected = torch.nn.functional.cross_entropy(logits_of_all, labels[:, 1:].reshape(-1), ignore_index=-100)
    torch.testing.assert_close(answer_loss(model, ids, torch.ones_like(ids), labels), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", COMMON_FIRST)
def test_beams_are_those_of_generate(name):
    """One prompt at a time: what a family makes of padding is test_capabilities' matter."""
    model = make_architecture(name)
    special = {"eos_token_id": EOS, "pad_token_id": PAD}
    found = beam_search(model, PROMPTS, num_beams=3, max_new_tokens=NEW_TOKENS, **special)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        config = GenerationConfig(num_beams=3, max_new_tokens=NEW_TOKENS, use_cache=False, do_sample=False, **special)
        (whole,) = model.generate(input_ids=torch.tensor([prompt]), generation_config=config).tolist()
        expected = whole[len(prompt) :]
        assert answer.token_ids == (expected[: expected.index(EOS)] if EOS in expected else expected)


@pytest.mark.parametrize("targets", [pytest.param("auto", marks=pytest.mark.slow), "all"])  # auto is a part of all
@pytest.mark.parametrize("name", COMMON_FIRST)
def test_a_trained_adapter_is_the_same_after_peft_read_it(name, targets, tmp_path):
    adapter = LoraAdapter(r=2, target_modules=targets)
    tuned = train(adapter.attach(make_architecture(name)))
    adapter.save(tuned, tmp_path, fingerprint="")
    bare = make_architecture(name)
    assert not torch.allclose(logits(tuned), logits(bare), atol=1e-3)
    again = PeftModel.from_pretrained(bare, tmp_path)
    torch.testing.assert_close(logits(again), logits(tuned), atol=1e-4, rtol=1e-4)


def test_the_page_tells_what_each_family_can_do():
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    told = {name: left for name, left in rows if name in ARCHITECTURES}
    expected = {name: [path.value for path in FastPath if path in FAILS.get(name, ())] for name in ARCHITECTURES}
    assert told == {name: "; ".join(left) or "nothing" for name, left in expected.items()}
