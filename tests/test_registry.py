import shutil
import sys
from textwrap import dedent

import pytest

from recbole_llm import registry
from recbole_llm.property_files import find_properties
from recbole_llm.registry import AXES, MODELS, find_choice, load_class
from recbole_llm.settings.config import Config
from recbole_llm.settings.models import find_model, is_llm_model, model_names, presets
from tests.processes import fresh_python
from tests.refusals import refused


@pytest.fixture
def own_properties(tmp_path, monkeypatch):
    """A copy of the property files that a test may add to."""
    folder = tmp_path / "properties"
    shutil.copytree(find_properties(), folder)
    for name, module in list(sys.modules.items()):
        if name.startswith("recbole_llm.") and hasattr(module, "find_properties"):
            monkeypatch.setattr(module, "find_properties", lambda: folder)
    return folder


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed distribution that offers two models, one of which does not load."""
    info = tmp_path / "some_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[recbole_llm.models]\nOtherRec = some_plugin_model:OtherRec\nBrokenRec = some_plugin_model:BrokenRec\n"
    )
    (tmp_path / "some_plugin_model.py").write_text(
        dedent("""
            from recbole_llm.model.bigrec import BIGRec

            class OtherRec(BIGRec):
                pass
            """)
    )
    (tmp_path / "OtherRec.yaml").write_text("other_weight: 0.5  # (float) A setting of its own.\nepochs: 2")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("some_plugin_model", None)


@pytest.mark.parametrize("table", [MODELS, *AXES.values()], ids=["model", *AXES])
def test_every_name_stands_for_a_class_that_exists(table):
    assert all(reference is None or isinstance(load_class(reference), type) for reference in table.values())


def test_an_axis_value_is_found_or_refused_with_the_choices():
    assert find_choice("adapter", "lora").__name__ == "LoraAdapter"
    assert find_choice("coreset", "none") is None
    with refused("adapter", "unknown", "there is no adapter named 'Lora'; choose from: lora, ilora, reclora, .*full"):
        find_choice("adapter", "Lora")


def test_models_of_recbole_are_found_as_recbole_finds_them():
    from recbole.utils import get_model

    for name in ("Pop", "BPR", "SASRec", "GRU4RecKG", "KD_DAGFM", "DCNV2", "Random", "KGAT"):
        assert find_model(name) is get_model(name)
        assert not is_llm_model(name) and not is_llm_model(find_model(name))


def test_listing_recbole_models_imports_none_of_them():
    code = (
        "import sys; from recbole_llm.settings.models import recbole_models; names = recbole_models();"
        "print(len(names), 'SASRec' in names, 'recbole' in sys.modules, 'torch' in sys.modules)"
    )
    found = fresh_python(code=code).stdout.split()
    assert int(found[0]) > 85 and found[1:] == ["True", "False", "False"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sasrec", "there is no model named 'sasrec'; did you mean SASRec"),
        ("BigRec", "did you mean BIGRec"),
        ("LightGNC", "did you mean LightGCN"),
        ("zzzzzz", "there is no model named 'zzzzzz'; LLM models: BEAR, BIGRec"),
    ],
)
def test_an_unknown_model_is_refused_with_the_nearest(name, message):
    with refused("model", "unknown", message):
        find_model(name)


def test_a_model_whose_package_is_missing_says_so(monkeypatch):
    for package in ("xgboost", "lightgbm"):  # RecBole imports both for either
        monkeypatch.setitem(sys.modules, package, None)
    for module in [name for name in sys.modules if name.startswith("recbole.model.exlib_recommender")]:
        monkeypatch.delitem(sys.modules, module)
    with refused("model", "environment", r"RecBole's XGBoost needs the package '(\w+)': pip install \1"):
        find_model("XGBoost")


def test_a_preset_builds_its_recommender(own_properties):
    (own_properties / "model" / "Preset.yaml").write_text("llm_recommender: BIGRec\nlora_r: 4")
    assert "Preset" in presets() and "Preset" in model_names()
    assert find_model("Preset") is find_model("Preset", "BIGRec") is find_model("BIGRec")
    assert is_llm_model("Preset")
    for bad in ("BigRec", "Preset", "SASRec"):
        with refused("llm_recommender", "unknown", f"Preset: there is no llm_recommender named '{bad}'"):
            find_model("Preset", bad)
    with refused(
        "llm_recommender", "conflict", "llm_recommender: 'BIGRec' is for presets; SASRec is a model of its own"
    ):
        find_model("SASRec", "BIGRec")


def test_another_distribution_can_add_a_model(plugin, own_properties):
    assert is_llm_model("OtherRec") and find_model("OtherRec").__mro__[1] is find_model("BIGRec")
    config = Config("OtherRec", "ml-100k", config_dict={"other_weight": 0.7})
    assert (config["other_weight"], config["epochs"], config["stopping_step"]) == (0.7, 4, 2)
    (own_properties / "model" / "Preset.yaml").write_text("llm_recommender: OtherRec")
    assert find_model("Preset") is find_model("OtherRec")
    with refused("", "environment", "model BrokenRec of another package .* cannot be loaded"):
        find_model("BrokenRec")


def test_nearest_names_ignore_case_and_keep_their_spelling():
    assert registry.nearest("BIGREC", ["BIGRec", "SASRec", "Pop"])[0] == "BIGRec"
    assert registry.nearest("qqqq", ["BIGRec"]) == []
