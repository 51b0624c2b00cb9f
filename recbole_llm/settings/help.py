"""The text of ``--help`` and ``--help <word>``."""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from itertools import takewhile

from recbole_llm.declare import NO_DEFAULT, Key, keys_by_name
from recbole_llm.property_files import find_properties, load_yaml, recbole_folder
from recbole_llm.registry import AXES, CLASSIC_MODELS, choices, suggestion
from recbole_llm.settings.declarations import classic_keys, groups, llm_keys, model_keys
from recbole_llm.settings.describe import describe, recbole_default, types_of, yaml_text
from recbole_llm.settings.models import llm_model_names, model_names, recbole_models

HELP = """\
usage: recbole-llm --model=<model>[,<model>...] --dataset=<data set> [--<key>=<value> ...]
       recbole-llm import <file or folder> --name=<data set>   turn a table or a public data set into a data set
       recbole-llm audit --dataset=<data set>                  look for leaks and duplicates in a data set
       recbole-llm tune --model=<model> --dataset=<data set> --params_file=hyper.test   search for settings
       recbole-llm recommend saved/<run> --users=all           recommend items with a finished run
       recbole-llm completion bash                             print a script for shell completion

Trains the models, evaluates them on the same rows, and writes one table and report.html to saved/.

  --model=Pop,SASRec,BIGRec       models to run side by side, ours and RecBole's
  --dataset=ml-100k               a data set in RecBole's atomic format, in the folder --data_path (ml-100k is built in)
  --config_files="a.yaml b.yaml"  settings from files, later ones win; paper/<method>.yaml has a paper's settings
  --<key>=<value>                 a setting, for every model that has it; overrides files
  --<Model>.<key>=<value>         a setting for one of the models only
  --seeds=5, --seeds=1,2,3        run every model with each seed, and compare; the same command resumes
  --baseline=SASRec               the model that the others are compared with (default: the first of RecBole's)
  --quiet                         show only warnings and the table; each run's log is in its folder anyway
  --help <word>                   settings whose name or meaning contains a word; for a model's name, the model too
  --version                       the version of this package

import, audit, tune, recommend and completion have a --help of their own.

--key=value and --key value mean the same. A value is a Python literal, else YAML, else text.
All settings with types and ranges: the files in properties/, and docs/settings.md.

{models}
Axes of the LLM models (rerank works for every model):
{axes}
"""
WIDTH = 100


def help_text(word: str = "") -> str:
    """How to write a command; or the settings whose name or meaning holds a word."""
    if word:
        found = [part for part in (_model(word), _settings_with(word)) if part]
        return "\n\n".join(found) or _nothing(word)
    axes = (_filled(f"  --{axis:<15}{', '.join(choices(axis))}", " " * 19) for axis in AXES)
    models = (
        f"LLM models: {', '.join(llm_model_names())}; without an LLM: {', '.join(CLASSIC_MODELS)}; all others are "
        "RecBole's."
    )
    return HELP.format(models=_filled(models), axes="\n".join(axes))


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def _model(word: str) -> str:
    """What a model is, where a word is the name of one: what its property file says, and sets."""
    name = next((name for name in model_names() if name.lower() == word.lower()), None)
    if name is None:
        return ""
    is_classic = name in recbole_models()
    folder = recbole_folder() / "properties" if is_classic else find_properties()
    file = folder / "model" / f"{name}.yaml"
    if not file.is_file():
        return (
            f"{name}: a model of another package"
            if not is_classic
            else f"{name}: RecBole's, without settings of its own"
        )
    own, lines = load_yaml(file), file.read_text(encoding="utf-8").splitlines()
    base = own.pop("llm_recommender", None)
    about = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    told = [_filled(f"{name}: RecBole's" if is_classic else about)]
    settings = ", ".join(f"{key}={yaml_text(value)}" for key, value in own.items())
    told.append(_filled(f"    {f'{base} with ' if base else 'sets '}{settings}", " " * 4) if own else "")
    return "\n".join([*filter(None, told), f"    file {file}"])


def _settings_with(word: str) -> str:
    keys, wanted = {**llm_keys(), **model_keys()}, word.lower().lstrip("-")
    found = [key for key in keys.values() if wanted in key.name.lower() or wanted in describe(key).lower()]
    return "\n".join([*map(_paragraph, found), *_recbole_settings(wanted, keys)])


def _recbole_settings(word: str, ours: Collection[str]) -> list[str]:
    """Settings of RecBole's models whose names hold a word, with their defaults; what they mean RecBole's pages say."""
    found: dict[str, list[str]] = {}
    for file in sorted((recbole_folder() / "properties" / "model").glob("*.yaml")):
        for name, value in load_yaml(file).items():
            if word in name.lower() and name not in ours:
                found.setdefault(name, []).append(f"{file.stem} {yaml_text(value)}")
    return [
        f"--{name} (of RecBole's models, with their defaults)\n{_filled('    ' + ', '.join(own), ' ' * 4)}"
        for name, own in found.items()
    ]


def _nothing(word: str) -> str:
    keys = {**llm_keys(), **model_keys()}
    return f"No setting's name or meaning holds '{word}'{suggestion(word.lower().lstrip('-'), [*keys, *model_names()])}"


def _paragraph(key: Key) -> str:
    default = recbole_default(key.name) if key.default is NO_DEFAULT else yaml_text(key.default)
    own = [group.model for group in groups() if group.model and key.name in keys_by_name(group.components)]
    reach = own[0] if own else "every model" if key.name in classic_keys() else "LLM models"
    text = _filled(f"    {describe(key)}", " " * 4)
    return f"--{key.name} ({types_of(key)}; default {default}; {reach})\n{text}"
