"""Settings declared on the fields of dataclasses, and the exception that refuses their values."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest

from recbole_llm.declare import Declared, Setting, keys_by_name, keys_of
from recbole_llm.errors import InputError
from tests.refusals import refused


@dataclass(frozen=True)
class Low(Declared):
    r: Annotated[int, Setting("rank", low=1)] = 8
    dropout: Annotated[float, Setting("dropout", low=0, below=1)] = 0.05
    targets: Annotated[str | list[str], Setting("maps")] = "auto"
    size: Annotated[int | float | None, Setting("rows", share=True, null="all")] = None
    seed: int = 0

    name: ClassVar[str] = "low"

    def only_here(self) -> int:
        return self.r


@dataclass(frozen=True)
class High(Low):
    gate: Annotated[str, Setting("gate", choices=("linear", "mlp"))] = "linear"
    steps: Annotated[int, Setting("steps", low=0, key="total_steps")] = 5

    name: ClassVar[str] = "high"


def test_a_field_is_a_setting_under_the_name_of_the_class_that_declares_it():
    names = {field: key.name for field, key in keys_of(High).items()}
    low = {"r": "low_r", "dropout": "low_dropout", "targets": "low_targets", "size": "low_size"}
    assert names == {**low, "gate": "high_gate", "steps": "total_steps"}
    assert keys_of(High)["size"].null and not keys_of(High)["r"].null
    assert keys_of(High)["r"].default == 8 and keys_of(int) == {}


@pytest.mark.parametrize(
    ("field", "good", "bad", "allowed"),
    [
        ("r", [1, 8], [0, 1.0, True, "1", None, math.nan], "an integer >= 1"),
        ("dropout", [0, 0.99], [1, -0.1, math.nan, False, "0"], "a number >= 0 and < 1"),
        ("targets", ["all", ["q", "v"], ("q",)], [3, [], [1], None], "text or a list of them"),
        ("size", [1, 0.5, 1.0, None], [0, 0.0, 1.5, True], r"an integer >= 1 \(a count\) or a decimal in \(0, 1\]"),
        ("gate", ["mlp"], ["conv", None, 1], "one of linear, mlp"),
    ],
)
def test_values_are_checked_wherever_a_component_is_made(field, good, bad, allowed):
    key = keys_of(High)[field].name
    for value in good:
        assert getattr(High(**{field: value}), field) == value
        assert getattr(High.from_settings({key: value, "other": 1}), field) == value
    for value in bad:
        for make in (lambda value: High(**{field: value}), lambda value: High.from_settings({key: value})):
            with refused(key, "value", f"^{key}: .* is not allowed; give {allowed}"):
                make(value)


def test_numbers_of_numpy_are_numbers():
    np = pytest.importorskip("numpy")
    assert Low(r=np.int64(2), dropout=np.float32(0.5)).r == 2
    with refused("low_r", "value", "low_r"):
        Low(r=np.float64(2.0))


def test_what_is_not_set_keeps_the_components_own_default():
    assert High.from_settings({"low_r": 2}) == High(r=2)


def test_one_setting_has_one_declaration():
    @dataclass(frozen=True)
    class Other(Declared):
        low_r: Annotated[int, Setting("another rank")] = 1

    assert list(keys_by_name([Low, High])) == list(keys_by_name([High]))
    with pytest.raises(ValueError, match="low_r is declared by"):
        keys_by_name([Low, Other])


def test_an_error_knows_its_key_and_kind():
    for error in (InputError("topk", "0 is bad"), InputError("topk: 0 is bad"), InputError("--topk: 0 is bad")):
        assert error.key == "topk" and str(error).endswith("topk: 0 is bad") and error.kind == "value"
    assert InputError("no model is given", kind="missing").kind == "missing"
    assert InputError("", "no model is given").key == InputError("adapter /x: damaged").key == ""
    assert str(InputError("", "no model is given")) == "no model is given"
    again = pickle.loads(pickle.dumps(InputError("topk", "0 is bad", kind="conflict")))
    assert (str(again), again.key, again.kind) == ("topk: 0 is bad", "topk", "conflict")


def test_declaring_settings_is_light():
    code = "import sys, recbole_llm.declare; print({'numpy', 'torch', 'yaml'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
