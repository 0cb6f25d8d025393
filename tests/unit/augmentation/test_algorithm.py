"""Algorithm 1 as a whole: which words change, which never do, and that nothing but seed and row decides."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recording import RecordingReporter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from microbert_cli.augmentation.algorithm import AugmentSettings, DatasetAugmenter, augment, concatenate, seeded_random
from microbert_cli.augmentation.word_vectors import WordTable, load_word_table
from microbert_cli.augmentation.words import Spelling, Splitter, join_words
from microbert_cli.data.examples import Examples
from microbert_cli.errors import Exit, MbertError
from microbert_cli.models.capture import ModelOutputs, OutputRequest
from microbert_cli.recipe.registry import Catalog

SPECIAL = "[PAD] [UNK] [CLS] [SEP] [MASK]".split()
PROSE = "film plot actor scene story good bad fine great dull long short funny slow".split()
PLAIN = [*PROSE, *"the a was is and not 7 19 . , ! ?".split()]
VOCABULARY = [*SPECIAL, *PLAIN, "block", "##bus", "##ter", "master", "##piece"]
LONG = ("blockbuster", "masterpiece")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    return AutoTokenizer.from_pretrained(folder)


class StubLM(torch.nn.Module):
    """Always predicts the same words, best first; remembers what it was asked."""

    def __init__(self, tokenizer: Any, words: Sequence[str]):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(max_position_embeddings=64)
        self.ids, self.asked = tokenizer.convert_tokens_to_ids(list(words)), []
        self.tokenizer = tokenizer

    def look(self, batch: Mapping[str, torch.Tensor], want: OutputRequest) -> ModelOutputs:
        assert want.token_logits and not self.training
        real = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        self.asked += [" ".join(self.tokenizer.convert_ids_to_tokens(row)) for row in real]
        logits = torch.zeros(len(self.tokenizer))
        logits[self.ids] = torch.arange(len(self.ids), 0, -1).float()
        return ModelOutputs(token_logits=logits.expand(len(batch["token_positions"]), -1))


@pytest.fixture(scope="module")
def bert() -> Any:
    """A random BERT whose guesses depend on the sentence."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForMaskedLM(BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=128, initializer_range=0.6, **sizes))


@pytest.fixture(scope="module")
def vectors() -> WordTable:
    random = np.random.default_rng(0)
    return WordTable([*PROSE, *LONG], random.normal(size=(len(PROSE) + 2, 8)).astype(np.float32))


def rows_of(*texts: str | tuple[str, ...], labels: list[int] | None = None) -> Examples:
    pairs = [(text,) if isinstance(text, str) else text for text in texts]
    return Examples(pairs, labels, [f"r{i}" for i in range(len(pairs))])


def made_up(count: int, *, sides: int = 1) -> Examples:
    random = Random(1)
    texts = [
        tuple(" ".join(random.choices([*PLAIN, *LONG], k=random.randint(0, 14))) for _ in range(sides)) for _ in range(count)
    ]
    return Examples(texts, list(range(count)), [f"r{i}" for i in range(count)])


def by_id(rows: Examples) -> dict[str, tuple[str, ...]]:
    return dict(zip(rows.ids, rows.texts, strict=True))


Make = Callable[..., Examples]


@pytest.fixture
def make(tokenizer: Any, vectors: WordTable) -> Make:
    """`augment` with a stub model, and settings as keywords."""

    def run(rows: Examples, *, model: Any = None, keep_original: bool = True, **settings: Any) -> Examples:
        return augment(
            rows,
            keep_original=keep_original,
            tokenizer=tokenizer,
            masked_lm_model=model or StubLM(tokenizer, ["good", "##ter", "plot"]),
            vectors=vectors,
            settings=AugmentSettings(**{"candidates_per_word": 3, **settings}),
        )

    return run


def test_stop_words_digits_and_punctuation_never_change(make: Make) -> None:
    text = "The film was not 7 , 19 ! and the dull a ?"
    result = make(rows_of(text), replace_probability=1.0, copies=40)
    assert result.texts[0] == (text,) and len(result.texts) > 3
    for (copy,) in result.texts[1:]:
        words = copy.split()
        assert words[:1] + words[2:10] + words[11:] == "the was not 7 , 19 ! and the a ?".split()
        assert {words[1], words[10]} <= {"good", "plot"}, "'##ter' continues a word and is dropped"


def test_words_of_several_pieces_use_the_table(make: Make, vectors: WordTable, tokenizer: Any) -> None:
    model = StubLM(tokenizer, ["good"])
    near = set(vectors.neighbours(["blockbuster"], 3)[0])
    result = make(rows_of("blockbuster film"), model=model, replace_probability=1.0, copies=30)
    copies = [copy.split() for (copy,) in result.texts[1:]]
    assert {first for first, _ in copies} == near and "blockbuster" not in near
    assert {text.count("[MASK]") for text in model.asked} == {1}
    assert all("block ##bus ##ter [MASK]" in text for text in model.asked)


def test_the_table_may_serve_alone(tokenizer: Any, vectors: WordTable) -> None:
    settings = AugmentSettings(sources=("word_vectors",), replace_probability=1.0)
    result = augment(rows_of("good film unheard"), tokenizer=tokenizer, vectors=vectors, settings=settings)
    assert len(result.texts) > 3 and all(copy.endswith("unheard") for (copy,) in result.texts[1:])


def test_rows_labels_sources_and_ids(make: Make) -> None:
    rows = rows_of("good film", "the", "bad plot", labels=[1, 0, 1])
    result = make(rows, copies=5, replace_probability=1.0)
    assert result.augmented is not None and result.source is not None and result.labels is not None
    assert [result.texts[i] for i, new in enumerate(result.augmented) if not new] == rows.texts
    assert result.labels == [rows.labels[i] for i in result.source]  # type: ignore[index]
    assert result.ids[:2] == ["r0", "r0-a1"] and len(set(result.ids)) == len(result.ids)
    assert result.source == sorted(result.source) and result.source.count(1) == 1, "a stop word alone has no copies"
    without = make(rows, copies=5, replace_probability=1.0, keep_original=False)
    assert by_id(without).items() == {k: v for k, v in by_id(result).items() if "-a" in k}.items()
    assert without.augmented is not None and all(without.augmented)


def test_no_more_rows_than_allowed_and_none_twice(make: Make) -> None:
    for copies in (1, 4, 30):
        single = make(made_up(40), copies=copies)
        assert single.source is not None
        assert max(map(single.source.count, range(40))) <= copies + 1
        pairs = make(made_up(40, sides=2), copies=copies)
        assert pairs.source is not None
        assert max(map(pairs.source.count, range(40))) <= 2 * (copies + 1)
        for result in (single, pairs):
            assert len(set(zip(result.source or [], result.texts, strict=True))) == len(result.texts)


def test_each_sentence_of_a_pair_varies_beside_the_original_other(make: Make) -> None:
    first, second = "The GOOD film was dull .", "A bad plot ?"
    result = make(rows_of((first, second)), copies=10, replace_probability=0.9)
    assert result.texts[0] == (first, second)
    kinds = [(a == first, b == second) for a, b in result.texts[1:]]
    assert set(kinds) == {(False, True), (True, False)}
    assert kinds == sorted(kinds), "first the one, then the other"


def test_nothing_is_replaced_at_probability_zero(make: Make) -> None:
    assert make(rows_of("good film", "dull  plot ."), replace_probability=0.0).augmented == [False, False]
    assert make(rows_of("Good film."), replace_probability=0.0).texts == [("Good film.",), ("good film .",)]


def test_the_share_of_replaced_words(make: Make, tokenizer: Any) -> None:
    text = " ".join(["film"] * 40)
    result = make(rows_of(text), model=StubLM(tokenizer, ["good"]), candidates_per_word=1, copies=200)
    changed = [copy.split().count("good") / 40 for (copy,) in result.texts[1:]]
    assert abs(sum(changed) / len(changed) - 0.4) < 0.02


def test_a_plain_reading_of_the_released_code_gives_the_same(make: Make, bert: Any, tokenizer: Any, vectors: WordTable) -> None:
    """Candidates once a sentence; then, copy by copy and word by word, a choice and a throw."""
    rows, settings = made_up(30), AugmentSettings(copies=6, candidates_per_word=4)
    stop = set("the a was is and not".split())
    expected = []
    for identity, (text,) in zip(rows.ids, rows.texts, strict=True):
        words, random = text.split(), seeded_random(f"42\0{identity}\0" + "0")
        choices = {
            i: candidates_of(words, words, i, bert, tokenizer, vectors)
            for i, word in enumerate(words)
            if word.isalpha() and word not in stop
        }
        variants = [text]
        for _ in range(settings.copies):
            new = list(words)
            for i, candidates in choices.items():
                candidate = random.choice(candidates)
                if random.random() < 0.4:
                    new[i] = candidate
            if " ".join(new) not in variants:
                variants.append(" ".join(new))
        expected += variants
    result = make(rows, model=bert, copies=6, candidates_per_word=4)
    assert [text for (text,) in result.texts] == expected


def test_a_plain_reading_of_the_paper_gives_the_same(make: Make, bert: Any, tokenizer: Any, vectors: WordTable) -> None:
    """Sequential: every copy starts anew, and a mask is filled in the sentence as altered so far."""
    rows, stop = made_up(20), set("the a was is and not".split())
    expected = []
    for identity, (text,) in zip(rows.ids, rows.texts, strict=True):
        words, variants = text.split(), [text]
        for copy in range(4):
            new, random = list(words), seeded_random(f"42\0{identity}\0" + f"0\0{copy}")
            for i, word in enumerate(words):
                if word.isalpha() and word not in stop and random.random() < 0.4:
                    new[i] = random.choice(candidates_of(new, [], i, bert, tokenizer, vectors))
            if " ".join(new) not in variants:
                variants.append(" ".join(new))
        expected += variants
    settings = {"copies": 4, "candidates_per_word": 4, "candidates": "sequential", "query": "alone"}
    result = make(rows, model=bert, **settings)
    assert [text for (text,) in result.texts] == expected
    assert make(rows, model=bert, **settings | {"candidates": "once"}).texts != result.texts


def candidates_of(words: list[str], beside: list[str], i: int, model: Any, tokenizer: Any, vectors: WordTable) -> list[str]:
    """The four candidates at position i, one forward pass each, the head on every position."""
    if words[i] in LONG:
        return vectors.neighbours([words[i]], 4)[0]
    masked = " ".join([*words[:i], "[MASK]", *words[i + 1 :]])
    encoded = tokenizer(masked, *([" ".join(beside)] if beside else []), return_tensors="pt")
    with torch.inference_mode():
        logits = model.eval()(**encoded).logits[0]
    mask = encoded["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    best = sorted(logits[mask].topk(4).indices.tolist())
    tokens = [VOCABULARY[j] for j in best]
    return [token for token in tokens if token not in SPECIAL and token[:2] != "##"] or [words[i]]


def test_the_seed_decides(make: Make) -> None:
    rows = made_up(10)
    assert make(rows, seed=3) == make(rows, seed=3)
    assert make(rows, seed=3).texts != make(rows, seed=4).texts


@pytest.mark.parametrize("candidates", ["once", "sequential"])
@pytest.mark.parametrize("query", ["with-original", "alone"])
def test_only_seed_and_row_decide(tokenizer: Any, bert: Any, vectors: WordTable, candidates: str, query: str) -> None:
    """Batches of 1 and 64, shuffled rows, and two shards joined: the same copies of every row."""
    rows = made_up(24, sides=2)

    def work(rows: Examples, batch_size: int) -> DatasetAugmenter:
        settings = AugmentSettings(copies=4, query=query, candidates=candidates, batch_size=batch_size)
        return DatasetAugmenter(rows, tokenizer=tokenizer, masked_lm_model=bert, vectors=vectors, settings=settings)

    whole = work(rows, 64).shard(0)
    assert whole == work(rows, 1).shard(0)
    halves = [work(rows, 16).shard(number, size=15) for number in reversed(range(2))]
    assert work(rows, 16).shards(15) == 2
    assert concatenate(halves[::-1]) == whole
    order = Random(5).sample(range(24), 24)
    shuffled = Examples([rows.texts[i] for i in order], order, [rows.ids[i] for i in order])
    assert by_id(work(shuffled, 64).shard(0)) == by_id(whole)


def test_sequential_asks_about_the_altered_sentence(make: Make, tokenizer: Any) -> None:
    settings = {"replace_probability": 1.0, "copies": 1, "query": "alone", "candidates_per_word": 1}
    once, sequential = StubLM(tokenizer, ["good"]), StubLM(tokenizer, ["good"])
    result = make(rows_of("film plot scene"), model=once, **settings)
    assert result == make(rows_of("film plot scene"), model=sequential, candidates="sequential", **settings)
    assert "[CLS] film plot [MASK] [SEP]" in once.asked
    assert sequential.asked == [
        f"[CLS] {text} [SEP]" for text in ("[MASK] plot scene", "good [MASK] scene", "good good [MASK]")
    ]


def test_unlabelled_and_empty_rows(make: Make) -> None:
    result = make(rows_of("good film", "", " . "))
    assert result.labels is None and result.texts[-2:] == [("",), (" . ",)]
    assert make(Examples([], [], [])).texts == []


def test_copies_for_byte_level_tokenizers_keep_white_space(byte_level: Any) -> None:
    """And so for SentencePiece, whose tokens hold the white space too."""
    model = StubLM(byte_level, ["Ġbad"])
    settings = AugmentSettings(copies=8, candidates_per_word=1, replace_probability=1.0)
    result = augment(rows_of("the film, it's good!"), tokenizer=byte_level, masked_lm_model=model, settings=settings)
    copies = [text for (text,), new in zip(result.texts, result.augmented or [], strict=True) if new]
    assert copies and all(re.fullmatch(r"the \w+, it's \w+!", text) for text in copies)


def test_a_cased_tokenizer_keeps_case(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "Bon", "bon", "film", "Été"]))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": false}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = StubLM(tokenizer, ["Été"])
    settings = AugmentSettings(candidates_per_word=1, copies=30)
    result = augment(rows_of("Bon film"), tokenizer=tokenizer, masked_lm_model=model, settings=settings)
    assert {text for (text,) in result.texts} == {"Bon film", "Été film", "Bon Été", "Été Été"}


def test_byte_level_tokenizers_and_their_models(byte_level: Any) -> None:
    """RoBERTa's kind: marks on pieces that begin a word, one segment, positions counted from behind the padding."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(vocab_size=len(byte_level), max_position_embeddings=40, type_vocab_size=1, **sizes)
    torch.manual_seed(0)
    settings = AugmentSettings(copies=6, candidates_per_word=200)
    rows = rows_of("The good film, was dull.", "the film " * 50)
    result = augment(rows, tokenizer=byte_level, masked_lm_model=RobertaForMaskedLM(config), settings=settings)
    assert sum(result.augmented or []) > 6
    whole = {word for word in Spelling(byte_level).words if word}
    assert {"film", "blockbuster"} <= whole and not {"<s>", "<mask>"} & whole
    for (text,), new in zip(result.texts, result.augmented or [], strict=True):
        assert not new or set(Splitter(False, False).split(text)) <= whole | {",", ".", "The"}


@pytest.fixture(scope="module")
def byte_level() -> Any:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = [" the good film was dull and the bad plot was fine", " a blockbuster film"] * 20
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokens.train_from_iterator(text, trainer)
    tokens.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(["bos_token", "pad_token", "eos_token", "unk_token", "mask_token"], special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokens, model_max_length=512, **names)


def test_few_eligible_words_are_said_aloud(tokenizer: Any, vectors: WordTable) -> None:
    reporter = RecordingReporter()
    common = {"tokenizer": tokenizer, "vectors": vectors, "settings": AugmentSettings(sources=("word_vectors",))}
    DatasetAugmenter(rows_of("the 7 and 19 was not a 7 the film ."), reporter=reporter, **common)
    assert len(reporter.warnings) == 1 and "only 10%" in reporter.warnings[0]
    quiet = RecordingReporter()
    work = DatasetAugmenter(rows_of("the film , a plot ."), reporter=quiet, **common)
    assert not quiet.warnings and work.eligible_share == 0.5


def test_words_of_other_scripts_are_varied(tokenizer: Any) -> None:
    table = WordTable(["фильм", "кино", "गाना", "गाने"], np.eye(4, dtype=np.float32) + 0.1)
    settings = AugmentSettings(sources=("word_vectors",), replace_probability=1.0)
    result = augment(rows_of("фильм 7", "गाना"), tokenizer=tokenizer, vectors=table, settings=settings)
    assert sum(result.augmented or []) >= 3
    assert all(text.endswith(" 7") for (text,), i in zip(result.texts, result.source or [], strict=True) if i == 0)


def test_progress_is_told(tokenizer: Any, vectors: WordTable) -> None:
    reporter = RecordingReporter()
    settings = AugmentSettings(sources=("word_vectors",), copies=1)
    augment(made_up(600), tokenizer=tokenizer, vectors=vectors, settings=settings, reporter=reporter)
    assert reporter.steps == [("augment", step, 600) for step in (256, 512, 600)]


def test_a_source_without_its_tool_is_left_out_aloud(tokenizer: Any) -> None:
    reporter = RecordingReporter()
    model = StubLM(tokenizer, ["good"])
    result = augment(rows_of("blockbuster film"), tokenizer=tokenizer, masked_lm_model=model, reporter=reporter)
    assert len(result.texts) > 1 and all(text.startswith("blockbuster ") for (text,) in result.texts)
    assert len(reporter.warnings) == 1 and "word_vectors" in reporter.warnings[0]
    with pytest.raises(MbertError) as caught:
        augment(rows_of("film"), tokenizer=tokenizer)
    assert caught.value.code == "M244" and caught.value.exit_code == Exit.INPUT


def test_a_tokenizer_without_a_mask_is_refused(tokenizer: Any, tmp_path: Path, bert: Any) -> None:
    tokenizer.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    other.mask_token = None
    with pytest.raises(MbertError) as caught:
        augment(rows_of("film"), tokenizer=other, masked_lm_model=bert)
    assert caught.value.code == "M245"


def test_one_file_adds_a_way_to_vary(tmp_path: Path, tokenizer: Any, vectors: WordTable) -> None:
    """An augmenter of words, and one that rewrites whole copies with its own probability."""
    folder = tmp_path / "augmenters"
    folder.mkdir()
    (folder / "shout.py").write_text(
        "title, needs = 'Shouting', set()\n"
        "class Augmenter:\n"
        "    def __init__(self, tools, *, mark='!'):\n"
        "        self.mark, self.seen = mark, sum(1 for _ in tools.sentences())\n"
        "    def serves(self, word):\n        return word == 'film'\n"
        "    def candidates(self, slots):\n        return [[slot.word.upper() + self.mark] for slot in slots]\n"
    )
    (folder / "cut.py").write_text(
        "title, needs = 'The first words', set()\n"
        "class Augmenter:\n"
        "    def __init__(self, tools):\n        pass\n"
        "    def rewrite(self, words, random):\n        return words[: random.randint(1, 2)]\n"
    )
    settings = AugmentSettings(
        sources=("shout", "word_vectors", "cut"), replace_probability=1.0, options={"shout": {"mark": "?"}}
    )
    common = {"tokenizer": tokenizer, "vectors": vectors, "settings": settings, "catalog": Catalog([tmp_path])}
    result = augment(rows_of("film plot story"), **common)
    copies = [text.split() for (text,) in result.texts[1:]]
    assert {copy[0] for copy in copies} == {"FILM?"} and {len(copy) for copy in copies} == {1, 2}


@pytest.mark.slow
def test_real_words(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real masked language model and GloVe on 20 rows of SST-2: other words, not other rows."""
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path))
    lines = (shared / "data" / "glue" / "SST-2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:21]
    rows = rows_of(*(line.split("\t")[0].strip() for line in lines), labels=[int(line.split("\t")[1]) for line in lines])
    folder = shared / "models" / "minilm-l6-mlm"
    parts = {
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "masked_lm_model": BertForMaskedLM.from_pretrained(folder, dtype=torch.float32),
        "vectors": load_word_table(next((shared / "data" / "vectors").glob("*.txt"))),
    }
    result = augment(rows, settings=AugmentSettings(), **parts)
    assert result == augment(rows, settings=AugmentSettings(batch_size=1), **parts)
    assert 200 < len(result.texts) <= 20 * 21
    split = Splitter().split
    for (text,), i in zip(result.texts, result.source or [], strict=True):
        assert abs(len(split(text)) - len(split(rows.texts[i][0]))) <= 2, (
            "a candidate is a word, now and then with a mark in it"
        )
    assert len(set(result.texts)) > 0.95 * len(result.texts)


@pytest.mark.parametrize(
    "text", ["天气很好，我们去公园。", "It's a well-made film, isn't it?", "  two  spaces ;nothing", "Ünïcode\u200b…x"]
)
def test_white_space_stays_where_tokenizers_see_it(text: str) -> None:
    splitter = Splitter(lowercase=False, strip_accents=False)
    words, spaces = splitter.split(text), splitter.spaces(text)
    assert len(words) == len(spaces)
    assert join_words(words, spaces) == " ".join(text.replace("\u200b", "").split())
    assert join_words([*words, "more"], spaces) == " ".join([*words, "more"])
