"""What is written is read back as it was, as a word of the command line and in a config file."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_llm.declare import NO_DEFAULT, Key
from recbole_llm.errors import InputError
from recbole_llm.property_files import dump_yaml, load_yaml
from recbole_llm.settings.config import Config
from recbole_llm.settings.declarations import llm_keys
from recbole_llm.settings.models import llm_model_names
from recbole_llm.settings.values import parse_setting, write_setting

KEYS = list(llm_keys().values())
TEXTS = st.one_of(
    st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=8),
    st.sampled_from([" ", "", "~", "null", "None", "True", "1e5", "1_0", "- a", "a: b", "'", '"', "#", "[3,5]"]),
)


def values_of(key: Key) -> st.SearchStrategy[object]:
    """Values that a key accepts: of each of its types, its choices, its default, and None."""
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=64)
    plain = {
        bool: st.booleans(),
        int: st.integers(-(10**6), 10**12),
        float: numbers | st.floats(0, 1),
        str: TEXTS,
        list: st.lists(TEXTS | st.integers(1, 99) | numbers, max_size=3),
        dict: st.dictionaries(TEXTS, TEXTS | numbers | st.none(), max_size=2),
    }
    own = [key.default] if key.default is not NO_DEFAULT else []
    special = [*key.setting.choices, *own, "[3,inf)", "fixed:0.5", {"max_norm": 0.5}, {"rating": 4}, None]
    strategy = st.one_of(*(plain[kind] for kind in key.types), st.sampled_from(special))
    return strategy.filter(key.accepts)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_value_that_a_key_accepts_survives_writing_and_reading(data: st.DataObject):
    key = data.draw(st.sampled_from(KEYS), label="key")
    value = data.draw(values_of(key), label="value")
    word = parse_setting(key.name, write_setting(key.name, value))
    assert (word, type(word)) == (value, type(value))


@given(st.dictionaries(st.sampled_from(["a", "b"]), TEXTS | st.floats(allow_nan=False) | st.integers() | st.none()))
def test_config_files_read_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, pairs: dict[str, object]):
    file = tmp_path_factory.mktemp("config") / "a.yaml"
    file.write_text(dump_yaml({**pairs, "list": list(pairs.values())}), encoding="utf-8")
    found = load_yaml(file)
    assert found == {**pairs, "list": list(pairs.values())}
    assert [type(value) for value in found["list"]] == [type(value) for value in pairs.values()]


# Models that an axis does not apply to: its value in the settings below is refused.
TAKES_NO = {
    "LLMEmb": lambda settings: "coreset" in settings,
    "TTDS": lambda settings: settings.get("adapter") == "ilora",
    "Laser": lambda settings: "coreset" in settings,
}


GIVEN: list[dict[str, object]] = [
    {},
    {"adapter": "ilora", "coreset": "random", "coreset_size": 0.5},
    {"adapter": "full", "coreset": "goracs", "llm_path": "some/llm"},
    {"seq_separator": ";", "domain": "1e5"},
]


def case(model: str, given_settings: dict[str, object]) -> object:
    """Every model as it is, and some with each of the settings, are fast."""
    is_fast = not given_settings or model in ("BIGRec", "SOFT", *TAKES_NO)
    return pytest.param(model, given_settings, marks=[] if is_fast else pytest.mark.slow)


@pytest.mark.parametrize(("model", "given_settings"), [case(name, own) for own in GIVEN for name in llm_model_names()])
def test_the_config_file_of_a_run_gives_the_same_settings_elsewhere(model, given_settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if model in TAKES_NO and TAKES_NO[model](given_settings):
        with pytest.raises(InputError):
            Config(model, "ml-100k", settings=given_settings)
        return
    config = Config(model, "ml-100k", settings=given_settings)
    written = config.settings()
    (tmp_path / "config.yaml").write_text(dump_yaml(written), encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = Config(config_file_list=[tmp_path / "config.yaml"])
    assert again.settings() == written
    assert again.for_auxiliary("SASRec").learning_facts() == config.for_auxiliary("SASRec").learning_facts()
    assert again["seq_separator"] == config["seq_separator"] == given_settings.get("seq_separator", " ")
