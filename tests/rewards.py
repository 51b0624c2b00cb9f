"""What a policy of histories is rewarded for, computed from whole prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_llm import Run
from recbole_llm.trainer.history_policy import HistoryPolicyStage


def check_rewards(run: Run, n_rows: int) -> None:
    """The reward of a whole history is that of the prompt that the run makes of its row, for the first rows."""
    model = run.model.eval()
    stage = HistoryPolicyStage(model, run.config, run._trained.rows.train, "any")
    histories, rewards = stage._rewards()
    whole, pairs = model.histories(stage._rows.inter_feat), model.token_pairs(stage._rows.inter_feat)
    for history, found in zip(histories[:n_rows], rewards, strict=False):
        prompt, answer = pairs[whole.index(history)]
        with torch.no_grad():
            expected = -float(model.answer_loss([prompt], [[answer]])[0]) / len(answer)
        assert found[np.isfinite(found)][-1] == pytest.approx(expected - stage.settings.history_price, abs=1e-4)
