"""What a search refuses before its first trial, and what it takes."""

from __future__ import annotations

from itertools import product

import pytest

from recbole_llm.experiment.tune_plan import TRIALS, check_plan, parse_plan, unread_in
from tests.processes import fresh_python
from tests.refusals import refused

SASREC = ("--model=SASRec", "--dataset=ml-100k")


@pytest.mark.parametrize(
    ("words", "key", "kind"),
    [
        ([], "params_file", "missing"),
        (["--params_file=a", "--params=b"], "params_file", "conflict"),
        (["--params_file=absent.test"], "params_file", "file"),
        (["--params=n_layer choice [1]"], "n_layer", "unknown"),
        (["--params=BPR.n_layers choice [1]"], "BPR.n_layers", "unknown"),
        (["--params=n_layers choice [1]; SASRec.n_layers choice [2]"], "n_layers", "conflict"),
        (["--params=n_layers choice [1, 2]", "--n_layers=1"], "n_layers", "conflict"),
        (["--params=n_layers choice [1, 2]", "--SASRec.n_layers=1"], "n_layers", "conflict"),
        (["--params=seed choice [1, 2]"], "seed", "conflict"),
        (["--params=eval_args choice [{}, {mode: full}]"], "eval_args", "conflict"),
        (["--params=epochs choice [1, -2]"], "epochs", "value"),
        (["--params=epochs choice [1, many]"], "epochs", "value"),
        (["--params=learning_rate uniform -1,1"], "learning_rate", "value"),
        (["--params=n_layers choice [1]", "--sampler=bayes"], "sampler", "unknown"),
        (["--params=n_layers choice [1]", "--pruner=hyperband"], "pruner", "unknown"),
        (["--params=n_layers choice [1]", "--trials=0"], "trials", "value"),
        (["--params=n_layers choice [1]", "--trials=many"], "trials", "value"),
        (["--params=n_layers choice [1]", "--asha_reduction=1"], "asha_reduction", "value"),
        (["--params=n_layers choice [1]", "--seeds=3"], "seeds", "conflict"),
        (["--params=learning_rate uniform 0.1,0.2", "--sampler=grid"], "learning_rate", "conflict"),
        (["--params=n_layers choice [1]", "--eval_args={split: {LS: test_only}}"], "eval_args", "conflict"),
        (["--params=n_layers choice [1]", "--model=SASRec,BPR"], "model", "conflict"),
        (["--params=n_layers choice [1]", "--hidden_sise=4"], "hidden_sise", "unknown"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_refused(words, key, kind):
    given = [word for word in SASREC if not any(own.startswith(word.partition("=")[0]) for own in words)]
    with refused(key, kind):
        check_plan(parse_plan([*given, *words]))


def test_a_combination_that_only_later_values_make_is_refused_as_a_single_value():
    words = ["--model=BIGRec", "--dataset=ml-100k", "--params=curriculum choice [none, 'fixed:2']"]
    with refused("curriculum", "value"):
        check_plan(parse_plan(words))


def test_refusals_come_before_recbole_torch_and_optuna_are_loaded():
    code = """
        import sys
        from recbole_llm.experiment.command import main
        words = ["--model=SASRec", "--dataset=ml-100k", "--params=epochs choice [1, -1]"]
        assert main(["tune", *words]) == 2 and main(["tune", "--help"]) == 0
        assert not {"torch", "recbole", "optuna", "transformers"} & set(sys.modules)
    """
    done = fresh_python(code=code)
    assert "epochs: -1 is not allowed" in done.stderr and "usage: recbole-llm tune" in done.stdout


def test_a_grid_is_the_product_of_the_values_in_their_order():
    words = [*SASREC, "--params=n_layers choice [1, 2]; n_heads quniform 1,2,1; hidden_size choice [8, 16, 32]"]
    plan = check_plan(parse_plan([*words, "--sampler=grid"]))
    points = [
        {name: dimension.value(plan.point(number)[name]) for name, dimension in plan.space.items()}
        for number in range(plan.n_trials)
    ]
    expected = product([1, 2], [1, 2], [8, 16, 32])
    assert [tuple(point.values()) for point in points] == list(expected) and list(points[0]) == list(plan.space)
    assert check_plan(parse_plan([*words, "--sampler=grid", "--trials=5"])).n_trials == 5
    assert check_plan(parse_plan([*words, "--sampler=grid", "--trials=50"])).n_trials == 12
    assert check_plan(parse_plan(words)).n_trials == TRIALS


def test_what_no_trial_reads_is_told_of():
    """A setting that a searched value of the axis reads is none of them."""
    of = ("--model=BIGRec", "--dataset=ml-100k", "--msl_tau=2")
    (first, second) = unread_in(check_plan(parse_plan([*of, "--params=alpha choice [1, 2]; lora_r choice [4, 8]"])))
    assert first.startswith("msl_tau has no effect: only objective=msl reads it, and BIGRec has objective=nll;")
    assert second.startswith("alpha has no effect: only curriculum=adaptive reads it, and BIGRec has curriculum=none;")
    searched = "--params=alpha choice [1, 2]; curriculum choice [sd_only, adaptive]"
    assert unread_in(check_plan(parse_plan([*of[:2], searched]))) == []


def test_settings_of_a_trial_are_those_of_a_run(tmp_path):
    """Config files, the command line, and a run's own config.yaml, which says which of its settings the user gave."""
    (tmp_path / "a.yaml").write_text("epochs: 3\ngiven: [epochs]\nSASRec.n_heads: 1\nhidden_size: 8\n")
    words = [*SASREC, f"--config_files={tmp_path / 'a.yaml'}", "--SASRec.n_layers=1", "--params=dropout choice [1]"]
    words[-1] = "--params=hidden_dropout_prob choice [0.1, 0.2]"
    found = check_plan(parse_plan(words)).settings({"hidden_dropout_prob": 0.2})
    assert {key: found[key] for key in ("epochs", "n_heads", "hidden_size", "n_layers", "hidden_dropout_prob")} == {
        **{"epochs": 3, "n_heads": 1, "hidden_size": 8, "n_layers": 1, "hidden_dropout_prob": 0.2}
    }
    assert "hidden_dropout_prob" in found["given"] and "hidden_size" not in found["given"]
