"""The teacher's answers on disk: the same as when asked, asked once, never those of another teacher, safe in a crash."""

import numpy as np
import pytest
import torch
from recording import RecordingReporter
from tiny_models import tiny_bert, tiny_glue

from microbert_cli import api
from microbert_cli.data.examples import Examples
from microbert_cli.data.tokenized import tokenize_examples
from microbert_cli.distillation import teacher_cache
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.distillation.teacher_cache import CacheSettings, cached_ask
from microbert_cli.models.capture import TOKENS_AT_ONCE, OutputRequest
from microbert_cli.models.load import load_model
from microbert_cli.runs import cache
from microbert_cli.text import parse_size

TEXTS = ["a good film", "bad", "a good film", "the plot of this film is not bad at all but long", "good", "bad film", "bad"]
EVERYTHING = OutputRequest(logits=True, hidden=frozenset({0, 2, 4}), scores=frozenset({2, 4}))
EXACT = CacheSettings(precision="fp32")


class Counted(Teacher):
    """A teacher that counts the rows it is asked about."""

    rows = 0

    def ask(self, batch, want):
        self.rows += len(batch["input_ids"])
        return super().ask(batch, want)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = tiny_bert(tmp_path_factory.mktemp("teacher"), layers=4, num_labels=3, labels=["x", "y", "z"], seed=1)
    return load_model(path, "classifier", where="teacher")


@pytest.fixture(scope="module")
def encoded(loaded):
    return tokenize_examples(Examples([(text,) for text in TEXTS]), loaded.tokenizer, 64)


def asking(teacher, encoded, want=EVERYTHING, settings=EXACT, weights="w", **more):
    return cached_ask(teacher, encoded, want, identity={"weights": weights}, pad_id=0, settings=settings, **more)


def shown(seen):
    return [seen.logits, *seen.hidden.values(), *seen.scores.values()]


@pytest.mark.parametrize(("settings", "tolerance"), [(EXACT, 1e-6), (CacheSettings(), 2e-3)])
@pytest.mark.parametrize("rows", [[0, 1, 2], [3], [6, 3, 0, 5], [4, 4]])
def test_it_answers_like_the_teacher(loaded, encoded, settings, tolerance, rows):
    teacher = Teacher(loaded, columns=[2, 0, 1])
    batch = encoded.batch(rows)
    real = batch["attention_mask"]
    kept, asked = asking(teacher, encoded, settings=settings)(batch, EVERYTHING), teacher.ask(batch, EVERYTHING)
    assert kept.hidden.keys() == asked.hidden.keys() and kept.scores.keys() == asked.scores.keys()
    torch.testing.assert_close(kept.logits, asked.logits, rtol=0, atol=1e-6)  # always in full precision
    for layer in asked.hidden:
        difference = (kept.hidden[layer] - asked.hidden[layer]) * real[:, :, None]
        assert difference.abs().max() < tolerance * 4
    for layer in asked.scores:
        difference = (kept.scores[layer] - asked.scores[layer]) * (real[:, None, :, None] * real[:, None, None, :])
        assert difference.abs().max() < tolerance * 4


def test_padding_beyond_the_longest_row_is_filled(loaded, encoded):
    seen = asking(Teacher(loaded), encoded)(encoded.batch([0, 1], pad_to=20), EVERYTHING)
    assert seen.hidden[0].shape[1] == 20 and seen.scores[2].shape[2:] == (20, 20)


def test_identical_rows_are_asked_once_and_never_again(loaded, encoded):
    teacher = Counted(loaded)
    for _ in range(3):
        ask = asking(teacher, encoded)
        first, second = shown(ask(encoded.batch([0]), EVERYTHING)), shown(ask(encoded.batch([2]), EVERYTHING))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert teacher.rows == len(set(TEXTS))


@pytest.mark.parametrize("changed", ["weights", "want", "precision", "rows"])
def test_what_differs_misses(loaded, encoded, changed):
    teacher = Counted(loaded)
    asking(teacher, encoded)
    other = {
        "weights": dict(weights="v"),
        "want": dict(want=OutputRequest(logits=True, hidden=frozenset({0}))),
        "precision": dict(settings=CacheSettings(precision="fp16")),
        "rows": dict(encoded=tokenize_examples(Examples([(text + " film",) for text in TEXTS]), loaded.tokenizer, 64)),
    }[changed]
    asking(teacher, **{"encoded": encoded, **other})
    assert teacher.rows == 2 * len(set(TEXTS))


def test_a_stopped_pass_goes_on_where_it_was(loaded, encoded, monkeypatch):
    monkeypatch.setitem(TOKENS_AT_ONCE, "cpu", 8)
    monkeypatch.setattr(teacher_cache, "FLUSH_SECONDS", 0.0)

    class Dies(Counted):
        def ask(self, batch, want):
            if self.rows >= 3:
                raise KeyboardInterrupt
            return super().ask(batch, want)

    with pytest.raises(KeyboardInterrupt):
        asking(Dies(loaded), encoded)
    teacher = Counted(loaded)
    ask = asking(teacher, encoded)
    assert teacher.rows == len(set(TEXTS)) - 3
    batch = encoded.batch(range(len(TEXTS)))
    torch.testing.assert_close(ask(batch, EVERYTHING).logits, teacher.ask(batch, EVERYTHING).logits, rtol=0, atol=1e-6)


def test_answers_that_were_written_but_not_vouched_for_are_asked_again(loaded, encoded):
    """A crash between the answers and the word that they are there."""
    asking(Teacher(loaded), encoded)
    (entry,) = (cache.root() / "teacher").glob("*/complete")
    entry.unlink()
    done = np.memmap(entry.parent / "done.bin", dtype="uint8", mode="r+")
    done[:] = 0
    done.flush()
    np.memmap(entry.parent / "logits.bin", dtype="float32", mode="r+")[:] = 7.0
    teacher = Counted(loaded)
    seen = asking(teacher, encoded)(encoded.batch([0]), EVERYTHING)
    assert teacher.rows == len(set(TEXTS)) and not (seen.logits == 7.0).any()


def test_it_is_not_made_where_it_does_not_pay(loaded, encoded):
    teacher = Teacher(loaded)
    distinct = len(set(TEXTS))
    assert asking(teacher, encoded, total_rows=distinct) == teacher.ask
    assert asking(teacher, encoded, total_rows=distinct + 1) != teacher.ask
    assert asking(teacher, encoded, settings=CacheSettings(teacher="off")) == teacher.ask
    assert asking(Teacher(loaded, dropout=True), encoded) != teacher.ask
    assert not Teacher(loaded).model.training


def test_a_teacher_with_dropout_is_never_kept(loaded, encoded):
    teacher = Teacher(loaded, dropout=True)
    assert asking(teacher, encoded) == teacher.ask
    teacher.model.eval()


def test_the_budget_rules_over_hidden_states_and_never_over_logits(loaded, encoded):
    teacher, reporter, small = Teacher(loaded), RecordingReporter(), CacheSettings(budget="1kB")
    assert asking(teacher, encoded, settings=small, reporter=reporter) == teacher.ask
    assert "more than" in reporter.notes[0] and "cache.budget" in reporter.notes[0]
    assert asking(teacher, encoded, OutputRequest(logits=True), settings=small) != teacher.ask


def test_without_a_place_or_room_the_teacher_is_asked_every_time(loaded, encoded, monkeypatch):
    teacher, reporter = Teacher(loaded), RecordingReporter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "is_writable", lambda: False)
        assert asking(teacher, encoded, reporter=reporter) == teacher.ask
    monkeypatch.setattr(cache, "free_bytes", lambda: 100)
    assert asking(teacher, encoded, settings=CacheSettings(budget="8GB"), reporter=reporter) == teacher.ask
    assert "MBERT_CACHE" in reporter.notes[0] and "do not fit" in reporter.notes[1]


def test_the_least_recently_used_entry_makes_room(loaded, encoded):
    teacher = Counted(loaded)
    asking(teacher, encoded, weights="first")
    asking(teacher, encoded, weights="second")
    asking(teacher, encoded, weights="first")  # used again
    size = cache.used_bytes("teacher") // 2
    asking(teacher, encoded, weights="third", settings=CacheSettings(precision="fp32", budget=f"{int(2.2 * size)}"))
    before = teacher.rows
    asking(teacher, encoded, weights="first")
    assert teacher.rows == before
    asking(teacher, encoded, weights="second")
    assert teacher.rows > before


@pytest.mark.parametrize(("text", "size"), [("8GB", 8e9), ("500 mb", 5e8), ("12", 12), ("1.5k", 1500)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny_bert(folder / "teacher", layers=2, hidden=16, labels=["negative", "positive"], seed=1)
    tiny_bert(folder / "student", layers=1, hidden=8, labels=["negative", "positive"], seed=2, dropout=0.0)
    tiny_glue(folder / "glue", ["sst2"])
    return folder


def weights_of(place, out, **keys):
    """A student of two phases, each seeing every row three times."""
    result = api.distill(
        out=out, teacher=place / "teacher", student=place / "student", task="sst2", data__folder=place / "glue",
        teacher__allow_weak=True, method="tinybert", phases__intermediate__epochs=3, phases__prediction__epochs=3, **keys,
    )  # fmt: skip
    return load_model(result.out, "classifier", where="student").model.state_dict()


def test_a_cached_run_gives_the_weights_of_one_without(place, tmp_path):
    plain = weights_of(place, tmp_path / "plain", cache__teacher="off")
    kept = weights_of(place, tmp_path / "kept", cache__precision="fp32")
    assert len(list((cache.root() / "teacher").glob("*/complete"))) == 2
    for name, value in plain.items():
        torch.testing.assert_close(kept[name], value, rtol=0, atol=1e-6, msg=name)


def test_a_run_with_a_warm_cache_is_bit_equal_to_the_one_that_filled_it(place, tmp_path):
    cold, warm = (weights_of(place, tmp_path / name) for name in ("cold", "warm"))
    assert all(torch.equal(cold[name], warm[name]) for name in cold)
