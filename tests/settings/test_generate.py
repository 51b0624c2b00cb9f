"""What is derived from the settings' declarations is as they say."""

import yaml

from recbole_llm.declare import NO_DEFAULT, Key, Setting
from recbole_llm.property_files import find_properties, load_yaml
from recbole_llm.settings.declarations import classic_keys, groups, llm_keys
from recbole_llm.settings.generate import describe, page, property_line, property_texts, refreshed, yaml_text

FOLDER = find_properties()


def test_property_files_and_the_page_of_settings_are_as_generated():
    """If not: python -m recbole_llm.settings.generate."""
    changed = [str(file) for file, text in property_texts(FOLDER).items() if file.read_text(encoding="utf-8") != text]
    assert changed == []
    docs = FOLDER.parent / "docs" / "settings.md"
    assert not docs.parent.is_dir() or docs.read_text(encoding="utf-8") == page()


def test_every_component_default_stands_in_a_property_file_and_is_accepted():
    files = ("overall.yaml", "evaluation.yaml", "llm/tiny.yaml")
    found = {key: value for file in reversed(files) for key, value in load_yaml(FOLDER / file).items()}
    llm = {**found, **load_yaml(FOLDER / "evaluation.yaml"), **load_yaml(FOLDER / "overall.yaml")}
    for key in llm_keys().values():
        if key.default is not NO_DEFAULT and key.name != "valid_metric":
            assert key.name in llm and llm[key.name] == key.default and key.accepts(key.default), key.name


def test_recbole_models_read_what_every_model_reads():
    assert set(classic_keys()) < set(llm_keys())
    assert sum(len(group.components) for group in groups() if group.every_model) == 6


def test_a_refreshed_file_keeps_values_headings_and_what_is_not_declared():
    key = Key("lora_r", (int,), False, Setting("rank of LoRA", low=1), 8)
    text = "# Heading\n\nlora_r: 4   # (int) old,\n            # in two lines\nother: 1  # (int) Its own.\n  inner: 2\n"
    line = property_line("lora_r", "4", "(int) Rank of LoRA, >= 1.")
    assert refreshed(text, {}, {"lora_r": key}) == f"# Heading\n\n{line}\nother: 1  # (int) Its own.\n  inner: 2\n"
    assert "lora_r: 8 " in refreshed(text, {"lora_r": 8}, {"lora_r": key})


def test_a_setting_is_told_in_one_line():
    key = Key("a", (int,), True, Setting("rows", low=1, null="takes all", note="few are enough", scope="dsir"))
    assert describe(key) == "dsir: rows, >= 1; few are enough; ~ takes all."
    key = Key("a", (str,), False, Setting("kind", choices={"x": "the first", "y": ""}))
    assert describe(key) == "Kind: x (the first) | y."


def test_values_are_written_as_yaml_reads_them(tmp_path):
    values = [1e-4, 1e-8, 0.003, 1.0, 16, True, None, "auto", ["a", "b"], {"max_norm": 1.0}, [], {}]
    assert [yaml_text(value) for value in values[:3]] == ["1e-4", "1e-8", "0.003"]
    for value in values:
        (tmp_path / "a.yaml").write_text(f"a: {yaml_text(value)}\n")
        assert load_yaml(tmp_path / "a.yaml") == {"a": value}
    assert yaml.safe_load("[1, 2]") == [1, 2]
