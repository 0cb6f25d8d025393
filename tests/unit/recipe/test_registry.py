"""Names: the golden list of what is built in, folders of one's own, patterns, and hints for what was mistyped."""

import sys
from importlib import import_module

import pytest

from microbert_cli.errors import MbertError
from microbert_cli.recipe.registry import KINDS, Catalog, TypeOrWords

BUILT_IN = {
    "losses": [
        "attention_distribution", "attention_scores", "attention_transfer", "bidirectional_target", "closest_layers", "cosine",
        "discriminator",
        "embedding", "feature_alignment", "feature_maps", "feature_statistics", "hard_label", "hidden_states",
        "load_balance", "logit_mse", "masked_lm", "next_sentence", "patience", "relations", "representation",
        "self_distillation", "shared_projection", "soft_target", "teacher_masked_lm", "token_mixed_target",
        "token_soft_target", "value_relation",
    ],
    "methods": [
        "bilstm", "bilstm-reference", "c-mlm", "cofi", "compact", "distilbert", "dualtrain", "dualtrain-alone",
        "dualtrain-down", "dualtrain-up", "fastbert", "homodistil", "kd", "labels-alone", "microbert", "microbert-plus",
        "minilm", "minilmv2", "mobilebert", "mobilebert-auxiliary", "mobilebert-transfer", "moebert", "mt-dnn", "pd", "pkd",
        "sharedproj", "soft-targets", "tinybert", "tinybert-reference", "xtremedistil",
        "xtremedistil-2019",
    ],
    "students": [
        "bert-4l-768", "bert-LxH", "bert-LxHxF", "bert-small-4l-512", "bi-LxHxF", "bi-compact", "bi_encoder",
        "bilstm", "bilstm-H", "bilstm-HxE", "compact", "demo-2l-64", "demo-4l-128", "demo-4l-64", "demo-ib-bert",
        "demo-mobilebert", "demo-seq2seq", "distilbert-LxH", "early_exit", "ib-bert",
        "inverted_bottleneck", "marian-LxH", "mobilebert", "mobilebert-tiny", "routed_bert", "seq2seq", "seq2seq-LxH",
        "tinybert-4l-312", "tinybert-6l-768",
    ],
    "tasks": ["ax", "cola", "mnli", "mrpc", "python-areas", "python-docs", "python-gaps", "python-raises", "python-roles",
         "python-shuffled", "python-topics",
        "qnli", "qqp", "rte", "sst2", "stsb", "wnli"],
    "recipes": [
        "bilstm-quickstart", "bilstm-sst2", "c-mlm-quickstart", "cascade-quickstart", "cofi-quickstart",
        "compact-quickstart", "compact-sst2", "distilbert-quickstart", "distilbert-sst2", "dualtrain-quickstart",
        "fastbert-quickstart", "fastbert-sst2", "glue-mt-dnn", "homodistil-quickstart",
        "kd-quickstart", "kd-sst2", "microbert-quickstart", "microbert-sst2", "microbert-tasks", "minilm-quickstart",
        "minilm-sst2", "minilmv2-quickstart", "minilmv2-sst2", "mobilebert-quickstart", "mobilebert-sst2",
        "moebert-quickstart", "moebert-sst2", "mt-dnn-quickstart", "multi-label-quickstart",
        "own-data", "pd-quickstart", "pd-sst2", "pkd-quickstart", "pkd-search",
        "pkd-sst2", "quickstart", "sst2-tinybert", "words-quickstart", "xtremedistil-quickstart", "xtremedistil-sst2",
    ],
    "augmenters": ["masked_lm", "perturb", "recombine", "rules", "windows", "word_vectors"],
    "machines": ["a100", "h100", "h200", "l4"],
}  # fmt: skip
CATALOG = Catalog()


@pytest.mark.parametrize("kind", BUILT_IN)
def test_nothing_built_in_disappears_silently(kind):
    assert CATALOG.names(kind) == BUILT_IN[kind]


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("bert-4x312", {"L": 4, "H": 312}),
        ("bert-12x768", {"L": 12, "H": 768}),
        ("bert-4x312x1200", {"L": 4, "H": 312, "F": 1200}),
        ("tinybert-4l-312", {}),
    ],
)
def test_patterns(name, numbers):
    assert CATALOG.numbers("students", name) == numbers
    assert list(CATALOG.check("students", name, "student")) == []


@pytest.mark.parametrize(
    "name", ["bert-4x", "bert-0x312", "bert-4x0", "bert-04x312", "bert-4x312x", "xbert-4x312", "BERT-4x312"]
)
def test_what_fits_no_pattern_is_an_error(name):
    (error,) = CATALOG.check("students", name, "student")
    assert (error.code, error.where) == ("M005", "student")


def test_the_nearest_name_is_offered():
    (error,) = CATALOG.check("losses", "soft_targets", "here")
    assert 'Did you mean "soft_target"?' in error.allowed and '"soft_targets"' in error.what
    assert error.what.startswith("there is no loss ")
    (error,) = CATALOG.check("tasks", "zzz", "here")
    assert "Did you mean" not in error.allowed and "sst2" in error.allowed


def test_parameters_of_a_loss_are_read_without_importing_it():
    assert CATALOG.loss_parameters("soft_target") == {
        "temperature": TypeOrWords("float", ("auto",)),
        "divergence": ("cross-entropy", "kl", "symmetric-kl"), "reduction": ("auto", "batch", "elements"),
        "squared_temperature": "bool", "normalisation": "str",
    }  # fmt: skip
    assert CATALOG.loss_parameters("discriminator")["input"] == ("logits", "cls", "both")  # by its alias
    assert CATALOG.loss_parameters("hard_label") == {"label_smoothing": "float", "gamma": "float"}
    assert CATALOG.loss_parameters("masked_lm") == {}


LOSS = '''"""A loss that would fail if it were imported to be listed."""

needs = {"logits"}
over = "batch"
imported = True


def %s(student_BC, teacher_BC, *, strength=1.0, _private=0):
    return (student_BC - teacher_BC).abs().mean() * strength
'''


def included(tmp_path, kind, name, text):
    (tmp_path / kind).mkdir(exist_ok=True)
    (tmp_path / kind / name).write_text(text, encoding="utf-8")
    return Catalog([tmp_path])


def test_a_file_of_ones_own_is_found(tmp_path):
    catalog = included(tmp_path, "losses", "absolute.py", LOSS % "absolute")
    assert catalog.names("losses") == sorted([*BUILT_IN["losses"], "absolute"])
    assert catalog.loss_parameters("absolute") == {"strength": None, "_private": None}
    assert "mbert_included_losses_absolute" not in sys.modules
    assert catalog.module("losses", "absolute").imported
    assert CATALOG.names("losses") == BUILT_IN["losses"]


def test_a_file_of_ones_own_hides_the_built_in_one(tmp_path):
    catalog = included(tmp_path, "losses", "embedding.py", LOSS % "embedding")
    assert catalog.path("losses", "embedding", where="x").parent == tmp_path / "losses"
    assert catalog.module("losses", "embedding").imported
    assert not hasattr(CATALOG.module("losses", "embedding"), "imported")


def test_later_folders_win(tmp_path):
    for folder, title in (("one", "1"), ("two", "2")):
        (tmp_path / folder).mkdir()
        included(tmp_path / folder, "students", "mine.toml", f"title = '{title}'")
    catalog = Catalog([tmp_path / "one", tmp_path / "two"])
    assert "2" in catalog.path("students", "mine", where="x").read_text()


def test_a_path_to_a_file_serves_as_a_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("x = 1")
    assert CATALOG.path("students", str(path), where="x") == path
    with pytest.raises(MbertError) as caught:
        CATALOG.path("students", str(tmp_path / "gone.toml"), where="x")
    assert caught.value.code == "M005"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(MbertError) as caught:
        Catalog([tmp_path / "gone"])
    assert caught.value.code == "M202"


def test_every_built_in_file_is_whole():
    for kind in KINDS:
        for name in CATALOG.names(kind):
            assert CATALOG.path(kind, name, where=kind).is_file()
    for name in CATALOG.names("losses"):
        module = CATALOG.module("losses", name)
        over = module.over() if callable(module.over) else module.over
        assert over in ("layers", "inner", "embedding", "top", "batch")
        assert callable(getattr(module, name))


FORMER_IMPORTS = """
from microbert_cli.augmenters import Slot, Tools
from microbert_cli.errors import MbertError
from microbert_cli.losses.soft_target import soft_target
from microbert_cli.reduce import mean_over_tokens
from microbert_cli.students import inverted_bottleneck
from microbert_cli.students.routed_bert import MODEL_TYPE
"""


def test_an_included_file_may_import_by_names_from_before_the_move(tmp_path):
    (tmp_path / "augmenters").mkdir()
    (tmp_path / "augmenters" / "former_imports.py").write_text(FORMER_IMPORTS)
    included = Catalog([tmp_path]).module("augmenters", "former_imports")
    interface = import_module("microbert_cli.augmentation.interface")
    assert (included.Slot, included.Tools) == (interface.Slot, interface.Tools)
    assert included.soft_target is import_module("microbert_cli.catalog.losses.soft_target").soft_target
    assert included.MODEL_TYPE == import_module("microbert_cli.models.moe.bert").MODEL_TYPE


@pytest.mark.parametrize(
    ("former", "current"),
    [
        ("augmenters", "augmentation.interface"),
        ("losses", "catalog.losses"),
        ("losses.hard_label", "catalog.losses.hard_label"),
        ("students.routed_bert", "models.moe.bert"),
        ("students.inverted_bottleneck", "catalog.students.inverted_bottleneck"),
    ],
)
def test_a_former_name_leads_to_the_same_module(former, current):
    module = import_module(f"microbert_cli.{former}")
    assert module is import_module(f"microbert_cli.{current}")
    assert module.__spec__.name == module.__name__ == f"microbert_cli.{current}"


def test_a_name_that_never_was_is_no_module():
    with pytest.raises(ModuleNotFoundError, match="microbert_cli.lessons"):
        import_module("microbert_cli.lessons")
