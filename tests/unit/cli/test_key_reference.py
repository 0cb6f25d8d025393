"""Every key of a recipe has a line that says what it is, and no line is about a key that is gone."""

from microbert_cli.cli.key_reference import declaring_class, key_texts, recipe_keys
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.values import Prune, TaskPhase

KEYS = {key.name: key for key in recipe_keys()}


def test_every_key_has_a_line() -> None:
    assert [key.name for key in KEYS.values() if not key.text] == []
    assert len(KEYS) > 200


def test_no_line_is_about_a_key_that_is_gone() -> None:
    classes = {base.__name__: base for model in _models(Recipe) for base in model.__mro__}
    for name, lines in key_texts().items():
        assert set(lines) <= set(classes[name].model_fields), name


def test_types_and_bounds_in_words() -> None:
    assert KEYS["finetune.learning_rate"].type == "number > 0" and KEYS["finetune.learning_rate"].default == "5e-05"
    assert KEYS["cascade.confidence"].type == "number > 0 < 1"
    assert KEYS["corpus.format"].type == "pairs, packed" and KEYS["corpus.format"].default == '"pairs"'
    assert KEYS["general.dual.vocabulary"].type == "false or whole number >= 8"
    assert KEYS["initialise.layers"].type == "uniform, first, last or list of whole number"
    assert KEYS["data.text"].type == "list of text or text" and KEYS["data.text"].default == ""


def test_a_line_of_the_class_itself_goes_before_that_of_its_parent() -> None:
    assert declaring_class(type(Recipe().finetune), "learning_rates") == "Finetune"
    assert declaring_class(type(Recipe().finetune), "warmup") == "Training"
    assert KEYS["phases.PHASE.prune.end"].text != "" and KEYS["phases.PHASE.chunk_rows"].text != ""


def _models(model: type) -> list[type]:
    parts = [
        f.annotation
        for f in model.model_fields.values()
        if isinstance(f.annotation, type) and hasattr(f.annotation, "model_fields")
    ]  # type: ignore[attr-defined]  # noqa: E501
    return [model, TaskPhase, Prune, *(each for part in parts for each in _models(part))]
