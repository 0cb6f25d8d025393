"""Corpora and token blocks: every kind of source, ranges that never cross a document, pairs as BERT's, held-out text apart."""

import gzip
import random
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recording import RecordingReporter
from tiny_models import WORDS, tiny_tokenizer

from microbert_cli.data.corpus.blocks import MAX_HELDOUT, BlockSettings, heldout_groups, heldout_sample, make_blocks
from microbert_cli.data.corpus.documents import identify_corpus, read_documents, split_sentences
from microbert_cli.errors import MbertError

DOCUMENTS = 120


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path_factory.mktemp("cache")))


def sentence(number, words):
    """A sentence that can be told from all others by its number."""
    return f"The {' '.join(words)} {' '.join(str(number))}."


@pytest.fixture(scope="module")
def text():
    """Documents of one to a dozen sentences."""
    draw, number, documents = random.Random(0), 10_000, []
    for _ in range(DOCUMENTS):
        document = []
        for _ in range(draw.randint(1, 12)):
            number += 1
            document.append(sentence(number, draw.choices(WORDS, k=draw.randint(1, 14))))
        documents.append(document)
    return documents


@pytest.fixture(scope="module")
def source(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n\n".join("\n".join(document) for document in text), encoding="utf-8")
    return str(path)


def settings(**changed):
    return BlockSettings(**{"max_length": 48, "heldout": 0.2, **changed})


def ids_of(text, tokenizer):
    """Token ids of each document, sentence by sentence."""
    return [[tokenizer(sentence, add_special_tokens=False)["input_ids"] for sentence in document] for document in text]


class Ranges:
    """Where documents and sentences lie among all tokens."""

    def __init__(self, text, tokenizer):
        ids = ids_of(text, tokenizer)
        self.tokens = [token for document in ids for sentence in document for token in sentence]
        lengths = [[len(sentence) for sentence in document] for document in ids]
        self.ends = np.cumsum([sum(document) for document in lengths])
        self.sentences = {0, *np.cumsum([n for document in lengths for n in document]).tolist()}

    def document(self, start, end):
        """The one document that holds these tokens."""
        first, last = np.searchsorted(self.ends, [start, end - 1], side="right")
        assert first == last, "a range crosses a document"
        return int(first)


# Corpora


def test_sentences_end_before_a_capital():
    assert split_sentences("It rained. We left! Why? e.g. this one stays. 3 more.") == [
        "It rained.", "We left!", "Why? e.g. this one stays.", "3 more.",
    ]  # fmt: skip
    assert split_sentences("   ") == []


def test_every_kind_of_file_gives_the_same_documents(tmp_path, text):
    joined = "\n\n".join("\n".join(document) for document in text) + "\n\n\n"
    (tmp_path / "a.txt").write_text("\ufeff" + joined, encoding="utf-8")
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as file:
        file.write(joined)
    pq.write_table(
        pa.table({"id": range(len(text)), "text": ["\n".join(document) for document in text]}), tmp_path / "a.parquet"
    )
    for name in ("a.txt", "a.txt.gz", "a.parquet"):
        assert list(read_documents(str(tmp_path / name))) == text, name
    assert list(read_documents(str(tmp_path))) == text * 3
    assert list(read_documents(str(tmp_path), limit=5)) == text[:5]


def test_a_corpus_is_read_as_it_is_needed(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"One.\n\nTwo.\n\n" + b"\xff\n")
    stream = read_documents(str(tmp_path / "a.txt"))
    assert [next(stream), next(stream)] == [["One."], ["Two."]]
    with pytest.raises(MbertError) as caught:
        next(stream)
    assert caught.value.code == "M330" and "line 5" in caught.value.where


def test_sources_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"some text of a file")[:-9])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "c.parquet")
    for name, code in (
        ("empty", "M230"),
        ("gone.txt", "M230"),
        ("a.txt.gz", "M330"),
        ("b.parquet", "M330"),
        ("c.parquet", "M330"),
    ):
        with pytest.raises(MbertError) as caught:
            list(read_documents(str(tmp_path / name)))
        assert caught.value.code == code, name


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_advice_about_a_corpus_in_another_encoding_works(tmp_path, encoding, packed):
    text = "It’s 5 €.\n\nTwo.\n" if encoding == "cp1252" else "One.\n\nTwo.\n"
    path = tmp_path / ("a.txt.gz" if packed else "a.TXT")
    path.write_bytes(gzip.compress(text.encode(encoding)) if packed else text.encode(encoding))
    with pytest.raises(MbertError) as caught:
        list(read_documents(str(path)))
    assert caught.value.code == "M330" and ("Windows-1252" if encoding == "cp1252" else "UTF-16") in caught.value.what
    assert subprocess.run(caught.value.fix.removeprefix("Convert it: "), shell=True).returncode == 0
    assert list(read_documents(str(tmp_path / "utf8-a.txt"))) == [[line] for line in text.split("\n") if line]


def test_a_corpus_as_people_name_it(tmp_path):
    (tmp_path / "A.TXT").write_text("One.")
    pq.write_table(pa.table({"text": ["Two."]}), tmp_path / "b.parquet.gzip", compression="gzip")
    pq.write_table(pa.table({"text": ["Three."]}), tmp_path / "c.PQ")
    assert list(read_documents(str(tmp_path))) == [["One."], ["Two."], ["Three."]]
    (tmp_path / "d.txt").write_bytes(gzip.compress(b"Four."))
    with pytest.raises(MbertError) as caught:
        list(read_documents(str(tmp_path / "d.txt")))
    assert caught.value.code == "M383" and "gzip" in caught.value.what


def test_the_identity_of_a_corpus_is_its_text(tmp_path):
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "b.txt").write_text("One.")
    same = identify_corpus(str(tmp_path / "a.txt"))
    assert same == identify_corpus(str(tmp_path / "b.txt"))
    (tmp_path / "a.txt").write_text("Two.")
    assert identify_corpus(str(tmp_path / "a.txt")) != same


# Blocks


@pytest.mark.parametrize("format", ["pairs", "packed"])
def test_no_block_is_too_long_or_crosses_a_document(source, text, tokenizer, format):
    where = Ranges(text, tokenizer)
    for part in make_blocks(source, tokenizer, settings(format=format)):
        assert part.lengths.max() <= 48 and part.lengths.min() >= 3
        for a, a_end, b, b_end in part.ranges.tolist():
            assert a_end > a and b_end >= b
            where.document(a, a_end)
            if b_end > b:
                where.document(b, b_end)


@pytest.mark.parametrize("format", ["pairs", "packed"])
def test_ranges_give_back_the_text(source, text, tokenizer, format):
    where = Ranges(text, tokenizer)
    train, _ = make_blocks(source, tokenizer, settings(format=format))
    assert np.asarray(train.tokens).tolist() == where.tokens
    rows = np.arange(0, len(train), 7)
    batch = train.batch(rows)
    cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    for i, (a, a_end, b, b_end) in enumerate(train.ranges[rows].tolist()):
        ids = [cls, *where.tokens[a:a_end], sep, *([*where.tokens[b:b_end], sep] if b_end > b else [])]
        length = len(ids)
        assert length == train.lengths[rows[i]]
        assert batch["input_ids"][i].tolist() == ids + [pad] * (batch["input_ids"].shape[1] - length)
        assert batch["attention_mask"][i].sum() == length
        types = batch["token_type_ids"][i, :length].tolist()
        assert types == [0] * (a_end - a + 2) + [1] * (b_end - b + 1 if b_end > b else 0)


def test_pairs_say_whether_they_belong_together(source, text, tokenizer):
    where = Ranges(text, tokenizer)
    for part in make_blocks(source, tokenizer, settings()):
        labels = part.batch(np.arange(len(part)))["unrelated"].tolist()
        for label, (a, a_end, b, b_end) in zip(labels, part.ranges.tolist(), strict=True):
            assert label == (int(where.document(a, a_end) != where.document(b, b_end)) if b_end > b else -100)
    train, _ = make_blocks(source, tokenizer, settings())
    assert {0, 1} <= set(train.batch(np.arange(len(train)))["unrelated"].tolist())
    packed, _ = make_blocks(source, tokenizer, settings(format="packed"))
    assert packed.batch(np.arange(2))["unrelated"].tolist() == [-100, -100]


def test_blocks_can_be_padded_to_a_length(source, tokenizer):
    train, _ = make_blocks(source, tokenizer, settings())
    assert train.batch(np.arange(3), pad_to=64)["input_ids"].shape == (3, 64)


def test_packed_blocks_hold_every_token_once(source, text, tokenizer):
    where = Ranges(text, tokenizer)
    spans = [row[:2] for part in make_blocks(source, tokenizer, settings(format="packed")) for row in part.ranges.tolist()]
    spans.sort()
    assert spans[0][0] == 0 and spans[-1][1] == len(where.tokens)
    assert all(end == start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    # A block begins where a sentence does, but for the rest of a sentence longer than a block.
    assert all(start in where.sentences for start, _ in spans)


def test_packed_blocks_cut_only_sentences_that_are_too_long(tmp_path, tokenizer):
    path = tmp_path / "long.txt"
    path.write_text("\n\n".join([" ".join(["boat"] * 100) + ".", "A boat. The boat.", "The lamp."]))
    where = Ranges(list(read_documents(str(path))), tokenizer)
    parts = make_blocks(str(path), tokenizer, settings(format="packed", heldout=0.0))
    spans = sorted(tuple(row[:2]) for part in parts for row in part.ranges.tolist())
    assert spans[:3] == [(0, 46), (46, 92), (92, 101)]
    assert all(start in where.sentences for start, _ in spans[3:])


def test_pairs_begin_where_sentences_do_unless_cut(source, text, tokenizer):
    """What is too long loses tokens at the front or the back, at random; what fits is whole."""
    where = Ranges(text, tokenizer)
    train, _ = make_blocks(source, tokenizer, settings(max_length=96))
    whole = [row for row, length in zip(train.ranges.tolist(), train.lengths, strict=True) if length < 96]
    assert len(whole) > len(train) / 2
    for a, a_end, b, b_end in whole:
        assert {a, a_end} <= where.sentences and (b == b_end or {b, b_end} <= where.sentences)


def test_no_sentence_is_lost_to_a_replaced_segment(source, text, tokenizer):
    """What a random segment B stood in for comes again; only what is cut from too long a pair is gone."""
    where = Ranges(text, tokenizer)
    seen = np.zeros(len(where.tokens), dtype=bool)
    for part in make_blocks(source, tokenizer, settings(max_length=128)):
        for a, a_end, b, b_end in part.ranges.tolist():
            seen[a:a_end] = True
            if b_end > b and where.document(b, b_end) == where.document(a, a_end):
                seen[b:b_end] = True
    assert seen.mean() > 0.93


def continuations(source, tokenizer, **changed):
    """The share of blocks whose segment B goes on where A ends, but for tokens lost where they meet."""
    train, _ = make_blocks(source, tokenizer, settings(max_length=128, short=0.0, **changed))
    return np.mean([0 <= b - a_end < 20 and b_end > b for _, a_end, b, b_end in train.ranges.tolist()]), train


def test_about_half_of_the_second_segments_are_the_true_continuation(tmp_path, tokenizer):
    """Long documents, so that few chunks are a single sentence: the last one of a document, which nothing can follow."""
    path = tmp_path / "many.txt"
    path.write_text("\n\n".join("\n".join(["The boat.", "A lamp.", "It is warm."] * 250) for _ in range(8)))
    share, train = continuations(str(path), tokenizer)
    assert 0.4 < share < 0.6 and len(train) > 50
    assert continuations(str(path), tokenizer, random_next=0.0)[0] > 0.9
    assert continuations(str(path), tokenizer, random_next=1.0)[0] == 0.0


def test_random_segments_come_from_other_documents_of_the_same_part(source, text, tokenizer):
    where = Ranges(text, tokenizer)
    train, held = make_blocks(source, tokenizer, settings())
    of_part = [{where.document(a, a_end) for a, a_end, _, _ in part.ranges.tolist()} for part in (train, held)]
    assert not of_part[0] & of_part[1] and of_part[0] | of_part[1] == set(range(DOCUMENTS))
    assert 0.1 < len(of_part[1]) / DOCUMENTS < 0.3
    strangers = 0
    for part, documents in zip((train, held), of_part, strict=True):
        for a, a_end, b, b_end in part.ranges.tolist():
            if b_end > b:
                assert where.document(b, b_end) in documents
                strangers += where.document(b, b_end) != where.document(a, a_end)
                same = where.document(b, b_end) == where.document(a, a_end)
                assert not same or b >= a_end, "a replaced segment is of another document"
    assert strangers > 20


def test_held_out_documents_are_the_same_under_any_order(tmp_path, text, tokenizer):
    def held(documents, name):
        path = tmp_path / name
        path.write_text("\n\n".join("\n".join(document) for document in documents))
        where = Ranges(documents, tokenizer)
        rows = make_blocks(str(path), tokenizer, settings())[1].ranges.tolist()
        return {documents[where.document(a, a_end)][0] for a, a_end, _, _ in rows}

    assert held(text, "a.txt") == held(text[::-1], "b.txt")


def test_short_targets_make_short_blocks(source, tokenizer):
    often, never = (make_blocks(source, tokenizer, settings(max_length=64, short=share))[0] for share in (1.0, 0.0))
    assert often.lengths.mean() < never.lengths.mean() - 5


def test_seed_and_settings_decide(source, tokenizer, monkeypatch, tmp_path):
    def ranges(cache, **changed):
        monkeypatch.setenv("MBERT_CACHE", str(tmp_path / cache))
        return [part.ranges.tolist() for part in make_blocks(source, tokenizer, settings(**changed))]

    first = ranges("one")
    assert first == ranges("two")
    assert first != ranges("two", seed=1) and first != ranges("two", max_length=40)
    assert ranges("two", documents=30)[0] != first[0]


def test_blocks_are_made_once(source, tokenizer, monkeypatch):
    first, _ = make_blocks(source, tokenizer, settings())
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=7)  # what it was last asked does not count
    monkeypatch.setattr("microbert_cli.data.corpus.blocks.read_documents", None)
    again, _ = make_blocks(source, tokenizer, settings())
    assert again.ranges.tolist() == first.ranges.tolist()
    with pytest.raises(TypeError):
        make_blocks(source, tokenizer, settings(seed=9))


def test_a_stopped_making_leaves_nothing_that_is_read(source, tokenizer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("microbert_cli.data.corpus.blocks.write_blocks", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_blocks(source, tokenizer, settings())
    assert len(make_blocks(source, tokenizer, settings())[0]) > 0


def test_another_case_rule_makes_other_blocks(source, tmp_path):
    """Equal vocabularies, but another way from text to tokens."""
    from transformers import BertTokenizerFast

    lower = tiny_tokenizer(tmp_path / "lower")
    cased = BertTokenizerFast(vocab=lower.get_vocab(), do_lower_case=False)
    lower_blocks, cased_blocks = (make_blocks(source, tokens, settings())[0] for tokens in (lower, cased))
    assert np.asarray(lower_blocks.tokens).tolist() != np.asarray(cased_blocks.tokens).tolist()


def test_tokens_and_blocks_stay_on_disk(source, tokenizer):
    train, held = make_blocks(source, tokenizer, settings())
    for part in (train, held):
        for array in (part.tokens, part.ranges):
            while not isinstance(array, np.memmap):
                array = array.base
            assert array.mode == "r"


def test_memory_does_not_grow_with_the_corpus(tmp_path, tokenizer, monkeypatch):
    """Four times the text, about the same memory at its peak (a group of documents at a time)."""
    import tracemalloc

    def peak(documents):
        path = tmp_path / f"{documents}.txt"
        path.write_text("\n\n".join("\n".join(["The boat is warm.", "A lamp."] * 5) for _ in range(documents)))
        tracemalloc.start()
        make_blocks(str(path), tokenizer, settings(format="packed"))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    monkeypatch.setattr("microbert_cli.data.corpus.blocks.DOCUMENTS_PER_CALL", 128)
    small, large = peak(128), peak(512)
    assert large < 1.5 * small


@pytest.mark.parametrize("text", ["", "One sentence of one document.", "\n\n\n"])
def test_too_small_a_corpus_is_refused(tmp_path, tokenizer, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(MbertError) as caught:
        make_blocks(str(tmp_path / "a.txt"), tokenizer, settings())
    assert int(caught.value.exit_code) == 5


def test_two_documents_are_enough(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("The boat. A lamp.\n\nIt is warm.")
    train, held = make_blocks(str(tmp_path / "a.txt"), tokenizer, settings(heldout=0.0))
    assert len(train) >= 1 and len(held) == 1


def test_a_large_held_out_part_is_looked_at_in_a_sample_that_is_told(source, tokenizer, monkeypatch):
    reporter = RecordingReporter()
    assert heldout_sample(MAX_HELDOUT).tolist() == list(range(MAX_HELDOUT)), "small parts are looked at whole"
    sample = heldout_sample(54_321)
    assert len(set(sample.tolist())) == MAX_HELDOUT and sample[0] == 0 and sample[-1] == 54_320
    _, held = make_blocks(source, tokenizer, BlockSettings(max_length=32, heldout=0.5))
    whole = heldout_groups(held, 4, reporter)
    assert sorted(np.concatenate(whole).tolist()) == list(range(len(held))) and not reporter.notes
    monkeypatch.setattr("microbert_cli.data.corpus.blocks.MAX_HELDOUT", 5)
    assert sum(map(len, heldout_groups(held, 4, reporter))) == 5
    assert f"5 of {len(held):,} blocks" in reporter.notes[0]
