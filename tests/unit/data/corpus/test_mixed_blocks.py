"""A corpus in two vocabularies: every word in the pieces of one of them, the right share, nothing beyond the length."""

import math
import random

import numpy as np
import pytest
import torch
from tiny_models import WORDS, tiny_tokenizer

from microbert_cli.data.corpus.blocks import BlockSettings, make_blocks
from microbert_cli.data.corpus.joint_vocabulary import JointVocabulary, is_word_piece, read_words
from microbert_cli.data.corpus.masking import Masking, split_batch, teacher_part, with_teacher_part
from microbert_cli.data.corpus.mixed_blocks import MixedBlocks, make_mixed_blocks
from microbert_cli.data.corpus.vocabulary import corpus_vocabulary

ROWS = 400  # of the teacher's table: more than it has tokens, as released models have


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("teacher"), vocab=("the", "baker", "boat", "lovely"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    draw, path = random.Random(0), tmp_path_factory.mktemp("corpus") / "text.txt"
    extra = ("Unbelievable", "naïve", "don't", "42", "[MASK]", "東京", "e-mail")
    documents = ["\n".join(f"The {' '.join(draw.choices((*WORDS, *extra), k=draw.randint(1, 30)))} {i}." for _ in range(3))
                 for i in range(60)]  # fmt: skip
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return str(path)


@pytest.fixture
def joint(source, teacher):
    student = corpus_vocabulary(source, size=150, lowercase=True, max_length=64)
    return JointVocabulary(teacher, student, ROWS)


@pytest.fixture(params=["packed", "pairs"])
def blocks(request, source, joint) -> MixedBlocks:
    return make_mixed_blocks(source, joint, BlockSettings(format=request.param, max_length=40, heldout=0.2))[0]


def test_a_piece_that_both_have_is_one_row_and_a_special_token_its_like(joint, teacher):
    student = joint.student.get_vocab()
    assert joint.student_ids[student["[CLS]"]] == teacher.cls_token_id
    both = [piece for piece in student if piece in teacher.get_vocab()]
    assert both and all(joint.student_ids[student[piece]] == teacher.get_vocab()[piece] for piece in both)
    alone = sorted(joint.student_ids[number] for piece, number in student.items() if piece not in teacher.get_vocab())
    assert alone == list(range(ROWS, len(joint))) and alone
    assert all(joint.student_ids[student[piece]] == number for number, piece in joint.new_pieces.items())


def test_a_new_piece_is_written_with_the_teachers_pieces_longest_first(joint, teacher):
    vocabulary = teacher.get_vocab()
    assert joint.teacher_pieces("bakers") == [vocabulary["baker"], vocabulary["##s"]]
    assert joint.teacher_pieces("##ab") == [vocabulary["##a"], vocabulary["##b"]]
    assert joint.teacher_pieces("東") == [teacher.unk_token_id]


def test_words_are_read_by_both_as_they_read_whole_texts(joint, teacher):
    texts = ["The baker sold unbelievable boats, don't you see?", "Café [MASK] 東京 x"]
    for text, (student, of_teacher) in zip(texts, read_words(texts, joint.student, teacher), strict=True):
        assert student[0] == joint.student(text, add_special_tokens=False)["input_ids"]
        assert of_teacher[0] == teacher(text, add_special_tokens=False)["input_ids"]
        assert len(student[1]) == len(of_teacher[1]) and sum(student[1]) == len(student[0])


def test_the_student_reads_its_own_pieces_of_whole_words(blocks, joint):
    batch = blocks.batch(np.arange(len(blocks)))
    assert batch["attention_mask"].sum(1).max() <= 40
    assert batch["input_ids"].max() < len(joint.student)
    text = joint.student.decode(batch["input_ids"][0][1:], skip_special_tokens=True)
    ids = joint.student(text, add_special_tokens=False)["input_ids"]
    if "[UNK]" not in joint.student.convert_ids_to_tokens(batch["input_ids"][0]) and "[MASK]" not in text:
        row = [number for number in batch["input_ids"][0].tolist() if number not in joint.student.all_special_ids]
        assert ids == row


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_all_pieces_of_a_word_are_of_one_vocabulary_and_the_share_is_right(blocks, joint, share):
    """Of n words, each in the student's pieces with probability p: within 5 standard deviations of n p."""
    rows, words, chosen = np.arange(len(blocks)), 0, 0
    batch = blocks.mixed(rows, share, (7, 1, 0))
    assert batch["attention_mask"].sum(1).max() <= 40
    assert set(blocks.lengths >= batch["attention_mask"].sum(1).numpy()) == {True}
    for row in rows:
        ids, marks = batch["input_ids"][row].tolist(), batch["from_student"][row].tolist()
        place = 1
        for begin, end in blocks.ranges[row].reshape(2, 2):
            read = blocks.words(begin, end)
            student, teacher = (
                np.split(pieces, np.cumsum(counts)[:-1]) if len(counts) else []
                for pieces, counts in (
                    (joint.student_ids[read.student], read.student_counts),
                    (read.teacher, read.teacher_counts),
                )
            )
            for by_student, by_teacher in zip(student, teacher, strict=True):
                word = by_student if marks[place] else by_teacher
                assert ids[place : place + len(word)] == word.tolist()
                assert set(marks[place : place + len(word)]) == {marks[place]}
                words, chosen, place = words + 1, chosen + marks[place], place + len(word)
            if end > begin:
                assert ids[place] == joint.teacher.sep_token_id
                place += 1
        assert not batch["attention_mask"][row, place:].any()
    assert words > 500
    assert abs(chosen - words * share) <= 5 * math.sqrt(words * share * (1 - share))


def test_a_batch_is_drawn_from_its_number_alone(blocks):
    rows = np.array([3, 0, 5])
    first, again, other = (blocks.mixed(rows, 0.5, (7, 1, number)) for number in (4, 4, 5))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["input_ids"].shape != other["input_ids"].shape or not torch.equal(first["input_ids"], other["input_ids"])


def test_packed_blocks_lose_no_word(source, joint):
    blocks = make_mixed_blocks(source, joint, BlockSettings(format="packed", max_length=40, heldout=0.2))
    plain = make_blocks(source, joint.student, BlockSettings(format="packed", max_length=4000, heldout=0.2))
    tokens = sum(int((part.batch(np.arange(len(part)))["attention_mask"].sum(1) - 2).sum()) for part in blocks)
    whole = sum(int((part.lengths - 2).sum()) for part in plain)
    assert tokens == whole


def test_counts_of_tokens_are_those_of_the_students_pieces(blocks, joint):
    tokens = blocks.tokens[0 : len(blocks.tokens)]
    assert len(tokens) and tokens.max() < len(joint.student)


def test_masks_and_halves_go_with_the_rows_of_both_models(blocks, joint):
    rows = np.arange(6)
    student = Masking(joint.student, 0.3, 0.0, 1, blocks.tokens).draw(blocks.batch(rows), 0)
    teacher = Masking(joint, 0.3, 0.0, 2, blocks.tokens).draw(blocks.mixed(rows, 0.5, (1, 1, 0)), 0)
    assert teacher["input_ids"].max() < len(joint)
    batch = with_teacher_part(student, teacher)
    halves = split_batch(batch)
    for name, whole in (("student", student), ("teacher", teacher)):
        parts = [teacher_part(half) if name == "teacher" else half for half in halves]
        assert torch.equal(torch.cat([part["input_ids"] for part in parts]), whole["input_ids"])
        assert torch.equal(torch.cat([part["token_labels"] for part in parts]), whole["token_labels"])
        masked = torch.cat([part["input_ids"].flatten()[part["token_positions"]] for part in parts])
        assert torch.equal(masked, whole["input_ids"].flatten()[whole["token_positions"]])


def test_byte_pairs_are_no_word_pieces(teacher):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    pairs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, [])))
    assert is_word_piece(teacher) and not is_word_piece(pairs)


def test_a_vocabulary_comes_from_the_cache(source, monkeypatch):
    first = corpus_vocabulary(source, size=150, lowercase=True, max_length=64)
    monkeypatch.setattr("microbert_cli.data.corpus.vocabulary.train_vocabulary", lambda *_, **__: 1 / 0)
    again = corpus_vocabulary(source, size=150, lowercase=True, max_length=64)
    assert again.get_vocab() == first.get_vocab() and again("Café")["input_ids"] == first("Café")["input_ids"]
