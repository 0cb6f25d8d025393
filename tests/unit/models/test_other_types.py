"""Model types that the table of architectures says little of: their inputs, padding, heads, and what of them is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from encoder_types import build, tiny_config, wordpiece

from microbert_cli.data.examples import Examples
from microbert_cli.data.task_data import TaskData
from microbert_cli.data.tokenized import tokenize_examples
from microbert_cli.distillation.pair_checks import encodings_differ
from microbert_cli.errors import MbertError
from microbert_cli.exporting.directory import exported_tokenizer
from microbert_cli.models.architectures import input_names, positions_of, wasted_positions
from microbert_cli.models.capture import OutputRequest, forward_outputs
from microbert_cli.models.heads.layers import reorder_head
from microbert_cli.models.load import LoadedModel, check_forward, load_model
from microbert_cli.models.onnx import _reason, inputs_of_export
from microbert_cli.models.tokenizers import load_tokenizer, pad_right

TEXTS = [("lovely",), ("the bitter window of the singer near the island .",)]


def on_meta(model_type: str, tokenizer: Any) -> Any:
    with torch.device("meta"):
        return transformers.AutoModelForSequenceClassification.from_config(tiny_config(model_type, tokenizer))


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("bert", ("input_ids", "attention_mask", "token_type_ids")),
        ("roberta", ("input_ids", "attention_mask")),
        ("distilbert", ("input_ids", "attention_mask")),
        ("fnet", ("input_ids", "token_type_ids")),
        ("xlm", ("input_ids", "attention_mask", "token_type_ids")),
        ("xlnet", ("input_ids", "attention_mask", "token_type_ids")),
        ("funnel", ("input_ids", "attention_mask", "token_type_ids")),
        ("deberta-v2", ("input_ids", "attention_mask")),
    ],
)
def test_inputs_are_those_of_the_signature(model_type: str, names: tuple[str, ...], tmp_path: Path) -> None:
    assert input_names(on_meta(model_type, wordpiece(tmp_path))) == names


@pytest.mark.parametrize("model_type", ["xlnet", "xlm", "funnel"])
def test_a_batch_is_answered_as_transformers_answers_it(model_type: str, tmp_path: Path) -> None:
    classifier, _ = build(model_type, tmp_path)
    loaded = load_model(classifier, "classifier", where="model")
    rows = tokenize_examples(Examples(TEXTS), loaded.tokenizer, 64)
    batch = rows.batch([0, 1], pad_id=loaded.tokenizer.pad_token_id)
    padded = loaded.tokenizer([text for (text,) in TEXTS], padding=True, return_tensors="pt")
    assert torch.equal(batch["attention_mask"], padded["attention_mask"])
    with torch.no_grad():
        logits = forward_outputs(loaded.model.eval(), batch, OutputRequest(logits=True)).logits
        expected = loaded.model(**padded).logits
    assert logits is not None
    assert torch.allclose(logits, expected, atol=1e-5)


def test_rows_are_padded_on_the_side_of_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = wordpiece(tmp_path)
    tokenizer.padding_side = "left"
    rows = tokenize_examples(Examples(TEXTS), tokenizer, 24)
    mask = rows.batch([0, 1], pad_to=14)["attention_mask"].numpy()
    assert mask.shape == (2, 14) and (np.diff(mask, axis=1) >= 0).all() and (mask.sum(1) == rows.lengths).all()
    assert pad_right(tokenizer).padding_side == "right" and tokenizer.padding_side == "left"


def test_segments_and_padding_tell_encodings_apart(tmp_path: Path) -> None:
    """A teacher that reads segments must not get the batches of a student whose tokenizer gives none."""
    tokenizers = [wordpiece(tmp_path / name) for name in ("teacher", "student")]
    teacher, student = (LoadedModel(on_meta("bert", tokenizer), tokenizer, "", []) for tokenizer in tokenizers)
    data = TaskData(None, {"train": Examples([("warm", "cold")])}, 24)  # type: ignore[arg-type]
    data.task = type("NoKind", (), {"kind": None, "name": "pairs", "text": ["a", "b"]})()
    assert not encodings_differ(teacher, student)
    tokenizers[1].model_input_names = ["input_ids", "attention_mask"]
    assert encodings_differ(teacher, student)
    assert data.encode("train", student, where="").types is None
    types = data.encode("train", teacher, where="").types
    assert types is not None and types.max() == 1


def refused(code: str, call: Any) -> MbertError:
    with pytest.raises(MbertError) as caught:
        call()
    assert caught.value.code == code
    return caught.value


def test_a_model_that_does_not_read_its_texts_is_refused(tmp_path: Path) -> None:
    """transformers returns zeros from MRA's attention where its kernel for GPUs is not there."""
    classifier, _ = build("mra", tmp_path)
    if torch.cuda.is_available():
        pytest.skip("its kernel may be there")
    refused("M335", lambda: load_model(classifier, "classifier", where="model"))


def test_inputs_that_mbert_does_not_carry_are_refused(tmp_path: Path) -> None:
    classifier, _ = build("roc_bert", tmp_path)
    error = refused("M336", lambda: load_model(classifier, "classifier", where="model"))
    assert "input_pronunciation_ids and input_shape_ids" in str(error)


def test_a_type_without_vocabulary_is_refused() -> None:
    refused("M338", lambda: load_tokenizer("nowhere", transformers.AutoConfig.for_model("canine"), where="model"))


def test_a_type_that_fails_is_refused(tmp_path: Path) -> None:
    config = tiny_config("albert", wordpiece(tmp_path))
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    check_forward(model, where="model")
    model.albert.forward = None
    assert "transformers" in str(refused("M334", lambda: check_forward(model, where="model")))


def test_what_fails_in_training_alone_is_refused_there(tmp_path: Path) -> None:
    classifier, _ = build("reformer", tmp_path)
    model = load_model(classifier, "classifier", where="model").model
    state = torch.random.get_rng_state()
    refused("M334", lambda: check_forward(model, where="model", training=True))
    assert torch.equal(state, torch.random.get_rng_state()) and not model.training


@pytest.mark.parametrize("model_type", ["xlnet", "flaubert", "luke", "funnel", "eurobert"])
def test_heads_need_no_known_name(model_type: str, tmp_path: Path) -> None:
    """A masked-LM or encoder becomes a classifier, and a classifier an encoder; the head is new."""
    classifier, base = build(model_type, tmp_path)
    loaded = load_model(base, "classifier", where="model", new_head=True)
    assert loaded.head_is_new
    whole = load_model(classifier, "classifier", where="model")
    assert not whole.head_is_new
    # Funnel's classifier has no decoder, which its encoder needs.
    if model_type != "funnel":
        load_model(classifier, "encoder", where="model")


def test_weights_of_another_model_are_still_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    classifier, _ = build("xlnet", tmp_path)
    weights = load_file(classifier / "model.safetensors")
    save_file(weights | {"transformer.other.weight": torch.zeros(2)}, classifier / "model.safetensors", {"format": "pt"})
    refused("M310", lambda: load_model(classifier, "classifier", where="model"))


@pytest.mark.parametrize("model_type", ["xlnet", "xlm", "funnel", "bert"])
def test_labels_of_any_head_are_reordered(model_type: str, tmp_path: Path) -> None:
    classifier, _ = build(model_type, tmp_path)
    model = load_model(classifier, "classifier", where="model").model.eval()
    ids = torch.tensor([[5, 7, 9, 8]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        reorder_head(model, [1, 0])
        assert torch.allclose(model(input_ids=ids).logits, before[:, [1, 0]])


@pytest.mark.parametrize(
    ("model_type", "gives", "inputs"),
    [
        ("distilbert", ["input_ids", "token_type_ids", "attention_mask"], ("input_ids", "attention_mask")),
        ("bert", ["input_ids", "attention_mask"], ("input_ids", "attention_mask")),
        ("bert", ["input_ids"], ("input_ids", "attention_mask")),
        ("fnet", ["input_ids", "token_type_ids", "attention_mask"], ("input_ids", "token_type_ids")),
    ],
)
def test_theexported_tokenizer_gives_what_the_graph_takes(
    model_type: str, gives: list[str], inputs: tuple[str, ...], tmp_path: Path
) -> None:
    tokenizer = wordpiece(tmp_path)
    tokenizer.model_input_names = gives
    assert inputs_of_export(on_meta(model_type, tokenizer), tokenizer) == inputs
    exported_tokenizer(tokenizer, inputs, 16).save_pretrained(tmp_path / "out")
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert exported("a").keys() == set(inputs)
    assert len(exported("warm " * 99, truncation=True)["input_ids"]) == 16
    assert tokenizer.model_input_names == gives


def test_positions_without_a_padding_token() -> None:
    config = transformers.AutoConfig.for_model("roberta", max_position_embeddings=130)
    config.pad_token_id = None
    assert positions_of(config) == 128 and wasted_positions("roberta", 0) == 1


def test_the_reason_of_a_failed_export_is_its_cause() -> None:
    error = RuntimeError("Failed to export. \x1b[96mThis is step 1/3\x1b[0m")
    error.__cause__ = ValueError("\x1b[31mdata-dependent\x1b[0m branch\nmore")
    assert _reason(error) == "ValueError: data-dependent branch"


def test_a_length_that_nobody_typed_is_quietly_the_models(tmp_path: Path) -> None:
    tokenizer = wordpiece(tmp_path)
    loaded = LoadedModel(on_meta("bert", tokenizer), tokenizer, "", [])
    rows, task = {"dev": Examples([("warm " * 99,)])}, type("NoKind", (), {"kind": None, "name": "texts", "text": ["a"]})()
    quiet = TaskData(task, rows, 128, length_is_given=False)
    assert quiet.encode("dev", loaded, where="").lengths.tolist() == [64] and quiet.max_length == 128
    quiet.fit_length(loaded.model.config, where="")
    assert quiet.max_length == 64
    error = refused("M012", lambda: TaskData(task, rows, 128).encode("dev", loaded, where="data.max_length"))
    assert "data.max_length=64" in error.fix
