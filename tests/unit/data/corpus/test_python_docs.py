"""The text that ships with every CPython: prose only, the same every time, and nothing held out in a corpus."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from microbert_cli.data.corpus import python_docs
from microbert_cli.data.corpus.python_docs import LABELS, SPLITS, paragraphs, passages, python_task_rows, words_of

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.slow
def test_there_is_enough_text() -> None:
    words = sum(len(sentence.split()) for passage in passages() for sentence in passage.sentences)
    assert len(passages()) > 9_000
    assert words > 180_000


@pytest.mark.slow
def test_a_tenth_is_dev_and_a_tenth_is_test() -> None:
    shares = {split: sum(passage.split == split for passage in passages()) / len(passages()) for split in SPLITS}
    assert shares["dev"] == pytest.approx(0.1, abs=0.02)
    assert shares["test"] == pytest.approx(0.1, abs=0.02)


def test_no_sentence_occurs_twice() -> None:
    sentences = [words_of(sentence) for passage in passages() for sentence in passage.sentences]
    assert len(sentences) == len(set(sentences))


def test_the_corpus_holds_no_dev_and_no_test_sentence() -> None:
    corpus = {words_of(sentence) for document in python_docs.python_documents() for sentence in document}
    held_out = {words_of(s) for passage in passages() if passage.split != "train" for s in passage.sentences}
    assert len(held_out) > 1_000
    assert not corpus & held_out
    everything = {words_of(sentence) for document in python_docs.python_documents(exclude_dev=False) for sentence in document}
    assert everything == corpus | held_out


def test_documents_keep_their_sentences_together() -> None:
    documents = list(python_docs.python_documents())
    assert all(documents)
    assert sum(len(document) > 1 for document in documents) > 1_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Return the `size` of a file.\nIt may be zero.\n\n    >>> f.size\n    3",
            [["Return the size of a file.", "It may be zero."]],
        ),
        (
            "Heading words here\n******************\n\n* one two three four\n* five six seven",
            [["one two three four", "five six seven"]],
        ),
        ("Uses :func:`open` and ``close`` here.", [["Uses open and close here."]]),
        ("a = b + c; d[e] == 7 != 8", []),
        ("Too short", []),
    ],
)
def test_prose_is_kept_and_code_is_not(text: str, expected: list[list[str]]) -> None:
    assert list(paragraphs(text)) == expected


@pytest.mark.slow
def test_the_text_does_not_depend_on_the_process() -> None:
    code = (
        "from microbert_cli.data.corpus import python_docs as p; "
        "print(p.stable_hash(repr(list(p.python_documents()))), 'torch' in __import__('sys').modules)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs.pop().split()[1] == "False"


def test_a_docstring_is_read_without_its_module() -> None:
    root = Path(os.__file__).parent
    for name in ("antigravity", "this", "nntplib", "turtle"):
        if (path := root / f"{name}.py").is_file():
            assert name not in sys.modules
            list(python_docs._docstrings_of(path, name))
            assert name not in sys.modules


@pytest.mark.slow
def test_nothing_is_imported() -> None:
    code = (
        "import sys; from microbert_cli.data.corpus import python_docs as p; before = set(sys.modules); "
        "list(p.docstrings()); print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(name.startswith(("encodings.", "_sysconfigdata")) for name in done.stdout.split())


def test_every_split_has_rows_of_both_labels() -> None:
    sizes = {split: len(python_task_rows(split)[0]) for split in SPLITS}
    assert sizes["train"] > 8_000
    assert sizes["dev"] > 1_000
    assert sizes["test"] > 1_000
    for split in SPLITS:
        labels = python_task_rows(split)[1]
        assert set(labels) == set(LABELS)
        assert labels.count("rotated") / len(labels) == pytest.approx(0.5, abs=0.06)


def test_a_row_is_a_sentence_whole_or_with_its_halves_exchanged() -> None:
    sentences = {
        " ".join(sentence.lower().rstrip(".:;,!?").split())
        for passage in passages()
        if passage.split == "dev"
        for sentence in passage.sentences
    }
    for text, label in zip(*python_task_rows("dev"), strict=True):
        words = text.split()
        turns = {" ".join(words[cut:] + words[:cut]) for cut in range(2, len(words) - 1)}
        assert text in sentences if label == "whole" else turns & sentences


def test_no_row_is_shared_between_splits() -> None:
    rows = {split: {" ".join(sorted(words_of(text).split())) for text in python_task_rows(split)[0]} for split in SPLITS}
    shared = (rows["train"] & rows["dev"]) | (rows["train"] & rows["test"])
    assert len(shared) < 0.02 * len(rows["dev"])  # other sentences of the very same words: rare, not a leak


@pytest.mark.slow
def test_word_pairs_alone_do_not_solve_the_task() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    linear = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=300))
    linear.fit(*python_task_rows("train"))
    assert linear.score(*python_task_rows("dev")) < 0.62
