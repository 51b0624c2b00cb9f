"""Answer tokens as objectives read them, against one plain pass for each answer."""

from __future__ import annotations

import pytest
import torch

from recbole_llm.llm.answer_reader import AnswerReader
from recbole_llm.llm.legal import LegalSets
from recbole_llm.llm.trie import TitleTrie
from recbole_llm.llm.trunks import TrunkScorer
from tests.families import make_model

EOS, BARE = 2, [1, 20, 21]
PROMPTS = [[1, 20, 21, 22, 23], [1, 24, 25], [1, 24, 25, 26]]
TITLES = [[5, 6, 7], [5, 8], [9]]
ANSWERS = [[[5, 6, 7, EOS], [], [9, EOS]], [[5, 8, EOS], [], []], [[9, EOS], [], [5, 8, EOS]]]


def logits_of(model, prompt, answer):
    """Logits [tokens, vocabulary] that predict each token of an answer, by a pass of prompt and answer alone."""
    with torch.no_grad():
        return model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]


def answer_tokens(answers=ANSWERS):
    return [(row, kind, answer) for row, own in enumerate(answers) for kind, answer in enumerate(own) if answer]


@pytest.mark.parametrize("bare", [None, BARE], ids=["history alone", "with and without"])
@pytest.mark.parametrize("branches", [True, False])
def test_an_answer_that_all_rows_lack_is_no_token(branches, bare):
    model = make_model("llama", 60, hidden_size=16, n_layers=1).eval()
    reader = AnswerReader(TrunkScorer(model, 0), bare_prompt=bare, takes_branches=lambda n_tokens: branches)
    with torch.no_grad():
        found = reader.read(PROMPTS, ANSWERS)
    expected = answer_tokens()
    assert set(zip(found.rows.tolist(), found.answers.tolist(), strict=True)) == {(r, k) for r, k, _ in expected}
    assert found.legal is None and (found.effects is None) == (bare is None)
    for row, kind, answer in expected:
        own = (found.rows == row) & (found.answers == kind)
        after, column = logits_of(model, PROMPTS[row], answer), torch.tensor(answer)[:, None]
        values = after.log_softmax(dim=1).gather(1, column)[:, 0]
        torch.testing.assert_close(found.log_probs[own], values, atol=1e-5, rtol=1e-5)
        assert found.steps[own].tolist() == list(range(len(answer)))
        if bare is not None:
            added = (after - logits_of(model, bare, answer)).log_softmax(dim=1).gather(1, column)[:, 0]
            torch.testing.assert_close(found.effects[own], added, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("branches", [True, False])
def test_an_answer_that_is_no_title_has_no_softmax_among_titles(branches):
    model = make_model("llama", 60, hidden_size=16, n_layers=1).eval()
    legal = LegalSets(TitleTrie(TITLES, EOS))
    reader = AnswerReader(TrunkScorer(model, 0), legal, takes_branches=lambda n_tokens: branches)
    with torch.no_grad():
        found = reader.read(PROMPTS, ANSWERS)
    assert found.legal.counts[(found.rows == 0) & (found.answers == 0)].tolist() == [2, 2, 1, 1]
    answers = [own[:2] + [[5, 6, EOS]] for own in ANSWERS]
    with pytest.raises(ValueError, match="an answer is no title of the catalogue"):
        reader.read(PROMPTS, answers)
