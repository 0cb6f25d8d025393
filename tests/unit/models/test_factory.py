"""The published shapes: parameters of every student of the catalogue, counted on the meta device and by formula."""

import copy

import pytest
import torch
from published_sizes import PARAMETERS
from tiny_models import tiny_bert, tiny_tokenizer
from transformers import BertConfig

from microbert_cli.errors import MbertError
from microbert_cli.models.factory import build_model, student_parameters
from microbert_cli.models.load import count_all_parameters, load_model
from microbert_cli.models.size import machine_bytes
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.student_shapes import read_student
from microbert_cli.recipe.task_kinds import kind_of_head

CATALOG = Catalog()
V, P = 30522, 512
# L layers, d wide, FFN of i; parameters of the encoder with its pooler.
PUBLISHED = {
    "tinybert-4l-312": (4, 312, 1200, 14_350_248),
    "bert-4x312x1200": (4, 312, 1200, 14_350_248),
    "bert-small-4l-512": (4, 512, 2048, 28_763_648),
    "bert-4x512": (4, 512, 2048, 28_763_648),
    "bert-4l-768": (4, 768, 3072, 52_779_264),
    "bert-4x768": (4, 768, 3072, 52_779_264),
    "tinybert-6l-768": (6, 768, 3072, 66_955_008),
    "bert-6x768": (6, 768, 3072, 66_955_008),
    "bert-3x768": (3, 768, 3072, 45_691_392),
    "bert-12x768": (12, 768, 3072, 109_482_240),
    "bert-6x384": (6, 384, 1536, 22_713_216),
    "bert-12x384": (12, 384, 1536, 33_360_000),
    "bert-6x256": (6, 256, 1024, 12_750_080),
    "bert-2x128": (2, 128, 512, 4_385_920),
    "bert-4x256": (4, 256, 1024, 11_170_560),
}
TEACHER = BertConfig()


class Tokens:
    """As much of a tokenizer as a new model asks for."""

    pad_token_id = 0

    def __len__(self):
        return V

    def get_vocab(self):
        return {"the last": V - 1}


def on_meta(name, like=TEACHER, **more):
    """The student without its weights: shapes alone."""
    with torch.device("meta"):
        return build_model(
            read_student(name, CATALOG), kind="encoder", tokenizer=Tokens(), seed=0, like=like, where="student", **more
        )


def formula(L, d, i):
    layer = 4 * (d * d + d) + 2 * d * i + i + d + 4 * d
    return (V + P + 2) * d + 2 * d + L * layer + d * d + d


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    L, d, i, count = PUBLISHED[name]
    assert formula(L, d, i) == count
    model = on_meta(name)
    assert count_all_parameters(model) == count
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.intermediate_size) == (L, d, i)


def test_the_map_to_the_teachers_width():
    """14.35 M and 240,384 of the map are the paper's 14.5 M."""
    assert 312 * 768 + 768 == 240_384


def test_every_published_student_of_the_catalogue_is_counted():
    shapes = {name for name in CATALOG.names("students") if CATALOG.path("students", name, where="").suffix == ".toml"}
    shapes -= {"bilstm-H", "bilstm-HxE"}  # for any width, and counted in test_bilstm.py
    shapes -= {"seq2seq", "seq2seq-LxH", "marian-LxH", "demo-seq2seq"}  # which write: of nobody's published sizes
    # A student that is relative to its teacher has no size of its own.
    relative = {
        name for name in shapes if "x" not in name and isinstance(read_student(name, CATALOG).get("num_hidden_layers"), str)
    }
    assert {
        name for name in shapes - relative if not name.startswith("demo-") and "x" not in name
    } <= PUBLISHED.keys() | PARAMETERS.keys()


def test_tinybert_has_heads_of_26():
    config = on_meta("tinybert-4l-312").config
    assert (config.num_attention_heads, config.hidden_size // config.num_attention_heads) == (12, 26)


@pytest.mark.parametrize(("name", "teacher", "heads"), [
    ("bert-4x312", 12, 12), ("bert-2x128", 16, 16), ("bert-2x128", 12, 8), ("bert-4x256", None, 8), ("bert-2x10", 4, 2),
])  # fmt: skip
def test_heads_follow_the_teacher_where_they_divide_the_width(name, teacher, heads):
    like = BertConfig(num_attention_heads=teacher) if teacher else None
    assert on_meta(name, like).config.num_attention_heads == heads


def test_heads_that_do_not_divide_are_refused(tmp_path):
    path = tmp_path / "odd.toml"
    path.write_text(
        'model_type = "bert"\nnum_hidden_layers = 1\nhidden_size = 10\nintermediate_size = 8\nnum_attention_heads = 4\n'
    )
    with pytest.raises(MbertError) as caught:
        on_meta(str(path))
    assert caught.value.code == "M011"


def test_a_student_that_no_memory_holds_is_refused_before_it_is_made(tmp_path, monkeypatch):
    tokens = tiny_tokenizer(tmp_path)
    size = count_all_parameters(build_tiny(tokens))
    monkeypatch.setattr("microbert_cli.models.size.machine_bytes", lambda: 8 * size - 1)
    with pytest.raises(MbertError) as caught:
        build_tiny(tokens)
    assert caught.value.code == "M223" and f"{size:,} parameters" in caught.value.what
    with torch.device("meta"):
        assert count_all_parameters(build_tiny(tokens)) == size, "a plan on paper may be of any size"
    monkeypatch.setattr("microbert_cli.models.size.machine_bytes", lambda: None)
    build_tiny(tokens)
    monkeypatch.undo()
    assert 1e8 < machine_bytes() < 1e15


@pytest.mark.parametrize("name", ["tinybert-6l-768", "distilbert-6x768", "mobilebert", "ib-bert", "bert-1x8"])
def test_a_model_is_counted_before_it_is_built(name):
    model = on_meta(name)
    assert student_parameters(model.config, "encoder") == count_all_parameters(model)


def test_the_depth_is_no_burden_to_count(tmp_path):
    with pytest.raises(MbertError) as caught:
        build_model(read_student("bert-99999999x16", CATALOG), kind="encoder", tokenizer=tiny_tokenizer(tmp_path), seed=0)
    assert caught.value.code == "M223"


def build_tiny(tokens):
    return build_model(read_student("bert-1x8", CATALOG), kind="encoder", tokenizer=tokens, seed=0)


def test_positions_are_the_teachers():
    assert on_meta("bert-2x128", BertConfig(max_position_embeddings=1024)).config.max_position_embeddings == 1024


def test_building_a_student_leaves_the_teacher_alone(tmp_path):
    taught = load_model(tiny_bert(tmp_path / "teacher", num_labels=3), "classifier", where="teacher")
    before = copy.deepcopy(taught.model.config.to_dict())
    description = read_student("bert-1x8", CATALOG)
    student = build_model(
        description,
        kind="classifier",
        tokenizer=taught.tokenizer,
        seed=0,
        like=taught.model.config,
        head=kind_of_head(2, names=["LABEL_0", "LABEL_1"]),
    )
    assert taught.model.config.to_dict() == before
    assert student.config is not taught.model.config and student.config.num_labels == 2
    assert description == read_student("bert-1x8", CATALOG)


def test_the_seed_decides_the_weights(tmp_path):
    tokens = tiny_tokenizer(tmp_path)
    description = read_student("bert-1x8", CATALOG)

    def weights(seed):
        torch.rand(7)  # whatever was drawn before does not matter
        return build_model(description, kind="encoder", tokenizer=tokens, seed=seed).state_dict()

    first, same, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["embeddings.word_embeddings.weight"], other["embeddings.word_embeddings.weight"])
