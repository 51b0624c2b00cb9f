"""What the stages of a run need, as far as the settings tell."""

from __future__ import annotations

import pytest

from recbole_llm.settings.coreset_checks import check_needs
from recbole_llm.settings.models import facts_by_name
from recbole_llm.settings.stage_checks import check_answers, check_gamma, check_validation, has_rows
from tests.refusals import refused


@pytest.mark.parametrize(
    ("split", "valid", "test"),
    [
        ({"LS": "valid_and_test"}, True, True),
        ({"LS": "valid_only"}, True, False),
        ({"LS": "test_only"}, False, True),
        ({"RS": [0.8, 0.1, 0.1]}, True, True),
        ({"RS": [0.8, 0, 0.2]}, False, True),
        ({"RS": [8, 2, 0.0]}, True, False),
        ({"TS": [0.8, 0, 0.2]}, True, True),  # times decide, which the settings do not tell
    ],
)
def test_which_rows_a_split_leaves(split, valid, test):
    settings = {"eval_args": {"split": split}}
    assert (has_rows(settings, "valid"), has_rows(settings, "test")) == (valid, test)
    assert has_rows({**settings, "benchmark_filename": ["a", "b", "c"]}, "test")


def test_models_that_write_titles_are_known_without_loading_them():
    answering = {name: facts_by_name(name).has_answers for name in ("BIGRec", "LLaRA", "SOFT", "TALLRec", "SASRec")}
    assert answering == {"BIGRec": True, "LLaRA": True, "SOFT": True, "TALLRec": False, "SASRec": False}


VALIDATED = {"epochs": 3, "eval_step": 1, "stopping_step": 0, "curriculum": "adaptive", "alpha": [1, 10]}


@pytest.mark.parametrize(
    ("rule", "key", "kind"),
    [
        (lambda: check_answers("TheirRec", False, {"curriculum": "sd_only"}), "curriculum", "conflict"),
        (lambda: check_validation({**VALIDATED, "stopping_step": 2}, False), "stopping_step", "conflict"),
        (lambda: check_validation(VALIDATED, False), "alpha", "conflict"),
        (lambda: check_validation({**VALIDATED, "eval_step": 4}, True), "alpha", "conflict"),
        (lambda: check_gamma({"reweight": "popularity", "gamma": None}, False), "gamma", "missing"),
    ],
)
def test_what_is_wrong_has_its_key_and_kind(rule, key, kind):
    with refused(key, kind):
        rule()


def test_what_is_not_used_needs_nothing():
    check_answers("TheirRec", False, {"curriculum": "none"})
    check_gamma({"reweight": "popularity", "gamma": 0.5}, False)
    check_validation({**VALIDATED, "stopping_step": 2, "epochs": 0}, False)
    check_validation({**VALIDATED, "alpha": [1, 1.0]}, False)  # one curriculum given twice
    check_validation({**VALIDATED, "curriculum": "fixed:0"}, False)


@pytest.mark.parametrize(("target", "has_valid_rows", "fails"), [("valid", False, True), ("train", False, False)])
def test_influence_is_on_validation_rows_if_it_is_said_to_be(target, has_valid_rows, fails):
    from recbole_llm.coreset import DEALRecSelector

    settings = {
        **{"influence_target": target, "ilora_permuted": False, "influence_method": "cg"},
        **dict.fromkeys(("influence_scale", "influence_step_rows", "influence_steps")),
    }
    if not fails:
        check_needs(DEALRecSelector, "BIGRec", "next-item", settings, has_valid_rows)
        return
    with refused("coreset", "missing"):
        check_needs(DEALRecSelector, "BIGRec", "next-item", settings, has_valid_rows)
