"""Where a key's value comes from, as a truth table; and everything that is wrong with a recipe, said at once."""

import difflib
import itertools
import time
import tomllib

import pytest

from microbert_cli.errors import ManyErrors, MbertError, nearest
from microbert_cli.recipe.layers import flatten, merge, nest, normalise
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import overlay, resolve
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.toml import parse_value, read_toml, to_toml

CATALOG = Catalog()
KEY = "phases.intermediate.epochs"
# Lowest first: what gives KEY a value, the value, and how its origin is called. cola's own value is the method's 50.
PLACES = {
    "method for the task": ("task", 50.0, "method tinybert, for cola"),
    "recipe": ("recipe", 2.0, "mine.toml"),
    "environment": ("environment", 3.0, "MBERT_SET_PHASES__INTERMEDIATE__EPOCHS"),
    "set": ("sets", 4.0, f"--set {KEY}"),
    "flag": ("flags", 5.0, f"--{KEY}"),
}


def of(*sets, catalog=CATALOG, **more):
    """A recipe from `--set` texts alone, whatever the environment of the tests."""
    return resolve(catalog=catalog, sets=sets, environment=more.pop("environment", {}), **more)


def errors_of(*sets, **more):
    with pytest.raises(MbertError) as caught:
        of(*sets, **more)
    error = caught.value
    return error.errors if isinstance(error, ManyErrors) else [error]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("present", list(itertools.product([False, True], repeat=len(PLACES))))
def test_every_combination_of_places(present, tmp_path):
    given = [place for place, there in zip(PLACES, present, strict=True) if there]
    text = 'method = "tinybert"\n' + ('task = "cola"\n' if "method for the task" in given else "")
    text += "[phases.intermediate]\nepochs = 2\n" if "recipe" in given else ""
    resolved = resolve(
        catalog=CATALOG,
        recipe=write(tmp_path / "mine.toml", text),
        environment={"MBERT_SET_PHASES__INTERMEDIATE__EPOCHS": "3", "OTHER": "1"} if "environment" in given else {},
        sets=[f"{KEY}=4"] if "set" in given else [],
        flags={KEY: 5.0, "student": None} if "flag" in given else {"student": None},
    )
    _, value, origin = PLACES[given[-1]] if given else ("", 20.0, "method tinybert")
    assert resolved.recipe.phases["intermediate"].epochs == value
    assert resolved.origins[KEY].endswith(origin)
    assert "student" not in resolved.origins


def test_the_built_in_default_lies_below_the_method():
    assert Recipe().general.batch_size == 32
    assert of().recipe.general.batch_size == 256
    assert "seed" not in of().origins


def test_the_method_itself_may_come_from_any_place(tmp_path):
    recipe = write(tmp_path / "r.toml", 'method = "tinybert-reference"\n')
    assert of(recipe=recipe).recipe.normalisation == "reference"
    assert of(recipe=recipe, environment={"MBERT_SET_METHOD": "tinybert"}).recipe.normalisation == "masked"
    assert of(recipe=recipe, flags={"method": "tinybert"}).recipe.normalisation == "masked"


def test_the_process_environment_is_read_by_default(monkeypatch):
    monkeypatch.setenv("MBERT_SET_finetune__epochs", "7")
    assert resolve(catalog=CATALOG).recipe.finetune.epochs == 7.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-5", 3e-5),
        ("3", 3),
        ("true", True),
        ("sst2", "sst2"),
        ('"3"', "3"),
        ("[2, 4]", [2, 4]),
        ("", ""),
        ("a b", "a b"),
        ("1.2.3", "1.2.3"),
        ("../glue/SST-2", "../glue/SST-2"),
        ("{ weight = 2.0 }", {"weight": 2.0}),
    ],
)
def test_values_are_toml_or_else_text(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_shorthands():
    short = normalise({"corpus": "python-docs", "teacher": "t", "general": {"losses": {"embedding": 2, "x": {"weight": 3}}}})
    assert short["corpus"] == {"source": "python-docs"} and short["teacher"] == {"model": "t"}
    assert short["general"]["losses"] == {"embedding": {"weight": 2}, "x": {"weight": 3}}
    assert of("vocabulary=4000").recipe.vocabulary.size == 4000
    assert of("vectors=glove.txt").recipe.vectors.source == "glove.txt"
    # Names of the top alone: a phase's `data` says which rows it reads.
    inner = of("data=GLUE", "phases.prediction.data=original").recipe
    assert inner.data.folder == "GLUE" and inner.phases["prediction"].data == "original"
    # A shorthand sets one key and leaves its neighbours: the format of the corpus is the method's still.
    assert of("corpus=a.txt", "corpus.max_length=64").recipe.corpus.format == "pairs"
    assert of("phases.prediction.losses.soft_target=0.5").recipe.phases["prediction"].losses["soft_target"].weight == 0.5


def test_a_term_keeps_its_other_parameters():
    term = of("phases.prediction.losses.soft_target.temperature=2.5").recipe.phases["prediction"].losses["soft_target"]
    assert term.weight == 1.0 and term.parameters == {"temperature": 2.5}


def test_tables_merge_and_lists_are_replaced():
    assert merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}}) == {"a": {"b": 1, "c": [3]}}
    assert flatten({"a": {"b": {"c": 1}}, "d": {}}) == {"a.b.c": 1, "d": {}}
    assert nest("a.b", 1) == {"a": {"b": 1}}


def test_all_errors_at_once():
    errors = errors_of(
        "stages=['nope']",
        "finetune.epoch=1",
        "general.losses.atention_scores=1",
        "phases.prediction.losses.soft_target.temprature=2",
        "student='bert-4x'",
        "task='sst'",
        "augment.sources=['maskedlm']",
        "corpus.format='pear'",
        "seed='x'",
    )
    assert sorted(error.code for error in errors) == sorted(
        ["M004", "M002", "M005", "M006", "M005", "M005", "M005", "M003", "M003"]
    )
    text = str(ManyErrors(errors))
    for hint in ("epochs", "attention_scores", "temperature", "sst2", "masked_lm"):
        assert f'Did you mean "{hint}"?' in text
    assert {int(error.exit_code) for error in errors} == {3}
    for error in errors:
        assert error.where.startswith("--set "), error.where


def test_an_error_names_its_own_place(tmp_path):
    recipe = write(tmp_path / "r.toml", "seeds = 3\nseed = 5\n")
    (error,) = errors_of("seed=4", recipe=recipe)
    assert error.where == f"{recipe}, seeds"  # not that of `seed`, whose name it begins with


@pytest.mark.parametrize(("key", "value"), [
    ("layer_map", "7.5"), ("augmented", "3.5"), ("data.text", "3"), ("initialise.layers", "3"), ("initialise.layers", "top"),
])  # fmt: skip
def test_a_key_of_several_types_gives_one_error(key, value):
    (error,) = errors_of(f"{key}={value}")
    assert error.code == "M003" and error.where == f"--set {key}"


LOSS = "phases.prediction.losses.soft_target"


@pytest.mark.parametrize(("code", "key", "value", "place"), [
    ("M003", LOSS, "-1", f"{LOSS}.weight"),
    ("M003", LOSS, "1e30", f"{LOSS}.weight"),
    ("M003", f"{LOSS}.weight", "nan", ""),
    ("M003", f"{LOSS}.weight", "true", ""),
    ("M003", "general.losses.hidden_states", "-0.5", "general.losses.hidden_states.weight"),
    ("M003", "finetune.losses.hard_label.weight", "-inf", ""),
    ("M003", "moe.repair.losses.hard_label.weight", "-1", ""),
    ("M003", "seeds", "[1, 2, 1]", ""),
    ("M003", "seeds", "[4294967296]", "seeds.0"),
    ("M003", "seed", "true", ""),
    ("M003", "finetune.epochs", "true", ""),
    ("M003", "finetune.learning_rate", "inf", ""),
    ("M003", "finetune.learning_rates", "[1e-5, 1e-5]", ""),
    ("M003", "finetune.weight_decay", "1e30", ""),
    ("M003", "pretrain.masked", "0", ""),
    ("M003", "augment.sources", '["masked_lm", "masked_lm"]', ""),
    ("M003", "augment.replace_probability", "0", ""),
    ("M003", "corpus.heldout", "1", ""),
    ("M003", "export.tolerance", "1e30", ""),
    ("M019", f"{LOSS}.temperature", "0", ""),
    ("M019", f"{LOSS}.temperature", "-2", ""),
    ("M019", f"{LOSS}.temperature", "1e-30", ""),
    ("M019", f"{LOSS}.temperature", "1e30", ""),
    ("M019", f"{LOSS}.temperature", "nan", ""),
    ("M017", f"{LOSS}.temperature", "true", ""),
    ("M017", f"{LOSS}.temperature", "warm", ""),
    ("M017", f"{LOSS}.squared_temperature", "maybe", ""),
    ("M018", f"{LOSS}.divergence", "k1", ""),
    ("M019", "finetune.losses.hard_label.label_smoothing", "1.5", ""),
    ("M019", "general.losses.token_mixed_target.alpha", "-1", ""),
    ("M017", "general.losses.relations.heads", "2.5", ""),
    ("M019", "general.losses.feature_statistics.means", "inf", ""),
])  # fmt: skip
def test_numbers_without_sense_are_refused_under_their_key(code, key, value, place):
    error = errors_of(f"{key}={value}")[0]
    assert (error.code, error.where.removeprefix(f"--set {key}, ").removeprefix("--set ")) == (code, place or key)


def test_the_advice_for_a_value_out_of_bounds_works():
    error = errors_of(f"{LOSS}.temperature=-1")[0]
    assert "at least 0.001" in error.allowed
    assert of(error.fix.rpartition("--set ")[2]).recipe


def test_a_plug_in_declares_the_bounds_of_its_parameters(tmp_path):
    lines = [
        "from typing import Literal", "needs, over = {'logits'}, 'batch'", "bounds = {'strength': (0.5, None)}",
        "Way = Literal['a', 'b']", "def mine(student_BC, *, strength: float = 1.0, way: Way = 'a', free: float = 0.0): ...",
    ]  # fmt: skip
    (tmp_path / "losses").mkdir()
    write(tmp_path / "losses" / "mine.py", "\n".join(lines))
    catalog = Catalog([tmp_path])
    for key, value, code in (("strength", "0.4", "M019"), ("way", "c", "M018"), ("free", "-inf", "M019")):
        with pytest.raises(MbertError) as caught:
            resolve(catalog=catalog, sets=[f"phases.prediction.losses.mine.{key}={value}"], environment={})
        assert caught.value.code == code
    resolve(catalog=catalog, sets=["phases.prediction.losses.mine.free=-1e9"], environment={})


@pytest.mark.parametrize(
    "text", ['corpus = "a"\n[corpus]\nmax_length = 8\n', "[corpus]\n[data]\n[corpus]\n", "corpus = 1\ncorpus = 2\n"]
)
def test_a_key_that_is_set_twice_is_named(tmp_path, text):
    (error,) = errors_of(recipe=write(tmp_path / "twice.toml", text))
    assert error.code == "M001" and '"corpus" is there already' in error.what


def test_bad_places_raise_their_own_errors(tmp_path):
    assert errors_of("no-equals-sign")[0].code == "M101"
    assert errors_of(recipe=tmp_path / "gone.toml")[0].code == "M201"
    assert errors_of(recipe=write(tmp_path / "broken.toml", "a = = 1"))[0].code == "M001"
    assert errors_of(recipe="no-such-recipe")[0].code == "M005"
    assert errors_of("method=tinybird")[0].code == "M005"
    (tmp_path / "latin.toml").write_bytes("title = 'caf\xe9'".encode("latin-1"))
    assert errors_of(recipe=tmp_path / "latin.toml")[0].code == "M001"


def test_a_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfseed = 3\n")
    assert read_toml(tmp_path / "bom.toml") == {"seed": 3}


def test_a_method_of_ones_own(tmp_path):
    (tmp_path / "methods").mkdir()
    write(tmp_path / "methods" / "mine.toml", "[phases.only]\nlosses = { soft_target = 1.0 }\nepochs = 2\n")
    write(tmp_path / "methods" / "wrong.toml", "teacher = 'x'\n")
    catalog = Catalog([tmp_path])
    assert list(of("method=mine", catalog=catalog).recipe.phases) == ["only"]
    (error,) = errors_of("method=wrong", catalog=catalog)
    assert error.code == "M002" and "wrong.toml" in error.where


def test_a_recipe_is_frozen_and_defaults_are_not_shared():
    recipe = of().recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1
    assert of().recipe == recipe


def test_a_variant_is_resolved_with_its_own_method_and_task():
    base = of("method=tinybert", "seed=3", "variant.v.seed=4", "phases.prediction.epochs=9")
    assert overlay(base, {"seed": 4}, "variant v", CATALOG).recipe.seed == 4
    other = overlay(base, {"method": "tinybert-reference", "task": "cola"}, "variant v", CATALOG)
    assert other.recipe.normalisation == "reference" and other.recipe.phases["intermediate"].epochs == 10.0
    assert other.recipe.phases["prediction"].epochs == 9.0 and other.recipe.seed == 3
    assert other.origins["method"] == "variant v"
    assert other.origins["phases.prediction.epochs"] == "--set phases.prediction.epochs"
    assert other.origins["normalisation"] == "method tinybert-reference"
    cola = overlay(base, {"task": "cola"}, "variant v", CATALOG)
    assert cola.recipe.phases["intermediate"].epochs == 50.0
    # A variant of a variant keeps both.
    twice = overlay(cola, {"seed": 8}, "variant w", CATALOG)
    assert (twice.recipe.task, twice.recipe.seed) == ("cola", 8)


def test_a_wrong_variant_is_an_error_with_its_name():
    with pytest.raises(MbertError) as caught:
        overlay(of(), {"phases": {"prediction": {"losses": {"soft": 1}}}}, "variant v", CATALOG)
    assert caught.value.code == "M005" and caught.value.where.startswith("variant v")


def test_what_is_written_reads_back():
    recipe = of("task=cola", "data.text=['a \"b\"', 'c']", "data.folder='caf\u00e9 \\\\ x'", "layer_map=[2, 4]").recipe
    values = recipe.model_dump(mode="json")
    again = Recipe.model_validate(tomllib.loads(to_toml(values)))
    assert again == recipe


def test_a_method_without_some_of_its_parts():
    recipe = of("method=microbert", 'ablate=["dis"]', "phases.all.losses.discriminator=0.7").recipe
    assert recipe.phases["all"].losses["discriminator"].weight == 0, "a part that is left out is left out"
    assert recipe.run_phases.keys() == {"alignment", "all"}
    recipe = of("method=microbert", 'ablate=["hidn", "pred"]').recipe
    assert recipe.run_phases.keys() == {"all"}
    weights = {name: term.weight for name, term in recipe.phases["all"].losses.items()}
    assert weights == {"feature_alignment": 0.0, "soft_target": 0.0, "hard_label": 1.0, "discriminator": 0.1}
    single = of("method=microbert", 'ablate=["fal_max"]').recipe.phases["alignment"].losses["feature_alignment"]
    assert single.weight == 1.0 and single.parameters == {"distance": "cosine", "cls": 0.5, "max": 0.0, "mean": 0.5}
    variant = overlay(of("method=microbert"), {"ablate": ["dis"]}, "variant v", CATALOG)
    assert variant.origins["phases.all.losses.discriminator.weight"] == "method microbert without dis"


def test_a_part_that_the_method_does_not_have():
    for method, part, allowed in (("microbert", "diss", "dis"), ("tinybert", "dis", "names no such parts")):
        with pytest.raises(MbertError) as caught:
            of(f"method={method}", f'ablate=["{part}"]')
        assert caught.value.code == "M060" and allowed in caught.value.allowed


# --- thousands of mistakes ----------------------------------------------------------------------------------------------------

MANY = 3000
MISTAKES = {
    "keys": "".join(f"unknown{i} = 1\n" for i in range(MANY)),
    "keys of a table": "[finetune]\n" + "".join(f"unknown{i} = 1\n" for i in range(MANY)),
    "tables": "".join(f"[finetun{i}]\na = 1\n" for i in range(MANY)),
    "losses": "[finetune.losses]\n" + "".join(f"l{i} = 1\n" for i in range(MANY)),
    "parameters": "[finetune.losses.hard_label]\n" + "".join(f"l{i} = 1\n" for i in range(MANY)),
    "stages": f"stages = {[f's{i}' for i in range(MANY)]}\n" + "".join(f"[variant.v{i}]\nseed = 1\n" for i in range(MANY)),
    "names": "".join(f'[variant."v/{i}"]\nstage = "finetune"\n' for i in range(MANY)),
    "tasks": f"tasks = {[f't{i}' for i in range(MANY)]}\n",
    "sources": f"[augment]\nsources = {[f'a{i}' for i in range(MANY)]}\n",
    "ablations": f"ablate = {[f'a{i}' for i in range(MANY)]}\n",
}  # fmt: skip


@pytest.mark.parametrize("text", MISTAKES.values(), ids=MISTAKES)
def test_of_thousands_of_mistakes_the_first_are_explained(text, tmp_path, monkeypatch):
    compared = []
    match = difflib.get_close_matches
    monkeypatch.setattr(difflib, "get_close_matches", lambda *words, **how: compared.append(words[1]) or match(*words, **how))
    with pytest.raises(ManyErrors) as caught:
        of(recipe=write(tmp_path / "mine.toml", text))
    assert len(caught.value.errors) == 20 and caught.value.as_dict()["more_errors"]
    assert "There are more; these 20 come first." in str(caught.value)
    assert len(compared) <= 30 and all(len(candidates) <= 1000 for candidates in compared)


def test_few_mistakes_are_all_explained():
    errors = errors_of(*(f"unknown{i}=1" for i in range(20)))
    assert len(errors) == 20 and "There are more" not in str(ManyErrors(errors))


def test_names_of_any_length_and_number_are_compared_in_no_time():
    names = [f"name{i}" for i in range(100_000)]
    begun = time.process_time()
    assert 'Did you mean "name7"?' in nearest("nme7", ["name7"])
    assert nearest("name" * 50_000, [*names, "x" * 200_000])
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("form", ["{} = 1", "[{}]\nx = 1", "[[{}]]", 'a = 1\n  {}."b" = 1'])
def test_a_key_of_thousands_of_parts_is_refused_unread(form, tmp_path, monkeypatch):
    """tomllib takes a minute for it; in a text such a line is a text."""
    monkeypatch.setattr(tomllib, "loads", lambda _: pytest.fail("it was parsed"))
    with pytest.raises(MbertError) as caught:
        read_toml(write(tmp_path / "deep.toml", form.format(" . ".join(["a", '"b"'] * 30_000))))
    assert caught.value.code == "M050"


def test_a_long_text_with_points_is_read(tmp_path):
    text = "a.b" * 5000
    assert read_toml(write(tmp_path / "long.toml", f'key = "{text}"\n')) == {"key": text}
