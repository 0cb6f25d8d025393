"""Loading and building: the released TinyBERT layout, heads that fit or not, and every silent surprise refused."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import WORDS, tiny_bert, tiny_tokenizer

from microbert_cli.distillation.pair_checks import check_pair
from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import check_length
from microbert_cli.models.capture import ATTENTION
from microbert_cli.models.config import read_config
from microbert_cli.models.factory import classifier
from microbert_cli.models.labels import match_labels
from microbert_cli.models.load import load_model
from microbert_cli.models.save import PROJECTION_FILE, copy_model, read_projection, save_model
from microbert_cli.models.tokenizers import same_vocabulary
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.task import load_task
from microbert_cli.recipe.task_kinds import kind_of_head
from microbert_cli.training import checkpoint
from microbert_cli.training.loss_terms import make_terms

NAMES = ["negative", "positive"]
TWO_CLASSES = kind_of_head(2, names=["LABEL_0", "LABEL_1"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A classifier whose labels have names."""
    return tiny_bert(tmp_path_factory.mktemp("models") / "plain", labels=NAMES)


@pytest.fixture
def copied(plain, tmp_path):
    """The same to be damaged."""
    import shutil

    return shutil.copytree(plain, tmp_path / "copy")


def refused(code, source, kind="classifier", **more):
    with pytest.raises(MbertError) as caught:
        load_model(source, kind, where="--model", **more)
    assert caught.value.code == code, caught.value
    assert "--model" in caught.value.where
    return caught.value


def change(path, alter):
    weights = load_file(path / "model.safetensors")
    save_file(alter(weights), path / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """As the TinyBERT authors publish a general checkpoint: no model_type, a pickle, vocab.txt alone, extra weights."""
    folder = tmp_path_factory.mktemp("released")
    source = tiny_bert(folder / "made", kind="encoder", hidden=12, seed=3)
    config = json.loads((source / "config.json").read_text())
    kept = ("attention_probs_dropout_prob", "hidden_act", "hidden_dropout_prob", "hidden_size", "initializer_range",
            "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "type_vocab_size",
            "vocab_size")  # fmt: skip
    old = {key: config[key] for key in kept} | {"cell": {}, "pre_trained": "", "structure": [], "training": ""}
    weights = {f"bert.{name}": value for name, value in load_file(source / "model.safetensors").items()}
    weights |= {"fit_dense.weight": torch.randn(20, 12), "fit_dense.bias": torch.randn(20)}
    weights |= {"cls.predictions.bias": torch.zeros(len(weights)), "cls.seq_relationship.weight": torch.zeros(2, 12)}
    path = folder / "General_TinyBERT"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(old))
    (path / "vocab.txt").write_text((source / "vocab.txt").read_text())
    torch.save(weights, path / "pytorch_model.bin")
    return path, weights


def test_a_released_checkpoint_loads(released):
    path, weights = released
    loaded = load_model(path, "encoder", where="student")
    assert isinstance(loaded.model, transformers.BertModel) and loaded.new == []
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, weights[f"bert.{name}"]), name
    assert torch.equal(loaded.projection["weight"], weights["fit_dense.weight"])
    assert set(loaded.projection) == {"weight", "bias"}
    assert loaded.tokenizer.tokenize("The boat") == ["the", "boat"]


def test_a_released_checkpoint_becomes_a_student(released):
    loaded = load_model(released[0], "classifier", where="student", new_head=True, head=kind_of_head(2, names=NAMES))
    assert loaded.head_is_new and loaded.label_names == NAMES
    assert torch.equal(loaded.model.bert.pooler.dense.weight, released[1]["bert.pooler.dense.weight"])


def test_fit_dense_in_safetensors_is_found_too(released, tmp_path):
    save_file(released[1], tmp_path / "model.safetensors")
    assert torch.equal(read_projection(tmp_path)["bias"], released[1]["fit_dense.bias"])


def test_no_pickle_is_executed(copied):
    """A weights file that would run code when it is unpickled is refused, and does not run."""
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(copied / "ran"), "w"))

    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps({"bert.x": Evil()}))
    assert "never executed" in refused("M302", copied).what
    assert not (copied / "ran").exists()


def test_label_k_are_no_names(tmp_path):
    path = tiny_bert(tmp_path / "m", num_labels=3)
    loaded = load_model(path, "classifier", where="m")
    assert loaded.label_names is None
    mnli = load_task(Catalog().path("tasks", "mnli", where="t"))
    assert match_labels(loaded.model.config, mnli, where="m", source="m") is None
    named = load_model(tiny_bert(tmp_path / "n", labels=["neutral", "Contradiction", "entailment"]), "classifier", where="n")
    assert match_labels(named.model.config, mnli, where="n", source="n") == [2, 0, 1]


def test_weights_are_float32_whatever_was_saved(copied):
    change(copied, lambda weights: {name: value.half() for name, value in weights.items()})
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    loaded = load_model(copied, "classifier", where="--model")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_missing_weights_are_refused(copied):
    change(copied, lambda weights: {name: value for name, value in weights.items() if "layer.1.output" not in name})
    error = refused("M310", copied)
    assert "bert.encoder.layer.1.output" in error.what
    refused("M310", copied, new_head=True)


def test_weights_without_a_place_are_refused(copied):
    change(copied, lambda weights: weights | {"bert.encoder.layer.2.output.dense.weight": torch.zeros(16, 32)})
    refused("M310", copied)


def test_weights_of_another_shape_are_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    refused("M310", copied)


def test_a_raw_encoder_is_no_classifier(tmp_path):
    path = tiny_bert(tmp_path / "raw", kind="masked-lm")
    error = refused("M311", path)
    assert "mbert finetune" in error.fix
    assert load_model(path, "classifier", where="m", new_head=True, head=TWO_CLASSES).head_is_new
    refused("M311", tiny_bert(tmp_path / "bare", kind="encoder"), "masked-lm")


def test_a_head_of_another_size_is_made_anew_from_the_seed(plain):
    def head(seed, labels):
        torch.rand(3)
        names = [f"LABEL_{i}" for i in range(labels)]
        loaded = load_model(plain, "classifier", where="m", new_head=True, head=kind_of_head(labels, names=names), seed=seed)
        return loaded.head_is_new, loaded.model.classifier.weight.detach()

    new, first = head(1, 3)
    assert new and first.shape == (3, 16)
    assert torch.equal(first, head(1, 3)[1]) and not torch.equal(first, head(2, 3)[1])
    kept, weights = head(1, 2)
    assert not kept and torch.equal(weights, load_file(plain / "model.safetensors")["classifier.weight"])


@pytest.mark.parametrize("damage", ["truncated", "empty", "gone", "config", "no config"])
def test_damaged_directories(copied, damage):
    weights = copied / "model.safetensors"
    if damage in ("truncated", "empty"):
        weights.write_bytes(weights.read_bytes()[: 0 if damage == "empty" else 5000])
    elif damage == "gone":
        weights.unlink()
    elif damage == "config":
        (copied / "config.json").write_text("{")
    else:
        (copied / "config.json").unlink()
    refused({"no config": "M211"}.get(damage, "M302"), copied)


def test_a_tokenizer_of_another_size_is_refused(copied, tmp_path):
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (copied / file).unlink(missing_ok=True)
    larger = tiny_tokenizer(tmp_path / "larger", vocab=[*WORDS, "surplus", "words"])
    larger.save_pretrained(copied)
    error = refused("M303", copied)
    assert str(len(larger)) in error.what


def test_a_lost_vocabulary_is_refused(copied):
    """transformers makes a tokenizer of five special tokens out of nothing."""
    for file in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (copied / file).unlink(missing_ok=True)
    with pytest.raises(MbertError) as caught:
        load_model(copied, "classifier", where="--model")
    assert caught.value.code in ("M302", "M303")


def test_vocabularies_are_compared_token_by_token(tmp_path):
    tokenizer, same = (tiny_tokenizer(tmp_path / name) for name in "ab")
    same_vocabulary(tokenizer, same, where="student", keys=["x"])
    other = tiny_tokenizer(tmp_path / "c", vocab=[*WORDS[1:], WORDS[0]])
    assert len(other) == len(tokenizer)
    with pytest.raises(MbertError) as caught:
        same_vocabulary(tokenizer, other, where="student", keys=["x"])
    assert caught.value.code == "M312"


def test_lengths_beyond_the_positions(plain):
    config = read_config(plain, where="m")
    check_length(128, config, where="m")
    with pytest.raises(MbertError) as caught:
        check_length(129, config, where="m")
    assert caught.value.code == "M012" and "128" in caught.value.fix


OTHERS = {
    "Roberta": dict(type_vocab_size=1, pad_token_id=0),
    "DistilBert": None,
    "Albert": dict(embedding_size=8),
    "Electra": dict(embedding_size=8),
    "ModernBert": dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=2, sep_token_id=3),
    "DebertaV2": {},
}


def other_model(name, path):
    """A masked-LM of another architecture with a BERT's vocabulary."""
    tokens = tiny_tokenizer(path)
    shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    if OTHERS[name] is None:
        shape = dict(dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokens), max_position_embeddings=40, **shape, **(OTHERS[name] or {})
    )
    getattr(transformers, f"{name}ForMaskedLM")(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", OTHERS)
def test_a_masked_lm_of_any_architecture_serves_as_every_kind(name, tmp_path):
    path = other_model(name, tmp_path / name)
    assert [part for part in load_model(path, "masked-lm", where="m").new if "pooler" not in part] == []
    assert [part for part in load_model(path, "encoder", where="m").new if "pooler" not in part] == []
    loaded = load_model(path, "classifier", where="m", new_head=True, head=kind_of_head(2, names=NAMES))
    assert loaded.head_is_new and loaded.label_names == NAMES
    save_model(loaded.model, loaded.tokenizer, tmp_path / "out")
    again = load_model(tmp_path / "out", "classifier", where="m")
    assert again.new == [] and again.label_names == NAMES


def test_heads_must_match_and_scores_must_show(tmp_path):
    bert = load_model(tiny_bert(tmp_path / "bert"), "encoder", where="m", new_head=True)
    four = load_model(tiny_bert(tmp_path / "four", heads=4), "encoder", where="m", new_head=True)
    closed = load_model(other_model("DebertaV2", tmp_path / "deberta"), "encoder", where="m")
    terms = {"general": make_terms({"attention_scores": (1.0, {})}, Catalog())[0]}
    check_pair(terms, bert, bert, where="student")
    for teacher, student, code in ((bert, four, "M013"), (closed, bert, "M014"), (bert, closed, "M014")):
        with pytest.raises(MbertError) as caught:
            check_pair(terms, teacher, student, where="student")
        assert caught.value.code == code
    assert bert.model.config._attn_implementation == ATTENTION


def test_a_saved_model_is_plain_hugging_face(plain, tmp_path):
    loaded = load_model(plain, "classifier", where="m")
    projection = {"weight": torch.randn(4, 3).T, "bias": torch.zeros(3)}
    save_model(loaded.model, loaded.tokenizer, tmp_path / "out", projection=projection)
    kept = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "resume/projection.safetensors"} <= kept
    assert not any(name.startswith(".") for name in kept)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    again = load_model(tmp_path / "out", "classifier", where="m")
    assert torch.equal(again.projection["weight"], projection["weight"])
    copy_model(tmp_path / "out", tmp_path / "copy")
    assert load_model(tmp_path / "copy", "classifier", where="m").projection.keys() == projection.keys()


def test_finished_models_keep_no_training_state(tmp_path):
    checkpoint.save_state({"step": 1}, tmp_path / "resume" / "phases" / "x")
    checkpoint.drop_states(tmp_path)
    assert list(tmp_path.iterdir()) == []
    checkpoint.save_state({"step": 1}, tmp_path / "resume" / "phases" / "x")
    save_file({"weight": torch.zeros(1)}, tmp_path / "resume" / PROJECTION_FILE)
    checkpoint.drop_states(tmp_path)
    assert [path.name for path in (tmp_path / "resume").iterdir()] == [PROJECTION_FILE]


def test_a_new_student_needs_a_vocabulary(tmp_path):
    task = load_task(Catalog().path("tasks", "sst2", where="task"))
    with pytest.raises(MbertError) as caught:
        classifier("bert-1x8", Catalog(), task=task, seed=0, tokenizer=None, where="finetune.model")
    assert caught.value.code == "M021"
    student = classifier("bert-1x8", Catalog(), task=task, seed=0, tokenizer=str(tiny_bert(tmp_path / "t")), where="x")
    assert student.label_names == ["negative", "positive"] and student.model.config.num_attention_heads == 2
