"""Other encoders than BERT teach and are taught by every loss that can compare the two; what cannot is refused, with why."""

from pathlib import Path

import pytest
import torch
import transformers
from recording import RecordingReporter
from tiny_models import tiny_bert, tiny_glue, tiny_tokenizer
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as token_models

from microbert_cli import api
from microbert_cli.data.task_data import load_all_task_data
from microbert_cli.distillation.pair_checks import check_pair
from microbert_cli.distillation.taught_task import TaughtTask
from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import check_length
from microbert_cli.models.capture import OutputRequest, forward_outputs
from microbert_cli.models.config import read_config
from microbert_cli.models.device import PLAIN
from microbert_cli.models.factory import build_model
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.reporter import SILENT
from microbert_cli.training.loss_terms import make_terms

SHAPE = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=72)
SHAPES = {
    "Bert": SHAPE,
    "Roberta": SHAPE | dict(type_vocab_size=1),
    "XLMRoberta": SHAPE | dict(type_vocab_size=1),
    "Electra": SHAPE | dict(embedding_size=8),
    "DistilBert": dict(dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=72),
    "Albert": SHAPE | dict(embedding_size=8),
    "ModernBert": SHAPE,
}
BY_TOKEN = {
    "embedding": 1.0, "hidden_states": 1.0, "attention_scores": 1.0, "attention_distribution": 1.0, "value_relation": 1.0,
    "relations": {"weight": 1.0, "heads": 4}, "cosine": 1.0,
}  # fmt: skip
BY_TEXT = {"feature_alignment": 1.0, "discriminator": 1.0, "patience": 1.0, "soft_target": 1.0, "hard_label": 1.0}
TASK = {"task": "sst2", "data__max_length": 24, "data__folder": "glue", "teacher__allow_weak": True}
STEPS = dict(steps=2, batch_size=8, evaluations=0)
TAUGHT_BY = ["Roberta", "ModernBert"]
SLOWLY = ["XLMRoberta", "Electra", "Albert"]


def byte_level(path: Path) -> transformers.PreTrainedTokenizerFast:
    """RoBERTa's kind of tokens: bytes, `<s>`, no segments."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(token_models.BPE(vocab={token: n for n, token in enumerate([*special, *letters])}, merges=[]))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokens.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(bos_token="<s>", cls_token="<s>", sep_token="</s>", eos_token="</s>")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", **names
    )
    tokenizer.save_pretrained(path)
    return tokenizer


def encoder(path: Path, name: str, *, own_tokens: bool = False, head: str = "ForSequenceClassification", **shape: int) -> str:
    """A random model of an architecture; its tokens are a BERT's, or bytes as RoBERTa's."""
    tokens = byte_level(path) if own_tokens else tiny_tokenizer(path)
    edges = dict(pad_token_id=tokens.pad_token_id, cls_token_id=tokens.cls_token_id, sep_token_id=tokens.sep_token_id)
    labels = dict(id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1})
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokens), bos_token_id=tokens.cls_token_id, eos_token_id=tokens.sep_token_id, initializer_range=0.1,
        **{**SHAPES[name], **edges, **labels, **shape},
    )  # fmt: skip
    torch.manual_seed(1)
    getattr(transformers, name + head)(config).save_pretrained(path)
    return path.name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Teachers and students of all kinds, data and a corpus."""
    folder = tmp_path_factory.mktemp("others")
    for name in SHAPES:
        encoder(folder / name, name)
    for name in TAUGHT_BY:
        encoder(folder / f"{name}-bytes", name, own_tokens=True)
    tiny_bert(folder / "student", kind="encoder", hidden=8)
    tiny_glue(folder / "glue", ["sst2"], rows=24)
    texts = [f"{word} film was {word} and the plot was not." for word in ("a good", "the bad", "one fine", "some dull")]
    (folder / "text.txt").write_text("\n\n".join("\n".join(texts) for _ in range(6)))
    return folder


@pytest.fixture(autouse=True)
def here(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))


def task_stage(teacher, student, losses, out, *, steps=2, reporter=SILENT):
    only = {"method": "soft-targets", "phases__prediction__losses": {"soft_target": 0.0, **losses}}
    numbers = {f"phases__prediction__{key}": value for key, value in {**STEPS, "steps": steps}.items()}
    return api.distill(teacher=teacher, student=student, out=out, reporter=reporter, **TASK, **numbers, **only)


def general_stage(teacher, student, losses, out):
    only = {"method": "tinybert", "general__losses": {name: 0.0 for name in ("embedding", "hidden_states", "attention_scores")}}
    only["general__losses"] |= losses
    numbers = {f"general__{key}": value for key, value in STEPS.items()}
    return api.general_distill(
        teacher=teacher, student=student, corpus="text.txt", corpus__format="packed", corpus__max_length=24, out=out, **numbers,
        **only,
    )  # fmt: skip


def losses_of(result, where="prediction"):
    return result.metrics["phases"][where]["losses"]


@pytest.mark.parametrize(
    "teacher", [*TAUGHT_BY, *(pytest.param(name, marks=pytest.mark.slow) for name in ["DistilBert", *SLOWLY])]
)
def test_every_loss_with_the_same_tokens(teacher, tmp_path):
    losses = losses_of(task_stage(teacher, "student", BY_TOKEN | BY_TEXT, tmp_path / "out"))
    assert set(BY_TOKEN | BY_TEXT) <= set(losses) and all(0 < losses[name] < 100 for name in BY_TOKEN | BY_TEXT)


@pytest.mark.parametrize("teacher", TAUGHT_BY)
def test_every_loss_of_stage_one(teacher, tmp_path):
    losses = general_stage(teacher, "student", BY_TOKEN | {"feature_alignment": 1.0}, tmp_path / "out").metrics["heldout"]
    assert all(0 < losses[name] < 100 for name in [*BY_TOKEN, "feature_alignment"])


@pytest.mark.parametrize("teacher", TAUGHT_BY)
def test_every_loss_of_whole_texts_with_other_tokens(teacher, tmp_path):
    reporter = RecordingReporter()
    losses = losses_of(task_stage(f"{teacher}-bytes", "student", BY_TEXT, tmp_path / "out", steps=9, reporter=reporter))
    assert all(0 < losses[name] < 100 for name in BY_TEXT)
    assert sum("another vocabulary" in note for note in reporter.notes) == 1


STUDENTS = ["ModernBert", "DistilBert", *(pytest.param(name, marks=pytest.mark.slow) for name in ["Roberta", *SLOWLY])]


@pytest.mark.parametrize("student", STUDENTS)
def test_every_architecture_is_taught(student, tmp_path):
    losses = BY_TOKEN | BY_TEXT
    values = losses_of(task_stage("Bert", student, losses, tmp_path / "out", steps=1))
    assert all(0 <= values[name] < 100 for name in losses)
    assert read_config(tmp_path / "out", where="out").model_type == read_config(student, where="s").model_type


@pytest.mark.parametrize("cache", ["off", "auto"])
def test_a_teacher_reads_a_text_in_its_own_tokens(cache, place):
    """What it shows of rows by their numbers is what it shows of their texts; through the cache, too."""
    recipe = resolve(catalog=Catalog(), environment={}, flags={**_dotted(TASK), "cache.teacher": cache}).recipe
    (data,) = load_all_task_data(recipe, Catalog(), splits=("train", "dev"))
    task = TaughtTask(recipe, data, ["Roberta-bytes"], ["w"], PLAIN, SILENT)
    student = load_model("student", "encoder", where="student", new_head=True)
    task.compare_vocabularies(student)
    rows, want = data.encode("train", student, where="student"), OutputRequest(logits=True, hidden=frozenset({2}))
    batch = rows.batch([5, 0, 7])
    seen = task.make_ask(rows, want, total_rows=10**6)(batch, want)
    teacher = task.teachers[0].loaded
    texts = [data.rows["train"].texts[row][0] for row in (5, 0, 7)]
    read = teacher.tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
    expected = teacher.model(**read, output_hidden_states=True)
    torch.testing.assert_close(seen.logits, expected.logits, rtol=0, atol=1e-5)
    assert torch.equal(seen.mask, read["attention_mask"]) and seen.mask.shape != batch["attention_mask"].shape
    real = read["attention_mask"][:, :, None]
    assert ((seen.hidden[2] - expected.hidden_states[2]) * real).abs().max() < 1e-2
    assert task.uses_cache == (cache == "auto")


def _dotted(keys):
    return {key.replace("__", "."): value for key, value in keys.items()}


def refused(code, named, make, *words, **more):
    with pytest.raises(MbertError) as caught:
        make(*words, **more)
    assert caught.value.code == code
    text = str(caught.value)
    assert [word for word in named if word not in text] == [], text


@pytest.mark.parametrize("loss", BY_TOKEN)
def test_no_loss_compares_other_tokens_one_by_one(loss, tmp_path):
    named = ("same token ids", f"phases.prediction.losses.{loss}")
    refused("M312", named, task_stage, "Roberta-bytes", "student", {loss: BY_TOKEN[loss]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stage_one_cuts_a_corpus_for_one_vocabulary(tmp_path):
    named = ("vocabularies", "task-distill")
    refused("M313", named, general_stage, "Roberta-bytes", "student", {"feature_alignment": 1.0}, tmp_path / "out")


def test_illegal_pairs_name_the_column(tmp_path):
    """Heads, widths of a loss that maps none, heads that do not divide, attention that is not shown."""
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "as_they_are.py").write_text(
        'from microbert_cli.reduce import mean_over_tokens, squared_error\n\nneeds = {"hidden", "mask"}\nover = "top"\n\n\n'
        "def as_they_are(student_BTd, teacher_BTD, mask_BT):\n"
        "    return mean_over_tokens(squared_error(student_BTd, teacher_BTD), mask_BT)\n"
    )
    catalog = Catalog([tmp_path])
    tiny_bert(tmp_path / "four", heads=4, kind="encoder")
    tiny_bert(tmp_path / "wide", hidden=24, kind="encoder")
    closed = transformers.DebertaV2Config(vocab_size=len(tiny_tokenizer(tmp_path / "closed")), **SHAPE)
    transformers.DebertaV2Model(closed).save_pretrained(tmp_path / "closed")
    teacher = load_model("Roberta", "encoder", where="teacher")

    def pair(loss, student, **parameters):
        terms = {f"general.losses.{term.name}": term for term in make_terms({loss: (1.0, parameters)}, catalog)}
        check_pair(terms, teacher, load_model(tmp_path / student, "encoder", where="student"), where="student")

    for loss in ("attention_scores", "attention_distribution", "value_relation"):
        refused("M013", ("same heads", "2 attention heads", "4", f"general.losses.{loss}"), pair, loss, "four")
        refused("M014", ("deberta-v2",), pair, loss, "closed")
    pair("relations", "four", heads=8)
    refused("M014", ("deberta-v2",), pair, "relations", "closed", heads=8)
    refused("M095", ("16 of the teacher", "24 of the student", "relations.heads=8"), pair, "relations", "wide", heads=12)
    refused("M094", ("same width", "16 wide", "24"), pair, "as_they_are", "wide")
    for loss in ("hidden_states", "embedding", "feature_alignment", "discriminator", "soft_target"):
        pair(loss, "wide")
        pair(loss, "closed")
    pair("as_they_are", "four")
    flags = {"pretrain.model": "demo-4l-128", "student": "demo-2l-64", "stages": ["pretrain", "general-distill"]}
    with pytest.raises(MbertError) as caught:
        resolve(catalog=catalog, environment={}, flags={**flags, "general.losses": {"as_they_are": 1.0}})
    assert caught.value.code == "M094" and "128" in caught.value.what
    (tmp_path / "losses" / "as_they_are.py").write_text(
        'needs = {"hidden"}\nover = "top"\nrequires = {"token"}\nas_they_are = 1\n'
    )
    refused("M097", ("token", 'Did you mean "tokens"?'), make_terms, {"as_they_are": (1.0, {})}, catalog)


def test_the_table_of_columns_is_that_of_the_losses(repo):
    catalog, rows = Catalog(), {}
    for line in (repo / "docs" / "pairs.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith("`"):
            rows[cells[0].strip("`")] = cells[1:]
    assert {*BY_TOKEN, *BY_TEXT} - {"hard_label"} <= rows.keys()
    for name, (tokens, heads, widths) in rows.items():
        (term,) = make_terms({name: (1.0, {})}, catalog)
        assert (tokens, heads) == tuple("yes" if need in term.requires else "no" for need in ("tokens", "heads")), name
        expected = "same" if "width" in term.requires else "mapped" if term.projects else "any"
        assert widths == (f"multiples of `{term.divides}`" if term.divides else expected), name


@pytest.mark.parametrize("name", [*SHAPES])
def test_a_masked_lm_head_by_itself(name, tmp_path):
    """On the top vectors that a model shows it answers as the model does: what DistilBERT's soft targets rely on."""
    encoder(tmp_path / name, name, head="ForMaskedLM")
    model = load_model(tmp_path / name, "masked-lm", where="x").model.eval()
    batch = {"input_ids": torch.randint(5, 60, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    with torch.no_grad():
        seen = forward_outputs(model, batch, OutputRequest(hidden=frozenset({2}), token_head=True))
        logits, whole = seen.token_head(seen.hidden[2].flatten(0, 1)), model(**batch).logits.flatten(0, 1)
    assert torch.allclose(logits, whole, atol=1e-5)


def test_positions_are_counted_from_behind_the_padding():
    config = transformers.RobertaConfig(max_position_embeddings=514, pad_token_id=1)
    check_length(512, config, where="data.max_length")
    refused("M012", ("512",), check_length, 513, config, where="data.max_length")
    tokens = load_model("Roberta-bytes", "encoder", where="t").tokenizer
    bert = {"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    assert build_model(bert, kind="encoder", tokenizer=tokens, seed=0, like=config).config.max_position_embeddings == 512
