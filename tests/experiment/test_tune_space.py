"""What a search may be over: RecBole's syntax read without evaluating anything, and every value a valid one."""

from __future__ import annotations

import math

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_llm.experiment.tune_space import as_space, parse_space, read_space
from recbole_llm.settings.values import parse_value
from tests.refusals import refused

RECBOLE = """\
learning_rate loguniform -8,0
embedding_size choice [32, 64 ,128]
train_batch_size choice [512, 1024, 2048]
mlp_hidden_size choice ['[64, 64, 64]','[128, 128]']
dropout_prob quniform 0.1,0.5,0.1
reg_weight uniform 0.0,1.0
"""


def test_a_file_of_recbole_is_read_as_hyperopt_reads_it(tmp_path):
    (tmp_path / "hyper.test").write_text("﻿" + RECBOLE.replace("\n", "\r\n"), encoding="utf-8")
    space = read_space(tmp_path / "hyper.test")
    assert list(space) == [line.split()[0] for line in RECBOLE.splitlines()]
    assert space["learning_rate"].ends == (math.exp(-8), 1.0)
    assert list(space["embedding_size"].ends) == [32, 64, 128]
    assert list(space["mlp_hidden_size"].ends) == [[64, 64, 64], [128, 128]]
    assert [space["dropout_prob"].value(one) for one in space["dropout_prob"].drawn] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert space["reg_weight"].ends == (0.0, 1.0) and not space["reg_weight"].drawn


@given(
    low=st.integers(-20, 20),
    steps=st.integers(1, 20),
    step=st.integers(1, 5),
    seed=st.integers(0, 5),
    divisor=st.sampled_from([1, 4, 10]),
)
def test_quniform_gives_what_hyperopt_can_give(low, steps, step, seed, divisor):
    """``round(uniform(low, high) / q) * q``: any of the multiples, as integers where all three numbers are."""
    words = [str(number / divisor) if divisor > 1 else str(number) for number in (low, low + steps * step, step)]
    dimension = parse_space([f"x quniform {','.join(words)}"])["x"]
    low, high, q = (float(word) for word in words)
    multiples = {round(n * q, 9) for n in range(round(low / q), round(high / q) + 1)}
    found = [dimension.value(drawn) for drawn in dimension.drawn]
    assert {round(value, 9) for value in found} == multiples and len(found) == len(multiples)
    assert all(isinstance(value, int if divisor == 1 else float) for value in found)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    assert dimension.value(dimension.draw(trial, "x")) in found


@given(
    values=st.lists(
        st.one_of(st.integers(), st.booleans(), st.none(), st.floats(0, 1), st.text("ab [],'#;:{}", max_size=4)),
        min_size=1,
        max_size=5,
        unique_by=repr,
    )
)
def test_a_choice_gives_back_any_value(values):
    """Also in a new process, which knows what was drawn as a word only."""
    read = [parse_value(value) if isinstance(value, str) else value for value in values]
    if len({repr(value) for value in read}) < len(read):
        return  # 'a' and "'a'" are one value
    (dimension,) = as_space({"x": values}).values()
    assert [dimension.value(word) for word in dimension.drawn] == list(dimension.ends) == read
    assert len(set(dimension.drawn)) == len(values)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("alpha", "value"),
        ("alpha choice", "value"),
        ("alpha choise [1]", "unknown"),
        ("alpha choice 3", "value"),
        ("alpha choice []", "value"),
        ("alpha choice [1, 1]", "value"),
        ("alpha uniform 1", "value"),
        ("alpha uniform 2,1", "value"),
        ("alpha uniform 0,inf", "value"),
        (f"alpha uniform 0,{'9' * 400}", "value"),
        ("alpha uniform 0,__import__('os')", "value"),
        ("alpha quniform 0,1", "value"),
        ("alpha quniform 0,1,0", "value"),
        ("alpha quniform -1e308,0,1e-300", "value"),
        ("alpha loguniform 0,1e9", "value"),
        ("alpha logrange 0,1", "value"),
        ("beta choice [1]", "conflict"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(tmp_path, line, kind):
    file = tmp_path / "hyper.test"
    file.write_text(f"# a comment\n\nbeta choice [1, 2]  # the first\n{line}\n")
    with refused("params_file", kind, "hyper.test, line 4: "):
        read_space(file)


def test_what_is_no_space_at_all(tmp_path):
    with refused("params_file", "file"):
        read_space(tmp_path / "absent.test")
    (tmp_path / "latin").write_bytes(b"\xe9")
    with refused("params_file", "file"):
        read_space(tmp_path / "latin")
    with refused("params", "missing"):
        parse_space(["", "# nothing"])
    with refused("space", "missing"):
        as_space({})
    with refused("alpha", "value"):
        as_space({"alpha": 3})
