"""Other distributions add values of every axis by entry points; their settings are declared and checked as ours are."""

from __future__ import annotations

import sys
from textwrap import dedent

import pytest

from recbole_llm.objective import make_objective
from recbole_llm.registry import AXES, added_choices, choices, find_choice
from recbole_llm.settings.check import check_command
from recbole_llm.settings.command import parse_command
from recbole_llm.settings.config import Config
from recbole_llm.settings.declarations import classic_keys, llm_keys
from recbole_llm.settings.help import help_text
from recbole_llm.settings.models import llm_model_names
from tests.refusals import refused

MODULE = """
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from recbole_llm.adapter.lora import LoraAdapter
from recbole_llm.coreset.selector import Selector
from recbole_llm.curriculum.schedule import FixedCurriculum
from recbole_llm.declare import Setting
from recbole_llm.objective import TokenObjective
from recbole_llm.objective.preferences import PreferenceObjective
from recbole_llm.rerank import Reranker


@dataclass(frozen=True)
class FirstRows(Selector):
    step: Annotated[int, Setting("rows that are passed over", low=0)] = 0

    name = "first"

    def _select(self, n_rows, budget, seed):
        return np.arange(n_rows)[self.step :][:budget], np.zeros(n_rows)


@dataclass(frozen=True)
class RankedLora(LoraAdapter):
    decay: Annotated[float, Setting("how fast ranks fall", above=0, high=1)] = 0.5

    name: ClassVar[str] = "ranked"


class Half(FixedCurriculum):
    @classmethod
    def from_value(cls, value, settings):
        return cls(0.5)


@dataclass(frozen=True)
class Doubled(TokenObjective):
    factor: Annotated[float, Setting("what the loss is multiplied by", above=0)] = 2.0

    name: ClassVar[str] = "doubled"

    def terms(self, tokens):
        return -self.factor * tokens.log_probs, tokens.log_probs.new_ones(len(tokens.rows))

    def known_weights(self, lengths, branching):
        return lengths


class Hinge(PreferenceObjective):
    name = "hinge"

    def loss(self, contrasts, beta, temperature):
        return (beta - contrasts.chosen[:, None] + contrasts.rejected).relu().mean()


class BatchHinge(Hinge):
    name = "batch_hinge"
    across_rows = True


class Grounding:
    settings = ()


class UpsideDown(Reranker):
    def order(self, items, scores, length, trade_off):
        return np.arange(len(items))[::-1][:length]
"""


@pytest.fixture
def other(tmp_path, monkeypatch):
    """An installed distribution with a value for each axis, one of which does not load."""
    info = tmp_path / "other_axes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-axes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        dedent("""
            [recbole_llm.adapter]
            ranked = other_axes:RankedLora
            lora = other_axes:Missing
            [recbole_llm.coreset]
            first = other_axes:FirstRows
            broken = other_axes:Missing
            [recbole_llm.curriculum]
            half = other_axes:Half
            [recbole_llm.objective]
            doubled = other_axes:Doubled
            [recbole_llm.preference]
            hinge = other_axes:Hinge
            batch_hinge = other_axes:BatchHinge
            [recbole_llm.grounding]
            theirs = other_axes:Grounding
            [recbole_llm.history_policy]
            all = other_axes:Missing
            [recbole_llm.rerank]
            upside_down = other_axes:UpsideDown
            [recbole_llm.model]
            TheirRec = their_rec:TheirRec
            """)
    )
    (tmp_path / "other_axes.py").write_text(MODULE)
    (tmp_path / "their_rec.py").write_text(
        "from recbole_llm.model.bigrec import BIGRec\n\n\nclass TheirRec(BIGRec):\n    task = 'next-item'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("other_axes", "their_rec"):
        sys.modules.pop(name, None)


def words(*more: str) -> list[str]:
    return ["--model=BIGRec", "--dataset=ml-100k", *more]


def test_every_axis_takes_values_of_others(other):
    names = {"adapter": "ranked", "coreset": "first", "curriculum": "half", "grounding": "theirs"}
    names |= {"objective": "doubled", "preference": "hinge"}
    names |= {"rerank": "upside_down", "history_policy": "all"}
    assert all(name in choices(axis) for axis, name in names.items()) and set(names) == set(AXES)
    assert find_choice("coreset", "first").__name__ == "FirstRows"
    assert find_choice("adapter", "lora").__module__ == "recbole_llm.adapter.lora"  # ours stay ours
    assert "lora" not in added_choices("adapter")
    assert "TheirRec" in llm_model_names()


def test_their_settings_are_known_checked_and_told(other):
    keys = llm_keys()
    assert (str(keys["first_step"]), str(keys["ranked_decay"])) == ("an integer >= 0", "a number > 0 and <= 1")
    assert "first_step" not in classic_keys() and "--first_step" in help_text("passed over")
    (resolved,) = check_command(parse_command(words("--coreset=first", "--first_step=2", "--adapter=ranked")))
    assert (resolved["first_step"], resolved["ranked_decay"], resolved["lora_r"]) == (2, 0.5, 16)
    loss = make_objective(Config("BIGRec", "ml-100k", argv=["--objective=doubled"]).final_config_dict)
    assert loss.facts() == {"objective": "doubled", "factor": 2.0}
    config = Config("BIGRec", "ml-100k", argv=["--coreset=first", "--curriculum=half"])
    assert (config["coreset"], config["first_step"], config["curriculum"]) == ("first", 0, "half")
    selector = find_choice("coreset", "first").from_settings(config.final_config_dict)
    assert selector.select([3, 1, 2], 2).ids.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("word", "message", "key", "kind"),
    [
        ("--first_step=-1", "first_step: -1 is not allowed; give an integer >= 0", "first_step", "value"),
        ("--ranked_decay=2", "ranked_decay: 2 is not allowed; give a number > 0 and <= 1", "ranked_decay", "value"),
        ("--first_stop=1", "--first_stop is not a setting of BIGRec; did you mean first_step", "first_stop", "unknown"),
        (
            "--coreset=firts",
            "coreset: 'firts' is not allowed; give one of none, random, .*, first, broken",
            "coreset",
            "value",
        ),
        (
            "--coreset=broken",
            r"coreset broken of another package \(other_axes:Missing\) cannot be loaded: ",
            "",
            "environment",
        ),
    ],
)
def test_their_mistakes_and_the_users_are_named(other, word, message, key, kind):
    with refused(key, kind, message):
        check_command(parse_command(words(word)))


def test_their_loss_across_rows_is_refused_answers_that_may_be_no_titles(other):
    raw = ("--pref_negatives=self_generated", "--self_negative=raw")
    check_command(parse_command(words("--preference=hinge", *raw)))
    with refused("self_negative", "conflict", "batch_hinge sets a wrong answer against other rows"):
        check_command(parse_command(words("--preference=batch_hinge", *raw)))


def test_a_model_of_another_distribution_is_checked_without_being_imported(other):
    (resolved,) = check_command(parse_command(["--model=TheirRec", "--dataset=ml-100k"]))
    assert (resolved.facts.class_name, resolved.task, resolved["stopping_step"]) == ("TheirRec", "next-item", 2)
    assert "their_rec" not in sys.modules
