"""C-MLM's parts by hand: masked copies, what a teacher says of hidden tokens, the cache of it, the losses of a student."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_bert

from microbert_cli.catalog.losses.bidirectional_target import bidirectional_target
from microbert_cli.catalog.losses.hard_label import hard_label
from microbert_cli.data.examples import Examples
from microbert_cli.data.task_data import TaskData
from microbert_cli.distillation.generation.copies import masked_copies, positions_hidden_at_random
from microbert_cli.distillation.generation.teacher import Filler, FillingObjective, FillingTeacher, score_teacher, untie
from microbert_cli.distillation.generation.text_task import TextTask, filler_of
from microbert_cli.distillation.generation.top_cache import TopLayout, cached_top
from microbert_cli.distillation.generation.trainers import FILLING
from microbert_cli.distillation.teacher_cache import CacheSettings
from microbert_cli.models.capture import OutputRequest
from microbert_cli.models.generation.vocabulary import vocabulary_of_texts
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.task import load_task
from microbert_cli.training.loss_terms import make_terms

SOURCES = ["the film is good", "a dull film", "nothing here works", "good good good"]
TARGETS = ["good film", "the film is dull and long and very slow indeed", "x", "good"]
TOP = OutputRequest(top_k=5, copies=3)


def task_of_texts(length: int = 60) -> TaskData:
    task = load_task({"name": "texts", "files": {"train": "rows.csv"}, "text": ["source"],
                      "label": {"column": "target", "kind": "text_generation"}})  # fmt: skip
    rows = Examples([(text,) for text in SOURCES], list(TARGETS))
    return TaskData(task, {"train": rows, "dev": rows}, length)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Filler, TextTask]:
    """A masked-LM with random weights as a teacher, and four rows."""
    place = tiny_bert(tmp_path_factory.mktemp("teacher"), kind="masked-lm", dropout=0.0)
    loaded = load_model(place, "masked-lm", where="teacher")
    data = task_of_texts()
    target = vocabulary_of_texts(loaded.tokenizer, loaded.model.config, [*SOURCES, *TARGETS], where="teacher")
    filler, task = filler_of(loaded.model, loaded.tokenizer, target, data, where="teacher")
    return filler, task


# --- masked copies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(1, 41))
def test_every_position_is_hidden_in_exactly_one_copy(length: int) -> None:
    copies = masked_copies(length, 7)
    assert len(copies) == min(length, 7)
    assert sorted(np.concatenate(copies).tolist()) == list(range(length))
    assert all((np.diff(positions) == 7).all() for positions in copies)


def test_what_a_step_hides_depends_on_seed_step_and_row_alone() -> None:
    together = positions_hidden_at_random([9, 4, 30], [5, 6, 7], share=0.15, seed=1, step=3)
    apart = [positions_hidden_at_random([n], [row], share=0.15, seed=1, step=3)[0] for n, row in ((9, 5), (4, 6), (30, 7))]
    assert all(np.array_equal(one_row, alone) for one_row, alone in zip(together, apart, strict=True))
    assert all(len(positions) for positions in together)
    later = positions_hidden_at_random([9, 4, 30], [5, 6, 7], share=0.15, seed=1, step=4)
    assert any(not np.array_equal(*both) for both in zip(together, later, strict=True))
    many = positions_hidden_at_random([100] * 200, range(200), share=0.15, seed=0, step=0)
    assert 0.13 < sum(map(len, many)) / 20_000 < 0.17


# --- what the rows are --------------------------------------------------------------------------------------------------------


def test_a_target_is_the_same_pieces_for_both_and_ends_in_both(pair: tuple[Filler, TextTask]) -> None:
    filler, task = pair
    pairs, filled = task.pairs("train"), task.filled("train", filler)
    for row, text in enumerate(TARGETS):
        batch = pairs.batch([row])
        student = task.tokenizer.convert_ids_to_tokens(batch["labels"][0].tolist())
        teacher = filler.tokenizer.convert_ids_to_tokens(filled.batch([row])["input_ids"][0].tolist())
        assert student[-1] == "[SEP]" and teacher[-len(student) :] == student
        assert student[:-1] == filler.tokenizer.tokenize(text)
        source = filler.tokenizer.tokenize(SOURCES[row])
        assert teacher == ["[CLS]", *source, "[SEP]", *student]
    segments = filled.batch([0])["token_type_ids"][0].tolist()
    source = 2 + len(filler.tokenizer.tokenize(SOURCES[0]))
    assert segments == [0] * source + [1] * (len(segments) - source)


def test_a_decoder_reads_the_target_one_position_later(pair: tuple[Filler, TextTask]) -> None:
    _, task = pair
    batch = task.pairs("train").batch([0, 1], pad_id=task.tokenizer.pad_token_id)
    decoder, labels = batch["decoder_input_ids"], batch["labels"]
    assert (decoder[:, 0] == task.tokenizer.cls_token_id).all()
    assert torch.equal(decoder[1, 1:], labels[1, :-1]) and (labels[1] >= 0).all()
    length = int((labels[0] >= 0).sum())
    assert (labels[0, length:] == -100).all() and labels[0, length - 1] == task.tokenizer.sep_token_id


def test_the_students_vocabulary_holds_what_the_rows_use_and_can_write_anything(pair: tuple[Filler, TextTask]) -> None:
    filler, task = pair
    assert len(task.tokenizer) < len(filler.tokenizer)
    for text in (*SOURCES, *TARGETS):
        assert task.tokenizer.tokenize(text) == filler.tokenizer.tokenize(text)
    assert task.tokenizer.unk_token not in task.tokenizer.tokenize("wonderful zebra 42!")
    tokens = [task.tokenizer.convert_ids_to_tokens(number) for number in range(len(task.tokenizer))]
    assert filler.tokenizer.convert_tokens_to_ids(tokens) == filler.teacher_ids.tolist()


# --- the teacher --------------------------------------------------------------------------------------------------------------


def by_hand(filler: Filler, task: TextTask, row: int, position: int, hidden: list[int]) -> torch.Tensor:
    """The logits over the student's tokens at one target position, with these positions hidden; plain transformers."""
    batch = task.filled("train", filler).batch([row])
    ids, length = batch["input_ids"].clone(), len(task.labels("train", np.asarray([row]))[0])
    start = ids.shape[1] - length
    ids[0, [start + place for place in hidden]] = filler.tokenizer.mask_token_id
    with torch.no_grad():
        logits = filler.model(
            input_ids=ids, attention_mask=batch["attention_mask"], token_type_ids=batch["token_type_ids"]
        ).logits
    return logits[0, start + position, torch.from_numpy(filler.teacher_ids)]


def test_a_teacher_says_of_each_hidden_token_what_the_masked_lm_says(pair: tuple[Filler, TextTask]) -> None:
    filler, task = pair
    teacher = FillingTeacher(filler, task.filled("train", filler))
    batch = task.pairs("train").batch([1, 0])
    values, tokens = teacher.ask(batch, TOP).top  # type: ignore[misc]
    assert values.shape == tokens.shape == (2, batch["labels"].shape[1], 5)
    for place in (0, 1, 2, 5):
        hidden = [copy for copy in masked_copies(int((batch["labels"][0] >= 0).sum()), 3) if place in copy][0].tolist()
        expected = by_hand(filler, task, 1, place, hidden).topk(5)
        assert torch.allclose(values[0, place], expected.values, atol=1e-5) and torch.equal(tokens[0, place], expected.indices)
    assert (values[1, int((batch["labels"][1] >= 0).sum()) :] == 0).all()  # behind the end of a shorter target


def test_an_untied_output_layer_begins_as_the_embeddings(tmp_path: Path) -> None:
    place = tiny_bert(tmp_path / "lm", kind="masked-lm")
    loaded = load_model(place, "masked-lm", where="teacher")
    table = loaded.model.get_input_embeddings().weight
    assert loaded.model.get_output_embeddings().weight is table
    untie(loaded.model)
    output = loaded.model.get_output_embeddings().weight
    assert output is not table and torch.equal(output, table)
    with torch.no_grad():
        output += 1.0
    loaded.model.save_pretrained(tmp_path / "kept")
    loaded.tokenizer.save_pretrained(tmp_path / "kept")
    again = load_model(tmp_path / "kept", "masked-lm", where="teacher").model
    assert torch.equal(again.get_output_embeddings().weight, output) and torch.equal(again.get_input_embeddings().weight, table)


def test_a_teacher_learns_at_hidden_places_alone(pair: tuple[Filler, TextTask]) -> None:
    filler, task = pair
    terms = make_terms(FILLING, Catalog())
    objective = FillingObjective(terms, filler, share=0.3, seed=4)
    objective.progress(2, 10)
    batch = task.filled("train", filler).batch([0, 1, 2, 3], pad_id=filler.tokenizer.pad_token_id)
    hidden = objective.hide(batch)
    flat, before = hidden["input_ids"].flatten(), batch["input_ids"].flatten()
    assert (flat[hidden["token_positions"]] == filler.tokenizer.mask_token_id).all()
    assert int((flat != before).sum()) == len(hidden["token_positions"]) == len(hidden["token_labels"])
    labels = torch.from_numpy(filler.teacher_ids)[hidden["token_labels"]]
    assert torch.equal(labels, before[hidden["token_positions"]])
    _, loss, parts = next(iter(objective.losses(batch)))
    logits = filler.model(**{name: hidden[name] for name in ("input_ids", "attention_mask", "token_type_ids")}).logits
    chosen = logits.flatten(0, 1)[hidden["token_positions"]][:, torch.from_numpy(filler.teacher_ids)]
    expected = torch.nn.functional.cross_entropy(chosen, hidden["token_labels"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and set(parts) == {"masked_lm"}


def test_a_teacher_is_scored_on_every_token_once(pair: tuple[Filler, TextTask]) -> None:
    filler, task = pair
    scores = score_teacher(filler, task.filled("dev", filler), lambda rows: task.labels("dev", rows), copies=3)
    losses, right = [], 0
    for row in range(4):
        labels = task.labels("dev", np.asarray([row]))[0].tolist()
        for copy in masked_copies(len(labels), 3):
            for place in copy.tolist():
                logits = by_hand(filler, task, row, place, copy.tolist())
                losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(labels[place])).item())
                right += int(logits.argmax()) == labels[place]
    assert scores["token_accuracy"] == pytest.approx(right / len(losses))
    assert scores["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


# --- the cache ----------------------------------------------------------------------------------------------------------------


def test_a_cache_gives_what_the_teacher_says_and_asks_it_once(
    pair: tuple[Filler, TextTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler, task = pair
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path))
    pairs, batch = task.pairs("train"), task.pairs("train").batch([2, 1])
    for precision, near in (("fp32", 0.0), ("fp16", 2e-3)):
        teacher = FillingTeacher(filler, task.filled("train", filler))
        settings = CacheSettings(precision=precision)
        ask = cached_top(teacher, pairs, TOP, identity={"weights": "w"}, settings=settings)
        assert ask != teacher.ask and teacher.rows_asked == 4
        kept, expected = ask(batch, TOP).top, teacher.ask(batch, TOP).top
        assert kept is not None and expected is not None
        assert torch.equal(kept[1], expected[1]) and torch.allclose(kept[0], expected[0], atol=near or 1e-6)
        again = FillingTeacher(filler, task.filled("train", filler))
        cached_top(again, pairs, TOP, identity={"weights": "w"}, settings=settings)
        assert again.rows_asked == 0
    changed = FillingTeacher(filler, task.filled("train", filler))
    cached_top(changed, pairs, TOP, identity={"weights": "others"})
    assert changed.rows_asked == 4
    off = cached_top(changed, pairs, TOP, identity={"weights": "w"}, settings=CacheSettings(teacher="off"))
    assert off == changed.ask


def test_the_size_of_a_cache() -> None:
    """fp16 values and int32 numbers: 6 bytes for each of k."""
    assert TopLayout.of_targets(np.asarray([3, 5]), 8, "fp16").bytes == 8 * 8 * 6
    assert TopLayout.of_targets(np.asarray([3, 5]), 128, "fp32").bytes == 8 * 128 * 8


# --- losses -------------------------------------------------------------------------------------------------------------------


def test_the_two_likeliest_tokens_at_temperature_10() -> None:
    """Logits (10 ln 3, 0) at T = 10 are (.75, .25); a student that is undecided between the two has ln 2."""
    values = torch.tensor([[[10 * math.log(3), 0.0]]])
    assert values.div(10.0).softmax(-1).flatten().tolist() == pytest.approx([0.75, 0.25])
    tokens, labels = torch.tensor([[[0, 1]]]), torch.tensor([[0]])
    loss = bidirectional_target(torch.zeros(1, 1, 2), values, tokens, labels, temperature=10.0)
    assert loss.item() == pytest.approx(0.69315, abs=1e-5)
    student = torch.tensor([[[0.8, 0.2, 1e-9]]]).log()
    loss = bidirectional_target(student, values, tokens, labels, temperature=10.0)
    assert loss.item() == pytest.approx(-0.75 * math.log(0.8) - 0.25 * math.log(0.2), abs=1e-5)


def test_padding_behind_a_target_counts_nowhere() -> None:
    generator = torch.Generator().manual_seed(0)
    student, values = torch.randn(1, 3, 6, generator=generator), torch.randn(1, 3, 2, generator=generator)
    tokens, labels = torch.randint(6, (1, 3, 2), generator=generator), torch.tensor([[4, 1, -100]])
    whole, short = (bidirectional_target(student[:, :n], values[:, :n], tokens[:, :n], labels[:, :n]) for n in (3, 2))
    assert whole.item() == pytest.approx(short.item(), rel=1e-6)
    expected = -student[0, :2].log_softmax(-1)[[0, 1], [4, 1]].mean()
    assert hard_label(student, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_only_the_k_likeliest_count() -> None:
    values, tokens = torch.tensor([[[3.0, 2.0, 1.0]]]), torch.tensor([[[0, 1, 2]]])
    student, labels = torch.randn(1, 1, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([[0]])
    arguments: dict[str, Any] = {"temperature": 2.0, "k": 2}
    assert torch.equal(
        bidirectional_target(student, values, tokens, labels, **arguments),
        bidirectional_target(student, values[..., :2], tokens[..., :2], labels, **arguments),
    )
