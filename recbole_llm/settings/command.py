"""The command line: arguments to settings, without evaluating anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recbole_llm.errors import InputError
from recbole_llm.property_files import find_config_file, load_yaml
from recbole_llm.registry import nearest, suggestion
from recbole_llm.settings.defaults import COMMAND_KEYS, GIVEN, SEVERAL_RUNS, given_names, known_keys
from recbole_llm.settings.schema import OTHER_NAMES, check_known
from recbole_llm.settings.seeds import check_one_seed, check_seeds
from recbole_llm.settings.values import parse_setting, split_names

SWITCHES = ("quiet", "help", "version")  # words without a value


@dataclass
class Command:
    """A command line, sorted.

    Attributes:
        models: the models to run, in order.
        dataset: name of the data set.
        config_files: config files in order of reading.
        shared: bare settings, for every model that knows them.
        per_model: settings of one model only, by its name.
        seeds: number of runs of each model, or their seeds; None for one run.
        baseline: name of the model in the table that the others are compared with; empty for the usual one.
        help: whether the user asked for help; the rest is empty then.
        help_word: what the user asked about, ``--help lora``; empty for all.
    """

    models: list[str] = field(default_factory=list)
    dataset: str = ""
    config_files: list[str] = field(default_factory=list)
    shared: dict[str, Any] = field(default_factory=dict)
    per_model: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: int | tuple[int, ...] | None = None
    baseline: str = ""
    help: bool = False
    help_word: str = ""

    @property
    def given(self) -> list[str]:
        """Names of the settings of the command line itself, with the model's before a dot where they are of one."""
        return [*self.shared, *(f"{model}.{key}" for model, own in self.per_model.items() for key in own)]


def parse_words(argv: Sequence[str]) -> dict[str, str]:
    """``--key=value`` and ``--key value`` as raw words by key.

    Raises:
        InputError: a word without a key, a key without a value, or a key given twice with different values.
    """
    words: dict[str, str] = {}
    waiting = list(argv)
    while waiting:
        word = waiting.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise InputError(
                f"'{word}' is not part of a setting; write --key=value, and quote a value that holds spaces",
                kind="unknown",
            )
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                hint = suggestion(key, SWITCHES, f"; write --{key}=value (a switch is --{key}=True)")
                raise InputError(f"--{key} has no value{hint}", kind="missing", about=key)
            value = waiting.pop(0)
        if words.setdefault(key, value) != value:
            raise InputError(
                f"--{key} is given twice, as '{words[key]}' and as '{value}'; keep one", kind="conflict", about=key
            )
    return words


def parse_argv(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of a command line by key, dotted keys as they are (see :func:`parse_words` for errors)."""
    return {key: parse_setting(key, word) for key, word in parse_words(argv).items()}


def split_by_model(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Bare settings, and those with a model's name before a dot: ``{"BIGRec.epochs": 4}`` is of BIGRec only."""
    shared: dict[str, Any] = {}
    per_model: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        model, _, name = key.rpartition(".")
        (per_model.setdefault(model, {}) if model else shared)[name] = value
    return shared, per_model


def check_prefixes(per_model: Mapping[str, Mapping[str, Any]], models: Sequence[str]) -> None:
    """Refuse settings such as ``BIGRec.epochs`` where no BIGRec is run.

    Raises:
        InputError: naming the setting and the models there are.
    """
    for model, settings in per_model.items():
        if model not in models:
            hint = suggestion(model, models, f"; the models are {', '.join(models)}")
            raise InputError(
                f"{model}.{next(iter(settings))}: no model named '{model}' is run{hint}", kind="unknown", about="model"
            )


def check_distinct(models: Sequence[str]) -> None:
    """Refuse a model that is named twice.

    Raises:
        InputError: naming the models.
    """
    if len(set(models)) < len(models):
        raise InputError("model", f"'{','.join(models)}' names a model twice; name each once", kind="conflict")


def parse_command(argv: Sequence[str]) -> Command:
    """Parse the command line, without the program's name; model and data set may be set in a config file.

    Raises:
        InputError: see :func:`parse_words`; no model or data set, a model named twice, an unreadable config file, or a
            setting of a model that is not run.
    """
    for index, word in enumerate(argv):
        if word.partition("=")[0] in ("--help", "-h"):
            following = argv[index + 1] if len(argv) > index + 1 and not argv[index + 1].startswith("-") else ""
            return Command(help=True, help_word=word.partition("=")[2] or following)
    settings = parse_argv(argv)
    files = split_names(settings.pop("config_files", None))
    in_files: dict[str, Any] = {}
    for file in files:
        in_files.update(load_yaml(find_config_file(file)))
    models = split_names(settings.pop("model", in_files.get("model")))
    dataset = settings.pop("dataset", in_files.get("dataset"))
    seeds, baseline = (settings.pop(key, in_files.get(key)) for key in SEVERAL_RUNS)
    if not models or not dataset:
        key, example = ("dataset", "ml-100k") if models else ("model", "BIGRec")
        typed = next((name for name in settings if name.lower() == key or OTHER_NAMES.get(name.lower()) == key), None)
        if typed is None:  # misspelt, and no setting of that name
            near = [name for name in settings if nearest(name, [key], count=1)]
            typed = next((name for name in near if name not in known_keys("BIGRec", "")), None)
        hint = f"write --{key} for --{typed}"
        if typed is None:
            hint = f"add for example --{key}={example} (--help shows more)"
        raise InputError(key, f"no {key} is given; {hint}", kind="missing")
    check_distinct(models)
    shared, per_model = split_by_model(settings)
    check_prefixes(per_model, models)
    seeds = None if seeds is None else check_seeds(seeds)
    check_one_seed(shared, per_model, seeds)
    return Command(models, str(dataset), files, shared, per_model, seeds, "" if baseline is None else str(baseline))


@dataclass(frozen=True)
class Layer:
    """Settings from one source: bare ones, and those of one model only.

    Attributes:
        shared: bare settings by name.
        per_model: settings of one model by name, by the model's name.
        source: where they are from, for messages: ``"--"`` or ``"config file a.yaml: "``.
    """

    shared: Mapping[str, Any]
    per_model: Mapping[str, Mapping[str, Any]]
    source: str = ""

    def of(self, model: str) -> dict[str, Any]:
        """What it says of one model: within a source, a key with the model's name wins over the bare one."""
        return {**self.shared, **self.per_model.get(model, {})}


def layered(layers: Sequence[Layer], model: str) -> dict[str, Any]:
    """One model's settings from several sources; a later one wins, with the model's name before a key or without.

    Where a source is a run's record, ``given`` becomes the names of what any of the sources sets.

    Raises:
        InputError: a record whose ``given`` is no list of names.
    """
    own = [layer.of(model) for layer in layers]
    settings = {key: value for one in own for key, value in one.items()}
    if GIVEN in settings:
        settings[GIVEN] = sorted({name for one in own for name in given_names(one)})
    return settings


def settings_for(model: str, command: Command) -> dict[str, Any]:
    """The user's settings for one of a command's models, files included: the ``config_dict`` of its config.

    Config files in their order, then the command line (see :func:`layered`); bare keys as far as the model knows them.

    Raises:
        InputError: a bare key that none of the models knows, a prefixed key that its model does not know, an unreadable
            config file.
    """
    files = [(name, load_yaml(find_config_file(name))) for name in command.config_files]
    layers = [Layer(*split_by_model(content), f"config file {name}: ") for name, content in files]
    layers.append(Layer(command.shared, command.per_model, "--"))
    recommenders = {name: layered(layers, name).get("llm_recommender") for name in command.models}
    known = {name: known_keys(name, command.dataset, chosen) for name, chosen in recommenders.items()}
    for layer in layers:
        check_prefixes(layer.per_model, command.models)
        # A run's config.yaml also holds what the property file beside its data made known, maybe not to this model.
        recorded = known_keys("BIGRec", command.dataset) if GIVEN in layer.shared else frozenset()
        for key in layer.shared:
            check_known(key, recorded.union(*known.values()), " or ".join(command.models), layer.source)
        for name, own in layer.per_model.items():
            for key in own:
                check_known(key, known[name], name, f"{layer.source}{name}.")
    known_here = known[model].difference(COMMAND_KEYS)
    return {key: value for key, value in layered(layers, model).items() if key in known_here}
