"""Token ids of rows: what the tokenizer itself would make, cut as the released code cuts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_glue import WORDS
from tiny_models import tiny_tokenizer

from microbert_cli.data.examples import Examples
from microbert_cli.data.tokenized import TokenizedExamples, _ids, _plain_backend, tokenize_examples
from microbert_cli.recipe.task_kinds import kind_class

CLASSES, SCORE = (kind_class(name)() for name in ("classes", "score"))

ONE = Examples([("the baker mended a lamp .",), ("why",), ("a lovely , bright garden by the harbour is sold",)], [0, 1, 1])
TWO = Examples(
    [(" ".join(WORDS[:n]), " ".join(WORDS[-m:])) for n, m in [(3, 4), (9, 2), (2, 9), (8, 8), (9, 8), (8, 9), (1, 1)]],
    [0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0],
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def other_tokenizer() -> Any:
    """Special tokens as RoBERTa has them, and no segments."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=["input_ids", "attention_mask"], **names)


def ids(encoded: TokenizedExamples) -> list[list[int]]:
    return [encoded.row(i)["input_ids"] for i in range(len(encoded))]


@pytest.mark.parametrize("rows", [ONE, TWO], ids=["one", "two"])
def test_what_fits_is_what_the_tokenizer_makes(tokenizer: Any, rows: Examples) -> None:
    encoded = tokenize_examples(rows, tokenizer, 64)
    expected = tokenizer(*map(list, zip(*rows.texts, strict=True)))
    assert ids(encoded) == expected["input_ids"]
    assert [encoded.row(i)["token_type_ids"] for i in range(len(rows))] == expected["token_type_ids"]
    assert encoded.truncated == 0 and encoded.lengths.tolist() == [len(row) for row in expected["input_ids"]]
    assert encoded.ids.dtype == np.int32 and encoded.types is not None and encoded.types.dtype == np.int8


@pytest.mark.parametrize("rows", [ONE, TWO], ids=["one", "two"])
def test_other_special_tokens(other_tokenizer: Any, rows: Examples) -> None:
    encoded = tokenize_examples(rows, other_tokenizer, 64, CLASSES)
    assert ids(encoded) == other_tokenizer(*map(list, zip(*rows.texts, strict=True)))["input_ids"]
    assert encoded.types is None and set(encoded.row(0)) == {"input_ids"}
    assert set(encoded.batch([0], pad_id=1)) == {"input_ids", "attention_mask", "labels", "rows"}
    assert tokenize_examples(rows, other_tokenizer, 7).lengths.max() == 7


def cut_one_by_one(first: list[str], second: list[str], room: int) -> tuple[list[str], list[str]]:
    """The released code's way, literally."""
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return first, second


@pytest.mark.parametrize("max_length", range(3, 22))
def test_pairs_are_cut_as_in_the_released_code(tokenizer: Any, max_length: int) -> None:
    encoded = tokenize_examples(TWO, tokenizer, max_length)
    wholes = [sum(len(text.split()) for text in row) for row in TWO.texts]
    assert encoded.truncated == sum(whole > max_length - 3 for whole in wholes)
    for row, row_ids in zip(TWO.texts, ids(encoded), strict=True):
        first, second = cut_one_by_one(*(text.split() for text in row), max_length - 3)
        assert tokenizer.convert_ids_to_tokens(row_ids) == ["[CLS]", *first, "[SEP]", *second, "[SEP]"]


def test_single_texts_lose_their_end(tokenizer: Any) -> None:
    encoded = tokenize_examples(ONE, tokenizer, 5)
    assert ids(encoded) == tokenizer([text for (text,) in ONE.texts], truncation=True, max_length=5)["input_ids"]
    assert encoded.truncated == 2


def test_batches_are_padded_to_the_longest_or_further(tokenizer: Any) -> None:
    encoded = tokenize_examples(TWO, tokenizer, 64, SCORE)
    batch = encoded.batch([6, 0, 3], pad_id=7)
    expected = tokenizer([TWO.texts[i] for i in (6, 0, 3)], padding=True, return_tensors="pt")
    mask = expected["attention_mask"]
    assert torch.equal(batch["attention_mask"], mask)
    assert torch.equal(batch["input_ids"], torch.where(mask.bool(), expected["input_ids"], 7))
    assert torch.equal(batch["token_type_ids"], expected["token_type_ids"])
    assert batch["labels"].tolist() == [0.0, 0.5, 3.0] and batch["labels"].dtype == torch.float32
    assert "augmented" not in batch and batch["input_ids"].dtype == torch.int64
    wide = encoded.batch([6, 0, 3], pad_to=40, pad_id=7)
    assert wide["input_ids"].shape == (3, 40) and torch.equal(wide["input_ids"][:, :19], batch["input_ids"])
    assert int(wide["attention_mask"].sum()) == int(mask.sum())
    assert encoded.batch([3], pad_to=4)["input_ids"].shape == (1, 19)


def test_labels_and_flags_travel_with_the_rows(tokenizer: Any) -> None:
    rows = Examples(ONE.texts, [2, 0, 1], augmented=[False, True, False])
    batch = tokenize_examples(rows, tokenizer, 16, CLASSES).batch([2, 1])
    assert batch["labels"].tolist() == [1, 0] and batch["labels"].dtype == torch.int64
    assert batch["augmented"].tolist() == [False, True] and batch["augmented"].dtype == torch.bool
    assert "labels" not in tokenize_examples(Examples(ONE.texts), tokenizer, 16).batch([0])


def test_chunks_do_not_show(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokenize_examples(TWO, tokenizer, 12)
    monkeypatch.setattr("microbert_cli.data.tokenized.ROWS_PER_CALL", 3)
    parts = tokenize_examples(TWO, tokenizer, 12)
    assert np.array_equal(whole.ids, parts.ids) and np.array_equal(whole.offsets, parts.offsets)


def test_texts_without_any_token(tokenizer: Any) -> None:
    encoded = tokenize_examples(Examples([("\u200b",), ("the",)], [0, 1]), tokenizer, 8)
    assert encoded.lengths.tolist() == [2, 3]


def test_a_real_task_is_encoded_as_the_library_would(shared: Path) -> None:
    from transformers import BertTokenizerFast

    from microbert_cli.data.load import load_split
    from microbert_cli.recipe.task import load_task

    vocabulary = shared / "data/vocab/bert-base-uncased-vocab.txt"
    words = vocabulary.read_text(encoding="utf-8").split("\n")
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words[:30522])})
    task = load_task(Path(__file__).resolve().parents[3] / "microbert_cli/catalog/tasks/rte.toml")
    rows = load_split(task, "dev", data_dir=shared / "data/glue")
    encoded = tokenize_examples(rows, tokenizer, 512)
    assert ids(encoded) == tokenizer(*map(list, zip(*rows.texts, strict=True)))["input_ids"]
    assert tokenize_examples(rows, tokenizer, 128).truncated == int((encoded.lengths > 128).sum()) > 0


STRANGE = [
    "",
    " ",
    "a [MASK] b",
    "[SEP]",
    "don't; stop",
    "é ﬁ 日本 x",
    "\x00a\u200b b",
    "<s> baker </s>",
    "awful " * 300,
    "\u2028a\r\nb",
]


@pytest.mark.parametrize("split_special", [False, True])
@pytest.mark.parametrize("name", ["tokenizer", "other_tokenizer"])
def test_the_backend_asked_directly_gives_the_same_ids(name: str, split_special: bool, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    tokenizer.split_special_tokens = split_special
    try:
        tokenizer(["a"], truncation=True, max_length=2, padding="max_length")  # leaves its backend cutting and padding
        assert _plain_backend(tokenizer) is not None
        expected = tokenizer(STRANGE, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
        tokenizer(["a"], truncation=True, max_length=2, padding="max_length")
        assert _ids(STRANGE, tokenizer) == expected
    finally:
        tokenizer.split_special_tokens = False
