"""What a model changes of itself besides weights, as tensors and plain data: what a state of its training has to hold.

RecBole's models keep much in plain attributes: what they have propagated, counts of steps, graphs that are drawn again
for every epoch, generators.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llm.hashing import hash_arrays

PLAIN = (bool, int, float, str, type(None))
_KINDS = (*PLAIN, Tensor, np.ndarray, list, tuple, dict, set, torch.Generator)
_OF_TORCH = {*vars(nn.Module()), "training"}  # attributes that every module has


class OwnValues:
    """The attributes of a model and its modules, besides weights, in which training may leave something.

    Args:
        model: as it is before training.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> model.steps = 0
        >>> own = OwnValues(model)
        >>> model.steps, model.seen = 3, [torch.ones(1)]
        >>> sorted(own.changed())
        ['seen', 'steps']
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._fresh = dict(_values_of(model))  # holds the values, so that no other takes their place in memory
        self._marks = {name: _mark(value) for name, value in self._fresh.items()}

    def changed(self) -> dict[str, Any]:
        """Values by ``<path of the module>.<attribute>`` that are not those of the beginning."""
        return {
            name: value
            for name, value in _values_of(self._model)
            if name not in self._fresh
            or _mark(value) != self._marks[name]
            or (value is not self._fresh[name] and not isinstance(value, (*PLAIN, np.ndarray)))
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Put values back that :meth:`changed` has given."""
        for name, value in values.items():
            path, _, attribute = name.rpartition(".")
            setattr(self._model.get_submodule(path), attribute, value)


def _values_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    known = set(model.state_dict())
    for path, module in model.named_modules():
        start = f"{path}." if path else ""
        buffers = {name: value for name, value in module._buffers.items() if f"{start}{name}" not in known}
        own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
        yield from (
            (f"{start}{name}", value) for name, value in {**own, **buffers}.items() if isinstance(value, _KINDS)
        )


def _mark(value: Any) -> Any:
    """What differs once a value has changed in place."""
    if isinstance(value, Tensor):
        return value._version
    if isinstance(value, np.ndarray):
        return hash_arrays(value) if value.dtype != object else len(value)
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    return value if isinstance(value, PLAIN) else len(value)


# ------------------------------------------------------------------------------------------------------------ packing


def is_dense(value: Any) -> bool:
    """Whether it is a tensor that a state can hold as it is."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_complex()


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> list[Any]:
    """A value as JSON data that :func:`unpack` turns back.

    Args:
        value: a plain one, a tensor, an array of numbers, a generator of the CPU, or lists, tuples and dictionaries of
            them.
        name: name of the value, the beginning of the names of its tensors.
        tensors: gets them.

    Raises:
        TypeError: it is none of these.

    Example:
        >>> tensors = {}
        >>> told = pack({"seen": [1, torch.eye(2).to_sparse()]}, "x", tensors)
        >>> unpack(told, tensors, "cpu")["seen"][1].to_dense().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if isinstance(value, PLAIN):
        return ["plain", value]
    if is_dense(value):
        tensors[name] = value
        return ["tensor", name]
    if isinstance(value, Tensor) and value.layout == torch.sparse_coo and not value.is_complex():
        tensors[f"{name}/indices"], tensors[f"{name}/values"] = value._indices(), value._values()
        return ["sparse", name, list(value.shape), value.is_coalesced()]
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        tensors[name] = torch.from_numpy(value.copy())
        return ["array", name]
    if isinstance(value, torch.Generator) and value.device.type == "cpu":
        tensors[name] = value.get_state()
        return ["generator", name]
    if type(value) in (list, tuple):
        return [type(value).__name__, [pack(part, f"{name}/{index}", tensors) for index, part in enumerate(value)]]
    if type(value) is dict and all(type(key) in (int, str) for key in value):
        parts = enumerate(value.items())
        return ["dict", [[key, pack(part, f"{name}/{index}", tensors)] for index, (key, part) in parts]]
    raise TypeError(f"{name}: a {type(value).__name__} cannot be written down")


def unpack(told: list[Any], tensors: Mapping[str, Tensor], device: torch.device | str) -> Any:
    """What :func:`pack` has packed, its tensors on a device."""
    kind, content, *more = told
    if kind == "plain":
        return content
    if kind == "tensor":
        return tensors[content].to(device)
    if kind == "sparse":
        places, values = tensors[f"{content}/indices"], tensors[f"{content}/values"]
        return torch.sparse_coo_tensor(places, values, more[0], is_coalesced=more[1], check_invariants=False).to(device)
    if kind == "array":
        return tensors[content].numpy().copy()
    if kind == "generator":
        generator = torch.Generator()
        generator.set_state(tensors[content])
        return generator
    if kind == "dict":
        return {key: unpack(part, tensors, device) for key, part in content}
    parts = [unpack(part, tensors, device) for part in content]
    return tuple(parts) if kind == "tuple" else parts
