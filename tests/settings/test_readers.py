"""A setting that no model of a command reads is told of; by the declarations, for every value of every axis."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from recbole_llm.declare import keys_of
from recbole_llm.experiment.command import VERBS
from recbole_llm.registry import AXES, find_choice
from recbole_llm.settings.check import check_command
from recbole_llm.settings.command import parse_command, settings_for
from recbole_llm.settings.declarations import groups
from recbole_llm.settings.models import find_model, llm_model_names
from recbole_llm.settings.readers import unmet, unread
from recbole_llm.settings.resolve import Resolution, resolve
from tests.refusals import refused
from tests.test_docs import PAGES, commands

# What settings within a component depend on, at the value that reads most of them.
WITHIN = {"lora_rank_rule": "sara", "influence_method": "lissa"}
AXIS_CLASSES = [(axis, value) for axis, values in AXES.items() for value, reference in values.items() if reference]


@pytest.fixture(scope="module")
def base() -> Resolution:
    return resolve("BIGRec", "ml-100k", {})


def at(base: Resolution, key: str, **point: str) -> Resolution:
    """A run at a point of the axes, whose user has set one setting; what goes together is not asked."""
    return replace(base, user={key: base[key]}, final={**base.final, **WITHIN, **point})


class Noting(dict[str, Any]):
    """Settings of a run that note which are asked for."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.asked: set[str] = set()

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)


def read_by(axis: str, value: str, base: Resolution) -> set[str]:
    """Settings that an axis value's class is built from."""
    component: Any = find_choice(axis, value)
    if component is None or not keys_of(component):
        return set()
    noting = Noting(base.final)
    component.from_settings(noting)
    return noting.asked & {key.name for key in keys_of(component).values()}


@pytest.mark.parametrize("axis", AXES)
def test_a_setting_of_a_value_is_told_of_with_every_other_value_and_not_with_its_own(base, axis):
    read = {value: read_by(axis, value, base) for value in AXES[axis]}
    for key in set().union(*read.values()):
        for value in AXES[axis]:
            told = unread([key], [at(base, key, **{axis: value})])
            assert bool(told) == (key not in read[value]), (key, value)
            if told:
                assert re.match(rf"{key} has no effect: .*\bBIGRec has {axis}={value}; set --{axis}\b", told[0])
                assert "\n" not in told[0]


def scoped() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Setting, axis and the values of a scope that names values of one axis alone."""
    for component in (one for group in groups() if not group.model for one in group.components):
        for key in keys_of(component).values():
            names = re.split(", *", key.setting.scope)
            for axis, values in AXES.items():
                own = tuple(name for name in names if name in values)
                if own and {*names} <= {*values, *WITHIN.values()}:
                    yield key.name, axis, own


def test_scopes_name_values_that_there_are():
    """Else a misspelt one would tell nothing."""
    of_axes = {value for values in AXES.values() for value in values}
    for component in (one for group in groups() if not group.model for one in group.components):
        own = keys_of(component).values()
        known = {*of_axes, *llm_model_names(), *(choice for key in own for choice in key.setting.choices)}
        told = {key.name: key.setting.scope for key in own if key.setting.scope}
        unknown = {name for name, scope in told.items() if not {*re.split(", *", scope)} <= known}
        assert unknown <= {"field_max_chars", "pca_dim", "self_negative"}  # in words


@pytest.mark.parametrize(("key", "axis", "values"), [*scoped()], ids=str)
def test_a_scope_is_what_reads_a_setting(base, key, axis, values):
    assert {value for value in AXES[axis] if not unmet(key, at(base, key, **{axis: value}).final)} == set(values)


@pytest.mark.parametrize("axis", ["coreset", "curriculum", "preference", "rerank"])
def test_settings_of_an_axis_that_does_nothing_are_told_of(base, axis):
    component = next(one for group in groups() for one in group.components if axis in keys_of(one))
    others = {key.name for key in keys_of(component).values()} - {axis, "coreset_file"}
    told = unread(sorted(others), [replace(base, user=dict.fromkeys(others))])
    assert [line.split()[0] for line in told] == sorted(others) and len(others) > 4


MODEL_SETTINGS = [group for group in groups() if group.readers]


@pytest.mark.parametrize("group", MODEL_SETTINGS, ids=lambda group: group.title)
def test_settings_of_some_models_are_told_of_with_all_others(group):
    """By the modules of a model's classes, which name the settings that they read."""
    (component,) = group.components
    key = next(iter(keys_of(component).values())).name
    for name in llm_model_names():
        told = unread([key], [replace(resolve(name, "ml-100k", {}), user={key: None})])
        modules = [sys.modules[one.__module__] for one in find_model(name).__mro__]
        reads = any(component in vars(module).values() for module in modules)
        assert bool(told) != reads, name


def told_of(line: str) -> list[str]:
    command = parse_command([*line.split(" "), "--dataset=ml-100k"])
    return unread(command.given, check_command(command))


@pytest.mark.parametrize(
    ("line", "warnings"),
    [
        (
            "--model=BIGRec --adapter=full --lora_rank_rule=sara",
            [
                "lora_rank_rule has no effect: only adapter=lora, ilora, reclora or mosara reads it, and BIGRec has "
                "adapter=full; set --adapter, or leave lora_rank_rule out."
            ],
        ),
        (
            "--model=SOFT --curriculum=none --alpha=10",
            [
                "alpha has no effect: only curriculum=adaptive reads it, and SOFT has curriculum=none; set "
                "--curriculum=adaptive, or leave alpha out."
            ],
        ),
        (
            "--model=BIGRec,SOFT,Pop --coreset=none --coreset_size=5",
            [
                "coreset_size has no effect: BIGRec and SOFT have coreset=none; set --coreset, or leave coreset_size "
                "out."
            ],
        ),
        (
            "--model=BIGRec,iLoRA --bear_xi=2 --reclora_mix=factors",
            [
                "bear_xi has no effect: only objective=bear reads it, and BIGRec and iLoRA have objective=nll; set "
                "--objective=bear, or leave bear_xi out.",
                "reclora_mix has no effect: only adapter=reclora reads it, and BIGRec has adapter=lora, iLoRA has "
                "adapter=ilora; set --adapter=reclora, or leave reclora_mix out.",
            ],
        ),
        (
            "--model=BIGRec,SOFT --BIGRec.alpha=10 --SOFT.alpha=10",
            [
                "BIGRec.alpha has no effect: only curriculum=adaptive reads it, and BIGRec has curriculum=none; set "
                "--curriculum=adaptive, or leave BIGRec.alpha out."
            ],
        ),
        (
            "--model=BIGRec --sara_r_min=2",
            [
                "sara_r_min has no effect: only lora_rank_rule=sara reads it, and BIGRec has lora_rank_rule=fixed; set "
                "--lora_rank_rule=sara, or leave sara_r_min out."
            ],
        ),
        (
            "--model=BIGRec --gamma=2",
            [
                "gamma has no effect: only reweight=popularity or collaborative reads it, and BIGRec has "
                "reweight=none; set --reweight, or leave gamma out."
            ],
        ),
        (
            "--model=SemID --sid_quantizer=rkmeans --sid_dim=16",
            [
                "sid_dim has no effect: only sid_quantizer=rqvae reads it, and SemID has sid_quantizer=rkmeans; set "
                "--sid_quantizer=rqvae, or leave sid_dim out."
            ],
        ),
        (
            "--model=BIGRec,SASRec --laser_tau=2 --sid_levels=3",
            [
                "laser_tau has no effect: only Laser reads it; leave it out.",
                "sid_levels has no effect: only SemID or TTDS reads it; leave it out.",
            ],
        ),
        ("--model=BIGRec,Laser,TTDS --laser_tau=2 --sid_levels=3", []),
        ("--model=BIGRec --gamma=2 --reweight=popularity", []),
        ("--model=BIGRec,SOFT --alpha=10", []),
        ("--model=MSL --msl_tau=2 --title_renormalize=True --lora_r=4", []),
        ("--model=SOFT --curriculum=fixed:0.5 --sd_rows=20", []),
        ("--model=LMDH --half_relevance=True", []),
        ("--model=FISM,BIGRec --alpha=0", []),  # a setting of FISM, too
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_command_is_told_of_what_none_of_its_models_reads(line, warnings):
    assert told_of(line) == warnings


def test_a_file_of_settings_may_hold_those_of_values_that_are_not_chosen(tmp_path):
    file = tmp_path / "shared.yaml"
    file.write_text("alpha: 10\nlora_r: 4\nBIGRec.coreset_size: 5\n")
    assert told_of(f"--model=BIGRec --adapter=full --config_files={file}") == []


def test_a_file_of_chosen_rows_is_read_without_a_coreset(base):
    assert not unmet("coreset_file", base.final)


def test_what_a_value_of_another_distribution_reads_is_not_known(base):
    assert unread(["coreset_size"], [at(base, "coreset_size", coreset="none")])
    assert not unread(["coreset_size"], [at(base, "coreset_size", coreset="theirs")])
    assert not unread(["influence_method"], [at(base, "influence_method", coreset="theirs")])


def test_a_class_from_elsewhere_may_read_what_it_likes(base):
    other = replace(base, facts=replace(base.facts, is_llm=False), user={"alpha": 1}, final={"alpha": 1})
    assert not unread(["alpha"], [other])


def test_what_a_preset_sets_yields_to_a_rule_of_the_user_that_does_not_read_it():
    assert resolve("MoSARA", "ml-100k", {})["sara_threshold"] == 0.5
    fixed = resolve("MoSARA", "ml-100k", {"lora_rank_rule": "fixed"})
    assert fixed["sara_threshold"] is None and fixed["lora_rank_rule"] == "fixed"
    again = resolve("MoSARA", "ml-100k", {**fixed.final, "given": ["lora_rank_rule"]})
    assert again["sara_threshold"] is None
    with refused("sara_threshold", "conflict"):
        resolve("MoSARA", "ml-100k", {"lora_rank_rule": "fixed", "sara_threshold": 0.5})
    assert resolve("MoSARA", "ml-100k", {"sara_threshold": 0.3})["sara_threshold"] == 0.3


def test_no_command_of_the_docs_sets_what_it_does_not_read():
    lines = [words for page in PAGES for words in commands(page) if "--dataset=ml-100k" in words]
    lines = [words for words in lines if words[0] not in VERBS and not any("config_files=a.yaml" in w for w in words)]
    parsed = [parse_command(words) for words in lines]
    assert len(parsed) > 40
    for one in parsed:
        resolved = [resolve(model, one.dataset, settings_for(model, one)) for model in one.models]
        assert not unread(one.given, resolved)
