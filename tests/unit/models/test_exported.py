"""Exports read without transformers: the same facts and token ids, or left to transformers where the files say less or else."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_classifiers
from hypothesis import given, settings
from hypothesis import strategies as st
from strange_inputs import TEXTS
from tiny_models import tiny_tokenizer
from transformers import AutoConfig, DistilBertTokenizer

from microbert_cli.models.architectures import check_texts, model_shape, positions_of, reads_apart
from microbert_cli.models.config import read_config, register_model_type
from microbert_cli.models.exits.build import ExitSettings, exit_config, exit_ends
from microbert_cli.models.exits.flops import exit_summary
from microbert_cli.models.exits.speed import chosen_speed, has_exits
from microbert_cli.models.exported.config import TYPES, read_exported_config
from microbert_cli.models.exported.session import thread_count
from microbert_cli.models.exported.tokenizer import read_exported_tokenizer
from microbert_cli.models.labels import output_names
from microbert_cli.models.size import forward_flops
from microbert_cli.models.tokenizers import load_tokenizer
from microbert_cli.recipe.task_kinds import kind_of_model

SIZES: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48},
    "electra": {"embedding_size": 8},
    "mobilebert": {"intra_bottleneck_size": 16, "embedding_size": 8},
    "mbert-inverted-bottleneck": {"embedding_size": 8},
    "mbert-bi-encoder": {"separator_token_id": 3},
    "mbert-bilstm": {"embedding_size": 12, "separator_token_id": 3, "siamese": True},
}
PLAIN = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
HEADS: dict[str, dict[str, Any]] = {
    "two unnamed classes": {"num_labels": 2},
    "three classes": {
        "id2label": {0: "no", 1: "perhaps", 2: "yes"},
        "label2id": {"no": 0, "perhaps": 1, "yes": 2},
        "problem_type": "single_label_classification",
    },
    "a score": {"num_labels": 1, "problem_type": "regression"},
}


def config_of(model_type: str, **changes: Any) -> Any:
    register_model_type({"model_type": model_type})
    sizes = {} if model_type == "distilbert" else PLAIN
    if model_type == "mbert-bilstm":
        sizes = {key: value for key, value in PLAIN.items() if key in ("vocab_size", "hidden_size")}
    return AutoConfig.for_model(model_type, **{**sizes, "vocab_size": 200, **SIZES[model_type], **changes})


def facts(config: Any) -> dict[str, Any]:
    """All that is asked of the configuration of an export."""
    return {
        "shape": model_shape(config),
        "positions": positions_of(config),
        "names": output_names(config),
        "labels": (config.num_labels, dict(config.id2label), config.problem_type),
        "kind": kind_of_model(config),
        "apart": reads_apart(config),
        "flops": forward_flops(config, 17),
        "exits": has_exits(config) and (exit_ends(config), chosen_speed(config, None, where="model")),
        "left": has_exits(config) and exit_summary(config, {1: 2, 3: 1}, length=9, speed=0.3),
    }


def test_every_type_that_is_read_is_tried() -> None:
    assert TYPES.keys() == {*SIZES, "mbert-early-exit"}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("model_type", SIZES)
def test_the_same_facts_as_of_transformers_configuration(model_type: str, head: str, tmp_path: Path) -> None:
    config_of(model_type, **HEADS[head]).save_pretrained(tmp_path)
    config = read_exported_config(tmp_path)
    assert config is not None and facts(config) == facts(read_config(tmp_path, where="model"))


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_a_model_with_exits_has_the_facts_of_the_one_within(model_type: str, tmp_path: Path) -> None:
    config = exit_config(config_of(model_type, **HEADS["three classes"]), ExitSettings(layers=[1, 2]), spread=None)
    config.speed = 0.25
    config.save_pretrained(tmp_path)
    exported = read_exported_config(tmp_path)
    assert exported is not None and facts(exported) == facts(read_config(tmp_path, where="model"))
    check_texts(1, exported, where="model")


CHANGES: dict[str, dict[str, Any]] = {
    "another type": {"model_type": "roberta"},
    "no type": {"model_type": None},
    "code of its own": {"auto_map": {"AutoConfig": "code.Config"}},
    "a problem type that is none": {"problem_type": "guessing"},
    "labels with a gap": {"id2label": {"0": "no", "2": "yes"}},
    "labels by name": {"id2label": {"no": 0, "yes": 1}},
    "two numbers of labels": {"num_labels": 5},
    "a size that is none": {"hidden_size": "32"},
    "no size": {"hidden_size": None},
    "no positions": {"max_position_embeddings": None},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_only_transformers_can_judge_is_left_to_it(change: str, tmp_path: Path) -> None:
    config_of("bert", **HEADS["three classes"]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = {**json.loads(path.read_text()), **CHANGES[change]}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    assert read_exported_config(tmp_path) is None
    path.write_text("{")
    assert read_exported_config(tmp_path) is None
    path.unlink()
    assert read_exported_config(tmp_path) is None


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT tokenizer with accents, capitals and Chinese in its words, as an export has it."""
    home = tmp_path_factory.mktemp("tokens")
    (home / "plain").mkdir()
    tiny_tokenizer(home / "plain", vocab=("lovely", "boat", "é", "漢", "Boat", "##ly"), max_length=48)
    return home / "plain"


HARD = ["[SEP] a [MASK]", "[CLS]", "Lovely BOATLY é 漢字", " [PAD]x", "a" * 120]


def both(directory: Path) -> tuple[Any, Any]:
    config = config_of("bert")
    return read_exported_tokenizer(directory, config), load_tokenizer(directory, config, where="model")


@settings(deadline=None, max_examples=150)
@given(texts=st.lists(st.one_of(TEXTS, st.sampled_from(HARD)), min_size=1))
def test_the_same_ids_as_of_transformers_tokenizer(tokens: Path, texts: list[str]) -> None:
    exported, loaded = both(tokens)
    assert exported is not None
    whole = [text.encode(errors="ignore").decode() for text in texts]
    options: dict[str, Any] = {"add_special_tokens": False, "truncation": False, "padding": False}
    assert exported(whole, **options)["input_ids"] == loaded(whole, **options)["input_ids"]


def test_the_same_interface_as_of_transformers_tokenizer(tokens: Path) -> None:
    exported, loaded = both(tokens)
    for texts in (["a"], ["a", "a"]):
        actual, expected = exported(*texts), loaded(*texts, return_token_type_ids=True, return_special_tokens_mask=True)
        assert all(actual[name] == expected[name] for name in ("input_ids", "token_type_ids", "special_tokens_mask"))
    assert exported.get_vocab() == loaded.get_vocab()
    for name in ("pad_token_id", "padding_side", "model_input_names"):
        assert getattr(exported, name) == getattr(loaded, name)


def test_inputs_without_segments_are_the_tokenizers_own(tokens: Path, tmp_path: Path) -> None:
    DistilBertTokenizer.from_pretrained(tokens).save_pretrained(tmp_path)
    exported, loaded = both(tmp_path)
    assert exported.model_input_names == list(loaded.model_input_names) == ["input_ids", "attention_mask"]
    change(tmp_path / "tokenizer_config.json", model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    exported, loaded = both(tmp_path)
    assert exported.model_input_names == list(loaded.model_input_names) and "token_type_ids" in loaded.model_input_names


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def other_words(directory: Path) -> None:
    rules = json.loads((directory / "tokenizer.json").read_text())
    rules["model"]["vocab"]["boat"] = 10_000
    (directory / "tokenizer.json").write_text(json.dumps(rules))


@pytest.mark.parametrize(
    "damage",
    [
        lambda home: change(home / "tokenizer_config.json", do_lower_case=False),
        lambda home: change(home / "tokenizer_config.json", strip_accents=True),
        lambda home: change(home / "tokenizer_config.json", tokenize_chinese_chars=False),
        lambda home: change(home / "tokenizer_config.json", sep_token="[CLS]"),
        lambda home: change(home / "tokenizer_config.json", unk_token="[MASK]"),
        lambda home: change(home / "tokenizer_config.json", extra_special_tokens=["<new>"]),
        lambda home: change(home / "tokenizer_config.json", tokenizer_class="RobertaTokenizer"),
        lambda home: change(home / "tokenizer.json", normalizer=None),
        lambda home: change(home / "tokenizer.json", pre_tokenizer={"type": "Whitespace"}),
        lambda home: change(home / "tokenizer.json", post_processor=None),
        lambda home: change(home / "tokenizer.json", added_tokens=[]),
        other_words,
        lambda home: (home / "special_tokens_map.json").write_text("{}"),
        lambda home: (home / "tokenizer_config.json").unlink(),
        lambda home: (home / "tokenizer.json").write_text("{}"),
    ],
)
def test_a_tokenizer_that_transformers_might_build_otherwise_is_left_to_it(tokens: Path, damage: Any, tmp_path: Path) -> None:
    for file in tokens.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert read_exported_tokenizer(tmp_path, config_of("bert")) is not None
    damage(tmp_path)
    assert read_exported_tokenizer(tmp_path, config_of("bert")) is None


def test_a_cased_tokenizer_is_read_as_it_is(tmp_path: Path) -> None:
    tokenizer = tiny_classifiers.tokenizer().__class__(vocab={**tiny_classifiers.tokenizer().get_vocab()}, do_lower_case=False)
    tokenizer.save_pretrained(tmp_path)
    exported, loaded = both(tmp_path)
    assert exported is not None
    for text in ("w3 W3", "É w10"):
        assert exported([text], add_special_tokens=False) == {
            "input_ids": loaded([text], add_special_tokens=False)["input_ids"]
        }


def test_threads_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert thread_count() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("MKL_NUM_THREADS", "2,1")
    assert thread_count() == 2
    monkeypatch.delenv("MKL_NUM_THREADS")
    assert 1 <= thread_count() <= 4096
