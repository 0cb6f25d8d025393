"""Windows of long texts: which tokens they have, how their logits become a row's, and what they are in a batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_bert, tiny_tokenizer

from microbert_cli.data.examples import Examples
from microbert_cli.data.tokenized import tokenize_examples
from microbert_cli.data.windows.examples import WindowedExamples, tokenize_windows
from microbert_cli.errors import MbertError
from microbert_cli.evaluation.scoring import logits_of
from microbert_cli.models.windows.pooling import halves_of_windows, pool_arrays, pool_logits, row_count
from microbert_cli.models.windows.settings import FIELD, WindowSettings, mark_windows, windows_of_model

WORDS = "the a of is it by and near lovely awful boat garden".split()


def text(words: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng((words, seed)).choice(WORDS, words))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokens"))


@pytest.mark.parametrize("length, stride", [(16, 4), (10, 0), (12, 9), (128, 32)])
def test_windows_are_those_of_transformers(tokenizer: Any, length: int, stride: int) -> None:
    texts = [text(words) for words in (1, 8, 9, 14, 15, 40, 77)]
    encoded = tokenize_windows(Examples([(each,) for each in texts]), tokenizer, WindowSettings("mean", length, stride))
    expected = tokenizer(texts, max_length=length, truncation=True, stride=stride, return_overflowing_tokens=True)
    windows = encoded.windows
    assert [windows.row(number)["input_ids"] for number in range(len(windows))] == expected["input_ids"]
    assert np.repeat(np.arange(len(texts)), np.diff(encoded.first)).tolist() == expected["overflow_to_sample_mapping"]
    assert len(encoded) == len(texts) and encoded.lengths.sum() == sum(map(len, expected["input_ids"]))


def test_windows_of_pairs_are_those_of_transformers(tokenizer: Any) -> None:
    pairs = [(text(4), text(3)), (text(6), text(40)), (text(2), text(11)), (text(2), text(12))]
    encoded = tokenize_windows(Examples(pairs), tokenizer, WindowSettings("max", 16, 2))
    expected = tokenizer(
        *zip(*pairs, strict=True), max_length=16, truncation="only_second", stride=2, return_overflowing_tokens=True
    )
    windows = [encoded.windows.row(number) for number in range(len(encoded.windows))]
    assert [window["input_ids"] for window in windows] == expected["input_ids"]
    assert [window["token_type_ids"] for window in windows] == expected["token_type_ids"]
    assert np.diff(encoded.first).tolist() == [1, 8, 1, 2] and encoded.truncated == 0


def test_a_long_first_text_leaves_half_the_room(tokenizer: Any) -> None:
    encoded = tokenize_windows(Examples([(text(30), text(20)), (text(30), text(2))]), tokenizer, WindowSettings("mean", 15, 2))
    first = encoded.windows.row(0)
    assert first["token_type_ids"].count(0) == 2 + 6 and len(first["input_ids"]) == 15  # room 12: six and six
    assert np.diff(encoded.first).tolist() == [5, 1] and encoded.truncated == 2
    short = encoded.windows.row(5)  # a second text of two tokens leaves the first ten
    assert short["token_type_ids"].count(0) == 2 + 10 and len(short["input_ids"]) == 15


def test_a_text_of_exactly_the_length_is_one_window(tokenizer: Any) -> None:
    rows = Examples([(text(14),), (text(15),)])
    encoded = tokenize_windows(rows, tokenizer, WindowSettings("mean", 16, 4))
    whole = tokenize_examples(rows, tokenizer, 16)
    assert np.diff(encoded.first).tolist() == [1, 2]
    assert encoded.windows.row(0) == whole.row(0) and whole.truncated == 1


@pytest.mark.parametrize("length, stride, pair", [(16, 14, False), (16, 20, False), (16, 7, True), (2, 0, False)])
def test_a_stride_of_a_window_is_refused(tokenizer: Any, length: int, stride: int, pair: bool) -> None:
    rows = Examples([("boat", "garden")] if pair else [("boat",)])
    with pytest.raises(MbertError) as refusal:
        tokenize_windows(rows, tokenizer, WindowSettings("mean", length, stride))
    assert refusal.value.code == "M481"
    tokenize_windows(rows, tokenizer, WindowSettings("mean", max(length, 64), int(refusal.value.fix.rpartition("=")[2]) % 7))


def test_logits_by_hand() -> None:
    logits = np.array([[1.0, 4.0], [3.0, 0.0], [5.0, 5.0]], np.float32)
    first = np.array([0, 2, 3])
    assert pool_arrays(logits, first, "mean").tolist() == [[2.0, 2.0], [5.0, 5.0]]
    assert pool_arrays(logits, first, "max").tolist() == [[3.0, 4.0], [5.0, 5.0]]
    logits[0, 0] = -np.inf  # a maximum would hide it
    assert np.isnan(pool_arrays(logits, first, "max")[0]).all() and np.isfinite(pool_arrays(logits, first, "max")[1]).all()


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pooled_logits_are_those_of_windows_encoded_alone(tmp_path: Path, pool: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    place = tiny_bert(tmp_path / "model", num_labels=3)
    model = AutoModelForSequenceClassification.from_pretrained(place).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    texts = [text(5), text(50), text(14), text(31)]
    encoded = tokenize_windows(Examples([(each,) for each in texts]), tokenizer, WindowSettings(pool, 16, 4))
    expected = []
    for each in texts:
        alone = tokenizer(each, max_length=16, truncation=True, stride=4, return_overflowing_tokens=True)["input_ids"]
        with torch.no_grad():
            logits = torch.cat([model(input_ids=torch.tensor([ids])).logits for ids in alone])
        expected.append(logits.mean(0) if pool == "mean" else logits.amax(0))
    wanted = torch.stack(expected).numpy()
    # All at once, one by one, and as a training batch: a row's logits do not depend on its neighbours.
    assert np.abs(logits_of(model, encoded, pad_id=0) - wanted).max() < 1e-6
    assert np.abs(logits_of(model, encoded, pad_id=0, batch_size=1) - wanted).max() < 1e-6
    for rows in ([0, 1, 2, 3], [2, 1], [3]):
        batch = encoded.batch(rows)
        with torch.no_grad():
            logits = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}).logits
        assert np.abs(pool_logits(logits, batch).numpy() - wanted[rows]).max() < 1e-6
        assert row_count(batch) == len(rows)


def windowed(tokenizer: Any, pool: str = "mean") -> WindowedExamples:
    rows = Examples([(text(words),) for words in (30, 3, 20)], augmented=[False, True, False])
    encoded = tokenize_windows(rows, tokenizer, WindowSettings(pool, 16, 4))
    return WindowedExamples(**{**vars(encoded), "labels": np.array([2, 0, 1])})


def test_a_batch_has_labels_by_row_and_tokens_by_window(tokenizer: Any) -> None:
    batch = windowed(tokenizer).batch([2, 0])
    assert batch["window_mean"].tolist() == [0, 0, 1, 1, 1] and batch["rows"].tolist() == [4, 5, 0, 1, 2]
    assert batch["labels"].tolist() == [1, 2] and batch["augmented"].tolist() == [False, False]
    assert batch["row_numbers"].tolist() == [2, 0] and len(batch["input_ids"]) == 5


def test_some_rows_keep_their_windows(tokenizer: Any) -> None:
    whole = windowed(tokenizer, "max")
    part = whole.take(np.array([2, 1]))
    assert isinstance(part, WindowedExamples) and np.diff(part.first).tolist() == [2, 1]
    for key, value in whole.batch([2, 1]).items():
        if key not in ("rows", "row_numbers"):
            assert torch.equal(part.batch([0, 1])[key], value), key


def test_a_batch_is_halved_by_rows(tokenizer: Any) -> None:
    batch = windowed(tokenizer).batch([0, 1, 2])
    first, second = halves_of_windows(batch)
    assert first["window_mean"].tolist() == [0, 0, 0, 1] and first["labels"].tolist() == [2, 0]
    assert second["window_mean"].tolist() == [0, 0] and second["labels"].tolist() == [1]
    assert torch.equal(second["input_ids"], batch["input_ids"][4:])
    assert len(halves_of_windows(second)) == 1


def test_every_row_weighs_the_same_in_the_loss(tokenizer: Any) -> None:
    batch = windowed(tokenizer).batch([0, 1])
    logits = torch.randn(len(batch["input_ids"]), 3, requires_grad=True)
    torch.nn.functional.cross_entropy(pool_logits(logits, batch), batch["labels"]).backward()
    assert logits.grad is not None
    sums = [logits.grad[batch["window_mean"] == row].abs().sum().item() for row in range(2)]
    rows = pool_logits(logits.detach(), batch).requires_grad_()
    torch.nn.functional.cross_entropy(rows, batch["labels"]).backward()
    assert rows.grad is not None and sums == pytest.approx(rows.grad.abs().sum(1).tolist())


def test_a_configuration_says_how_long_texts_are_read() -> None:
    from transformers import BertConfig

    config = BertConfig()
    assert windows_of_model(config) is None
    mark_windows(config, WindowSettings("max", 32, 8))
    assert config.to_dict()[FIELD] == {"pool": "max", "max_length": 32, "stride": 8}
    assert windows_of_model(config) == WindowSettings("max", 32, 8)
    assert WindowSettings("max", 32, 8).of_length(16) == WindowSettings("max", 16, 4)
    mark_windows(config, None)
    assert FIELD not in config.to_dict()


@pytest.mark.parametrize(
    "entry", ["mean", {"pool": "sum", "max_length": 8, "stride": 2}, {"pool": "max", "max_length": 8}, [1]]
)
def test_an_entry_that_is_none_is_refused(entry: Any) -> None:
    from transformers import BertConfig

    config = BertConfig()
    setattr(config, FIELD, entry)
    with pytest.raises(MbertError) as refusal:
        windows_of_model(config)
    assert refusal.value.code == "M480"


@pytest.mark.slow
def test_the_embedded_task_of_long_texts() -> None:
    from microbert_cli.data.corpus.python_functions import MAX_WORDS, MIN_WORDS, raises_rows

    rows = {split: dict(zip(*raises_rows(split), strict=True)) for split in ("train", "dev", "test")}
    train, dev = rows["train"], rows["dev"]
    assert len(train) > 2000 and len(dev) > 200 and not train.keys() & dev.keys() and not train.keys() & rows["test"].keys()
    for text, label in dev.items():
        assert MIN_WORDS <= len(text.split()) <= MAX_WORDS
        assert label == "silent" or " raise" in f" {text}"
    assert 0.3 < list(dev.values()).count("raises") / len(dev) < 0.5


def test_keys_of_windows_that_nobody_sets_leave_identities_alone() -> None:
    from microbert_cli.recipe.schema import Recipe

    unsaid = Recipe().identity("data")["data"]
    assert not {"windows", "stride", "transfer_windows"} & unsaid.keys()
    identity = Recipe.model_validate({"data": {"windows": "mean"}}).identity("data")["data"]
    assert identity == {**unsaid, "windows": "mean"}
