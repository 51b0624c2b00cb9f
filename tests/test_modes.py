"""Eval mode inside a context, and every module in its own mode behind it."""

import pytest
from torch import nn

from recbole_llm.modes import evaluating


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("training", [[], [0], [2], [0, 1, 2, 3]])
def test_modules_have_their_own_modes_again_whatever_happens_inside(training):
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Linear(1, 1)))
    for index, module in enumerate(model.modules()):
        module.training = index in training
    before = modes(model)
    with evaluating(model):
        assert not any(modes(model))
        model.train()
    assert modes(model) == before
    with pytest.raises(ZeroDivisionError), evaluating(model):
        model[1].train()
        1 / 0  # noqa: B018
    assert modes(model) == before
