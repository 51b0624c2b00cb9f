"""Property files: where they lie and how they are read, ours and RecBole's."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from recbole_llm.errors import InputError

BUILT_IN = "ml-100k"  # the data set that RecBole brings along


class PropertyLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # by libyaml where it is there
    """Safe YAML in which ``1e-4`` is a number, as it is in RecBole.

    RecBole gets there by adding a resolver to ``yaml.FullLoader`` itself, which changes YAML for the whole process;
    this resolver has a class of its own, on module level because RecBole pickles the config that refers to it.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping; a key that is written twice is an error, as one of the two values would be lost silently."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice; keep one", node.start_mark)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


class _PropertyDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # the same
    """Writes what :class:`PropertyLoader` reads back as it was: the text ``1e5`` in quotes, as it would be a number."""


for _yaml in (PropertyLoader, _PropertyDumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.[\d_]+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """A text as YAML; one with line breaks of Unicode or other marks in double quotes, where they are escaped."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_PropertyDumper.add_representer(str, _write_text)


def find_properties() -> Path:
    """Folder of our property files: inside the package when installed from a wheel, beside it in a checkout.

    Raises:
        FileNotFoundError: neither folder has them, so the installation is broken.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "properties", package.parent / "properties"):
        if (folder / "overall.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"no property files in {package / 'properties'} or beside the package: reinstall recbole-llm"
    )


@lru_cache(maxsize=1)
def recbole_folder() -> Path:
    """Folder of the installed ``recbole`` package, found without importing it."""
    spec = find_spec("recbole")
    if spec is None or spec.origin is None:
        raise InputError("RecBole is not installed: pip install recbole==1.2.1", kind="environment")
    return Path(spec.origin).parent


def load_yaml(file: str | Path, what: str = "config file", about: str = "config_files") -> dict[str, Any]:
    """Read one property or config file, or another of this form.

    Args:
        file: a YAML file that holds ``key: value`` pairs; an empty file holds none.
        what: what messages call it.
        about: the setting that names it.

    Raises:
        InputError: the file is missing, is no valid YAML, or holds something else than pairs.
    """
    try:
        content = copy.deepcopy(_parsed(Path(file).read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot read the {what} {file}: {error.strerror}", kind="file", about=about) from error
    except RecursionError as error:
        raise InputError(f"the {what} {file} nests its values too deep", kind="file", about=about) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise InputError(f"the {what} {file} is not valid YAML: {told}", kind="file", about=about) from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"the {what} {file} must hold `key: value` pairs", kind="file", about=about)
    return content


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    """What YAML says; the models of a command share most of their property files."""
    return yaml.load(text, Loader=PropertyLoader)


def dump_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as a config file that :func:`load_yaml` reads back as they are, sorted by name."""
    return yaml.dump(dict(settings), Dumper=_PropertyDumper, sort_keys=True, allow_unicode=True)


def find_config_file(name: str | Path) -> Path:
    """The user's config file of this name, else the property file of ours with it (``paper/bigrec.yaml``).

    Raises:
        InputError: there is neither.
    """
    folder = find_properties()
    for file in (Path(name), folder / name):
        try:
            if file.is_file():
                return file
        except OSError as error:
            raise InputError(
                f"cannot read the config file {name}: {error.strerror}", kind="file", about="config_files"
            ) from error
    settings = ", ".join(sorted(f"paper/{file.name}" for file in (folder / "paper").glob("*.yaml")))
    raise InputError(
        f"config file {name} does not exist; give a path, or a setting of ours: {settings}",
        kind="file",
        about="config_files",
    )
