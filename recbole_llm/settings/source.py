"""Facts about classes, read from their source files without importing them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ClassSource:
    """A class as its source file shows it.

    Attributes:
        name: name of the class.
        file: source file of its module.
        attributes: what its body assigns: a literal's value, or the last name of ``ModelType.GENERAL``.
        bases: the classes it derives from, as far as their files are found.
        methods: methods of its body, to the names of their arguments after ``self``.
        parts: what its methods assign to ``self``, where that is a call: ``self.<name>`` to the name of what is called.
    """

    name: str
    file: Path
    attributes: Mapping[str, Any]
    bases: tuple[ClassSource, ...]
    methods: Mapping[str, tuple[str, ...]]
    parts: Mapping[str, str]

    def ancestry(self) -> Iterator[ClassSource]:
        """The class and those it derives from, nearest first."""
        yield self
        for base in self.bases:
            yield from base.ancestry()

    def attribute(self, name: str) -> Any:
        """Value of a class attribute, its own or an inherited one; None where no class assigns it."""
        return next((one.attributes[name] for one in self.ancestry() if name in one.attributes), None)

    def method(self, name: str) -> tuple[str, ...] | None:
        """The arguments of a method, its own or an inherited one; None where no class defines it."""
        return next((one.methods[name] for one in self.ancestry() if name in one.methods), None)

    def part(self, name: str) -> str | None:
        """What is called to make ``self.<name>``; None where no class makes it."""
        return next((one.parts[name] for one in self.ancestry() if name in one.parts), None)

    def text(self) -> str:
        """The module that defines it."""
        return self.file.read_text(encoding="utf-8")


def read_class(reference: str) -> ClassSource | None:
    """The class that ``"module:Class"`` stands for; None where no source file of it is found."""
    module, _, name = reference.partition(":")
    return _read_class(module, name)


def classes_in(module: str) -> list[ClassSource]:
    """The classes that a module defines, in their order."""
    parsed = _parse(module)
    found = (_read_class(module, name) for name in parsed.classes) if parsed else ()
    return [one for one in found if one is not None]


def literals_in(module: str) -> dict[str, Any]:
    """The plain values that a module assigns to names."""
    parsed = _parse(module)
    return {} if parsed is None else _assigned(parsed.body)


def missing_packages(module: str) -> list[str]:
    """Packages that a module cannot be imported without, and that are not installed."""
    parsed = _parse(module)
    names = []
    for node in parsed.body if parsed else ():
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return [top for top in dict.fromkeys(name.partition(".")[0] for name in names) if find_spec(top) is None]


@dataclass(frozen=True)
class _Module:
    file: Path
    body: list[ast.stmt]
    classes: Mapping[str, ast.ClassDef]
    imported: Mapping[str, tuple[str, str]]


@cache
def _read_class(module: str, name: str) -> ClassSource | None:
    parsed = _parse(module)
    if parsed is None:
        return None
    if name not in parsed.classes:  # a package that hands on what its modules define
        return _read_class(*parsed.imported[name]) if name in parsed.imported else None
    node = parsed.classes[name]
    bases = []
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id != name:
            where = (module, base.id) if base.id in parsed.classes else parsed.imported.get(base.id)
            found = _read_class(*where) if where else None
            bases += [found] if found else []
    methods = {one.name: _arguments(one.args) for one in node.body if isinstance(one, ast.FunctionDef)}
    return ClassSource(name, parsed.file, _assigned(node.body), tuple(bases), methods, _parts(node))


def _arguments(given: ast.arguments) -> tuple[str, ...]:
    """Names of a method's arguments after the first, as :mod:`inspect` lists them."""
    several = [one for one in (given.vararg, *given.kwonlyargs, given.kwarg) if one is not None]
    return tuple(one.arg for one in [*given.posonlyargs, *given.args, *several][1:])


def _parts(node: ast.ClassDef) -> dict[str, str]:
    """What the methods of a class assign to ``self``, by the last name of what is called for it."""
    made = [one for one in ast.walk(node) if isinstance(one, ast.Assign) and isinstance(one.value, ast.Call)]
    targets = [(target, one.value) for one in made for target in one.targets if isinstance(target, ast.Attribute)]
    return {
        target.attr: ast.unparse(value.func).rpartition(".")[2]
        for target, value in targets
        if isinstance(value, ast.Call) and isinstance(target.value, ast.Name) and target.value.id == "self"
    }


def _assigned(body: list[ast.stmt]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for node in body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = getattr(node, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and value is not None:
                try:
                    values[target.id] = ast.literal_eval(value)
                except ValueError:
                    if isinstance(value, ast.Attribute):
                        values[target.id] = value.attr
    return values


@cache
def _parse(module: str) -> _Module | None:
    file = _find(module)
    if file is None:
        return None
    body = ast.parse(file.read_text(encoding="utf-8")).body
    classes, imported = {}, {}
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in _flat(body):
        if isinstance(node, ast.ClassDef):
            classes[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            start = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            where = ".".join(filter(None, (start, node.module)))
            imported.update({alias.asname or alias.name: (where, alias.name) for alias in node.names})
    return _Module(file, body, classes, imported)


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those inside ``if`` and ``try`` included."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _flat(node.body)


def _find(module: str) -> Path | None:
    """The file of a module; only its topmost package is looked for by Python, and nothing is imported."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder).joinpath(*rest)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None
