"""Words, word tables and the augmenters: what each says about a word, and what it says about a bad file."""

import gzip
import json
import unicodedata
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from microbert_cli.augmentation.interface import Slot, Tools
from microbert_cli.augmentation.word_vectors import WordTable, load_word_table
from microbert_cli.augmentation.words import STOP_WORDS, Spelling, Splitter, is_letters, stop_words
from microbert_cli.catalog.augmenters import masked_lm, word_vectors
from microbert_cli.errors import Exit, MbertError
from microbert_cli.models.capture import OutputRequest, forward_outputs

WORDS = "the a film was good bad fine great dull long short plot actor scene felt looked very not 1 2 . , ! 's".split()
SPECIAL = "[PAD] [UNK] [CLS] [SEP] [MASK]".split()
VOCABULARY = [*SPECIAL, *WORDS, "block", "##bus", "##ter", "un", "##good", "##ly", "s", "'", "É", "Bon", "bon"]
CLEAN = Splitter(lowercase=False, strip_accents=False)


def bert_directory(folder: Path, *, lowercase: bool = True, positions: int = 64) -> Path:
    """A tiny random BERT with a vocabulary of words."""
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase, "model_max_length": positions}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=positions,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_directory(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def model(bert: Path) -> Any:
    return BertForMaskedLM.from_pretrained(bert).eval()


@pytest.fixture(scope="module")
def tokenizer(bert: Path) -> Any:
    return AutoTokenizer.from_pretrained(bert)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def filler(model: Any) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
    return lambda batch: forward_outputs(model, batch, OutputRequest(token_logits=True)).token_logits


def tools(tokenizer: Any, model: Any, **changed: Any) -> Tools:
    return Tools(Spelling(tokenizer), **({"masked_lm": filler(model), "max_positions": 64} | changed))


def slot(sentence: str, position: int, original: str | None = None) -> Slot:
    return Slot(tuple(sentence.split()), position, tuple((original or sentence).split()))


# words


def test_words_are_those_of_berts_basic_tokenizer(tokenizer: Any) -> None:
    text = "It's a NAÏVE, déjà-vu\tfilm\u200b — 3D!\r\n中文 字 a\u0301 $5 [MASK] x\ufffdy"
    tokens = tokenizer.backend_tokenizer
    normal = tokens.normalizer.normalize_str(text)
    expected = [word for word, _ in tokens.pre_tokenizer.pre_tokenize_str(normal)]
    assert Splitter().split(text) == expected
    assert CLEAN.split("Der Präsident, 'n Öl.") == ["Der", "Präsident", ",", "'", "n", "Öl", "."]


def test_a_tokenizer_shows_its_case(tokenizer: Any, tmp_path: Path) -> None:
    cased = AutoTokenizer.from_pretrained(bert_directory(tmp_path, lowercase=False))
    assert Spelling(tokenizer).splitter == Splitter(True, True)
    assert Spelling(cased).splitter == Splitter(False, False)
    assert Spelling(cased).splitter.split("Bon É") == ["Bon", "É"]


@pytest.mark.parametrize("word", ["film", "naïve", "фильм", "映", "हिन्दी", "γεια", unicodedata.normalize("NFD", "é")])
def test_letters_of_any_script(word: str) -> None:
    assert is_letters(word)


@pytest.mark.parametrize("word", ["", "3d", "'s", "x-y", "42", "!", "\u0301e", "a1"])
def test_what_is_no_word(word: str) -> None:
    assert not is_letters(word)


def test_stop_words_are_in_place() -> None:
    words = stop_words()
    assert {"the", "not", "s", "t", "'s", "'re", "i", "ourselves"} <= STOP_WORDS
    assert not {"good", "bad", "film", "like", "love"} & STOP_WORDS
    assert words.keeps("The") and words.keeps("42") and not words.keeps("film")
    assert len(words.digest) == 64


def test_stop_words_of_nltk(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk.data

    monkeypatch.setattr(nltk.data, "path", [str(shared / "data" / "nltk_data")])
    words = stop_words("nltk")
    assert {"the", "'s", "'re", "wouldn't"} <= words.words
    assert len([word for word in words.words if is_letters(word) and word not in STOP_WORDS]) < 5
    assert words.digest != stop_words().digest


def test_missing_nltk_data_names_the_mending(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import nltk.data
    from nltk.corpus import WordListCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr("nltk.corpus.stopwords", LazyCorpusLoader("stopwords", WordListCorpusReader, "english"))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(MbertError, match="not installed") as caught:
        stop_words("nltk")
    assert caught.value.code == "M240" and "NLTK_DATA" in caught.value.fix


def test_stop_words_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "stop.txt"
    path.write_bytes("\ufeffDer\r\n\r\ndie\n".encode())
    assert stop_words(str(path)).words == {"der", "die"}
    path.write_bytes(b"der\nf\xfcr\n")
    with pytest.raises(MbertError) as caught:
        stop_words(str(path))
    assert caught.value.where.endswith("line 2") and caught.value.exit_code == Exit.CORRUPT
    with pytest.raises(MbertError) as caught:
        stop_words(str(tmp_path / "none.txt"))
    assert caught.value.exit_code == Exit.INPUT


# word tables


def text_file(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


GLOVE = ("good 1 0", "great 0.9 0.1", "bad -1 0", "Fine 0.8 0.2", "zero 0 0", "same 1 0")


def test_neighbours_by_cosine_without_self(tmp_path: Path) -> None:
    table = load_word_table(text_file(tmp_path / "v.txt", *GLOVE))
    assert len(table) == 6 and "good" in table
    np.testing.assert_allclose(np.linalg.norm(table.vectors_WD, axis=1), [1, 1, 1, 1, 0, 1], atol=1e-6)
    assert table.neighbours(["good", "nowhere", "zero", "GREAT"], 3) == [
        ["same", "great", "Fine"],
        [],
        [],
        ["good", "same", "Fine"],
    ]
    assert table.neighbours(["good"], 50)[0][-1] == "bad"


def test_neighbours_do_not_depend_on_company() -> None:
    random = np.random.default_rng(0)
    table = WordTable([f"w{i}" for i in range(700)], random.normal(size=(700, 24)).astype(np.float32).round(1))
    together = table.neighbours(table.words, 15)
    assert [table.neighbours([word], 15)[0] for word in table.words] == together
    assert all(word not in neighbours and len(neighbours) == 15 for word, neighbours in zip(table.words, together, strict=True))


def test_every_packing_gives_the_same_table(tmp_path: Path) -> None:
    plain = text_file(tmp_path / "v.txt", *GLOVE)
    with gzip.open(tmp_path / "v.gz", "wb") as packed:
        packed.write(plain.read_bytes())
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
        archive.write(plain, "big.txt")
        archive.writestr("small.txt", "one 1 2 3\n")
    header = text_file(tmp_path / "v.vec", "6 2", *(f"{line} " for line in GLOVE))
    expected = load_word_table(plain)
    for source in ("v.gz", "v.zip", "v.zip/big.txt", header.name):
        table = load_word_table(tmp_path / source)
        assert table.words == expected.words
        np.testing.assert_array_equal(table.vectors_WD, expected.vectors_WD)
    assert load_word_table(tmp_path / "v.zip/small.txt").words == ["one"]


def test_the_first_words_are_kept_and_cached(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = text_file(tmp_path / "v.txt", *GLOVE, "good 5 5")
    assert load_word_table(path, limit=2).words == ["good", "great"]
    assert len(load_word_table(path)) == 6
    assert len(list(own_cache.rglob("vectors.npy"))) == 2

    def never(*_: object, **__: object) -> None:
        raise AssertionError("parsed again")

    monkeypatch.setattr("microbert_cli.augmentation.word_vectors.read_vectors", never)
    assert load_word_table(path, limit=2).words == ["good", "great"]
    text_file(path, "other 1 2")
    with pytest.raises(AssertionError, match="parsed again"):
        load_word_table(path, limit=2)


def test_words_may_hold_spaces(tmp_path: Path) -> None:
    assert load_word_table(text_file(tmp_path / "v.txt", "a 1 2", ". . . 3 4")).words == ["a", ". . ."]


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (b"good 1 0\nbad 1\n", "M341", 2),
        (b"good 1 0\nbad 1 2 3\n", "M341", 2),
        (b"good 1 0\nbad 1 x\n", "M341", 2),
        (b"good 1 0\nfine 1 0\nbad 1 nan\n", "M341", 3),
        (b"good 1 0\nbad\n", "M341", 2),
        (b"good\n", "M341", 1),
        (b"", "M341", 1),
        (b"good 1 0\nf\xfcr 1 0\n", "M342", 2),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, own_cache: Path, content: bytes, code: str, line: int) -> None:
    path = tmp_path / "v.txt"
    path.write_bytes(content)
    with pytest.raises(MbertError) as caught:
        load_word_table(path)
    assert caught.value.code == code and caught.value.exit_code == Exit.CORRUPT
    assert caught.value.where == f"{path}, line {line}"
    assert not list(own_cache.rglob("*.npy"))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "whole.gz", "wb") as packed:
        packed.write(b"good 1 0\n" * 1000)
    (tmp_path / "cut.gz").write_bytes((tmp_path / "whole.gz").read_bytes()[:-20])
    (tmp_path / "no.zip").write_bytes(b"good 1 0\n")
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
        archive.writestr("one.txt", "good 1 0\n")
    expected = {"none.txt": "M242", "cut.gz": "M343", "no.zip": "M343", "v.zip/two.txt": "M243", "no-folder": "M20"}
    for name, code in expected.items():
        with pytest.raises(MbertError) as caught:
            load_word_table(tmp_path / name)
        assert caught.value.code.startswith(code), name


def test_the_embeddings_of_a_bert_serve(bert: Path) -> None:
    table = load_word_table(bert)
    assert "film" in table and "block" in table
    assert not {"##bus", "[CLS]", "1", ".", "'s"} & set(table.words)
    assert len(table.neighbours(["film"], 4)[0]) == 4
    (neighbours,) = table.neighbours(["blockbuster"], 3)
    assert len(neighbours) == 3 and "blockbuster" not in neighbours
    assert table.neighbours(["xyzzy"], 3) == [[]]


# masked language model


def test_serves_words_of_one_piece(tokenizer: Any, model: Any) -> None:
    augmenter = masked_lm.Augmenter(tools(tokenizer, model))
    assert augmenter.serves("film") and not augmenter.serves("blockbuster")


def test_the_two_queries(tokenizer: Any, model: Any) -> None:
    place = slot("the great blockbuster film", 3, "the fine blockbuster film")
    spell = tokenizer.convert_ids_to_tokens
    pair = masked_lm.Augmenter(tools(tokenizer, model)).query(place)
    text = "[CLS] the great block ##bus ##ter [MASK] [SEP] the fine block ##bus ##ter film [SEP]"
    assert " ".join(spell(list(pair.ids))) == text
    assert pair.segments == (0,) * 8 + (1,) * 7 and pair.mask == 6
    alone = masked_lm.Augmenter(tools(tokenizer, model, query="alone")).query(place)
    assert spell(list(alone.ids)) == "[CLS] the great block ##bus ##ter [MASK] [SEP]".split()
    assert set(alone.segments) == {0}


def test_candidates_are_the_top_k_of_the_whole_model(tokenizer: Any, model: Any) -> None:
    for query in ("with-original", "alone"):
        augmenter = masked_lm.Augmenter(tools(tokenizer, model, query=query, candidates_per_word=9))
        asked = augmenter.query(slot("the film was good .", 3))
        with torch.inference_mode():
            output = model(torch.tensor([asked.ids]), token_type_ids=torch.tensor([asked.segments]))
        best = output.logits[0, asked.mask].topk(9).indices.tolist()
        expected = {word for word in tokenizer.convert_ids_to_tokens(best) if word not in SPECIAL and word[:2] != "##"}
        (candidates,) = augmenter.candidates([slot("the film was good .", 3)])
        assert set(candidates) == expected and len(candidates) == len(expected)
        assert len(expected) < 9, "the case where K is taken before pieces are dropped"


def sentences(count: int, seed: int = 0) -> list[Slot]:
    random = Random(seed)
    texts = [tuple(random.choices([*WORDS, "blockbuster"], k=random.randint(1, 20))) for _ in range(count)]
    return [Slot(words, i, words) for words in texts for i in range(len(words)) if words[i] != "blockbuster"]


@pytest.mark.parametrize("query", ["with-original", "alone"])
def test_candidates_do_not_depend_on_the_batch(tokenizer: Any, model: Any, query: str) -> None:
    slots = sentences(12)
    large, single = (masked_lm.Augmenter(tools(tokenizer, model, query=query, batch_size=size)) for size in (64, 1))
    together = large.candidates(slots)
    assert together == single.candidates(slots)
    assert together == [masked_lm.Augmenter(tools(tokenizer, model, query=query)).candidates([s])[0] for s in slots]


def test_ties_go_by_token_id(tokenizer: Any) -> None:
    flat = Tools(Spelling(tokenizer), lambda batch: torch.zeros(len(batch["token_positions"]), len(VOCABULARY)))
    for size in (1, 7):
        augmenter = masked_lm.Augmenter(Tools(flat.spelling, flat.masked_lm, candidates_per_word=8, batch_size=size))
        assert augmenter.candidates(sentences(3))[0] == VOCABULARY[5:8]


def test_a_question_is_asked_once(tokenizer: Any, model: Any) -> None:
    asked = []

    def counted(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        asked.append(len(batch["token_positions"]))
        return filler(model)(batch)

    augmenter = masked_lm.Augmenter(tools(tokenizer, model, masked_lm=counted))
    augmenter.candidates([slot("the film", 1)] * 3)
    augmenter.candidates([slot("the film", 1), slot("a film", 1)])
    assert sum(asked) == 2


@pytest.mark.parametrize("query", ["with-original", "alone"])
def test_long_sentences_are_windowed_around_the_mask(tokenizer: Any, model: Any, query: str) -> None:
    words = tuple((WORDS[:-1] * 10)[:200])
    augmenter = masked_lm.Augmenter(tools(tokenizer, model, query=query))
    for position in (0, 1, 30, 100, 198, 199):
        asked = augmenter.query(Slot(words, position, words))
        assert len(asked.ids) <= 64 and asked.ids[asked.mask] == tokenizer.mask_token_id
        spelled = tokenizer.convert_ids_to_tokens(list(asked.ids))
        before = words[max(0, position - 5) : position]
        assert tuple(spelled[asked.mask - len(before) : asked.mask]) == before
        assert words[position] in spelled or query == "alone"
    assert all(augmenter.candidates([Slot(words, 199, words), Slot(words, 0, words)]))


def test_a_short_sentence_of_just_the_limit_is_whole(tokenizer: Any, model: Any) -> None:
    words = ("film",) * 62
    assert len(masked_lm.Augmenter(tools(tokenizer, model, query="alone")).query(Slot(words, 0, words)).ids) == 64


# word vectors as an augmenter


class Table:
    """Stands in for a word table; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def neighbours(self, words: Sequence[str], count: int) -> list[list[str]]:
        self.asked += words
        return [[f"{word}{i}" for i in range(count)] for word in words]


def test_word_vectors_answer_by_word_alone(tokenizer: Any) -> None:
    table = Table()
    augmenter = word_vectors.Augmenter(Tools(Spelling(tokenizer), vectors=table, candidates_per_word=2))
    slots = [slot("good film", 1), slot("bad film", 1), slot("good film", 0)]
    assert augmenter.candidates(slots) == [["film0", "film1"], ["film0", "film1"], ["good0", "good1"]]
    assert augmenter.candidates(slots) == augmenter.candidates(slots)
    assert sorted(table.asked) == ["film", "good"]
    assert augmenter.serves("blockbuster") and augmenter.serves("film")
