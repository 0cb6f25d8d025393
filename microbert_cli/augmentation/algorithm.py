"""TinyBERT's data augmentation: copies of each training sentence with some words replaced (Algorithm 1).

N_a copies, p_t probability that a word is replaced, K candidates a word. For every copy, and every eligible word x_i
of it:

    C = the candidates of the first augmenter that serves x_i     (masked LM: one piece; word vectors: several)
    replace x_i by a word drawn uniformly from C, if u < p_t      (u uniform in [0, 1); an empty C is {x_i})

Eligible are words of letters, of any script, that are no stop words. Sentences are cut as by BERT's basic tokenizer,
and a copy is its words joined by single spaces; where the tokenizer sees white space, by that of the sentence. A copy
that was there before is discarded but counts: a sentence gets at most N_a copies. Where a row has two sentences, first
one is varied and then the other, each beside the ORIGINAL partner: at most 2 N_a new rows. Labels are copied.
The original row comes first, untouched.

    candidates "once"         C is found once a sentence, at each position of the original (released code)
    candidates "sequential"   C is found on the sentence as altered so far, for every copy anew (the paper, to the
                              letter), where u < p_t: about p_t N_a times the work

Two things differ from the released code on purpose: there, the second sentence of a pair is varied beside the last
copy of the first; and special tokens may become words. The order of candidates is no matter of chance either: see the
augmenters.

Chance is seeded per row and sentence (and per copy, if sequential) by a hash of seed and row id, so the copies of a
row depend on that row alone: not on batch size, order, shards or workers.

Augmenters that make whole rows stand beside the algorithm: what they make for a row follows its copies, flagged as augmented
too, without a label (`new_rows.py`).

Source: Jiao et al. 2020 (TinyBERT), Algorithm 1, and the released data augmentation where named.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from microbert_cli.augmentation.interface import Chooses, MakesRows, Rewrites, Slot, Texts
from microbert_cli.augmentation.new_rows import NewRows, lengths_of, row_id, seeded_random
from microbert_cli.augmentation.tagged import words_and_free
from microbert_cli.augmentation.tools import make_tools, open_augmenters
from microbert_cli.augmentation.word_vectors import WordTable
from microbert_cli.augmentation.words import Spelling, StopWords, has_substance, join_words, stop_words
from microbert_cli.data.examples import Examples
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import SILENT, Reporter

ROWS_PER_SHARD = 1000  # rows that one process makes in turn
ROWS_PER_CHUNK = {"once": 256, "sequential": 32}  # rows whose queries are batched together
ELIGIBLE_SAMPLE = 2000  # rows looked at for the share of eligible words
MIN_ELIGIBLE_SHARE = 0.2

Words = list[str]
Chain = Generator[Slot, list[str], Words]


@dataclass(frozen=True)
class AugmentSettings:
    """The hyperparameters of Algorithm 1; see the module.

    query, candidates   "with-original" or "alone"; "once" or "sequential"
    stop_words   "builtin", "nltk", or a file with one word a line
    sources      names of augmenters; the first that serves a word is asked for its candidates
    batch_size   queries per forward pass of the masked language model
    vectors_limit   words kept of a file of word vectors, for whoever loads it
    options      keyword parameters of augmenters, by name
    """

    copies: int = 20
    replace_probability: float = 0.4
    candidates_per_word: int = 15
    query: str = "with-original"
    candidates: str = "once"
    stop_words: str = "builtin"
    sources: tuple[str, ...] = ("masked_lm", "word_vectors")
    seed: int = 42
    batch_size: int = 64
    vectors_limit: int = 100_000
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sentence:
    """One sentence of a row: its words, the augmenter of each eligible position, and where white space is, if that counts."""

    text: str
    words: tuple[str, ...]
    sources: dict[int, Chooses]
    key: str
    spaces: tuple[bool, ...] | None = None


class DatasetAugmenter:
    """Augments the rows of one training set, shard by shard.

    tags  the names of the labels of words, where words have any: see `tagged.py`
    Raises M240, M241, M344 (stop words), M244 (nothing to take candidates from), M245 (no mask token).
    """

    def __init__(
        self,
        rows: Examples,
        *,
        tokenizer: Any,
        masked_lm_model: Any = None,
        vectors: WordTable | None = None,
        settings: AugmentSettings | None = None,
        dev: Examples | None = None,
        tags: Sequence[str] | None = None,
        catalog: Catalog | None = None,
        reporter: Reporter = SILENT,
    ):
        self.tags = tags
        self.rows, self.settings, self.reporter = rows, settings or AugmentSettings(), reporter
        self.stop_words: StopWords = stop_words(self.settings.stop_words)
        self._spelling = Spelling(tokenizer)
        tools = make_tools(
            self._spelling,
            masked_lm_model,
            vectors=vectors,
            candidates_per_word=self.settings.candidates_per_word,
            query=self.settings.query,
            batch_size=self.settings.batch_size,
            sentences=self._all_words,
            rows=rows.texts,
            copies=self.settings.copies,
            dev_lengths=None if dev is None else lengths_of(dev),
        )
        names, options = self.settings.sources, self.settings.options
        augmenters = open_augmenters(names, tools, options=options, catalog=catalog or Catalog(), reporter=reporter)
        self._choosers = [augmenter for augmenter in augmenters.values() if isinstance(augmenter, Chooses)]
        self._rewriters = [augmenter for augmenter in augmenters.values() if isinstance(augmenter, Rewrites)]
        makers = {name: augmenter for name, augmenter in augmenters.items() if isinstance(augmenter, MakesRows)}
        self._new_rows = NewRows(rows, makers, self.settings.seed)
        self._varies_words = bool(self._choosers or self._rewriters)
        self.eligible_share = self._eligible_share() if self._varies_words else 1.0

    def shards(self, size: int = ROWS_PER_SHARD) -> int:
        """Returns the number of shards of `size` rows."""
        return -(-len(self.rows) // size)

    def shard(self, number: int, *, size: int = ROWS_PER_SHARD, keep_original: bool = True) -> Examples:
        """Returns the rows of shard `number`, each followed by its copies."""
        rows = self.rows_of(number, size)
        return concatenate(
            [self.chunk(rows[i : i + self.chunk_size], keep_original) for i in range(0, len(rows), self.chunk_size)]
        )

    def rows_of(self, number: int, size: int = ROWS_PER_SHARD) -> range:
        """Returns the indices of a shard's rows."""
        return range(number * size, min((number + 1) * size, len(self.rows)))

    @property
    def chunk_size(self) -> int:
        """The number of rows whose queries fill the model's batches well; fewer give the same copies, only slower."""
        return ROWS_PER_CHUNK[self.settings.candidates]

    def chunk(self, indices: Sequence[int], keep_original: bool = True) -> Examples:
        """Returns these rows, each followed by its copies, and by the new rows that were made for it."""
        copies = self._word_copies(indices) if self._varies_words else {}
        examples = _augmented_examples(self.rows, indices, copies, self._new_rows.of(indices), keep_original)
        self.reporter.progress("augment", indices[-1] + 1, len(self.rows), rows_out=len(examples))
        return examples

    def _word_copies(self, indices: Sequence[int]) -> dict[int, list[Texts]]:
        """Returns each row's copies by Algorithm 1: with its first text varied, then with the second."""
        sides = [(i, side) for i in indices for side in range(len(self.rows.texts[i]))]
        sentences = [self._sentence(i, side) for i, side in sides]
        copies = self._once(sentences) if self.settings.candidates == "once" else self._sequential(sentences)
        rows: dict[int, list[Texts]] = {i: [] for i in indices}
        for (i, side), sentence, sentence_copies in zip(sides, sentences, copies, strict=True):
            texts = self.rows.texts[i]
            variants = _distinct_copies(sentence, sentence_copies)
            rows[i] += [(*texts[:side], text, *texts[side + 1 :]) for text in variants]
        return rows

    def _sentence(self, row: int, side: int) -> Sentence:
        text = self.rows.texts[row][side]
        if self.tags is not None:
            label: Any = self.rows.labels[row] if self.rows.labels is not None else None
            word_list, free = words_and_free(text, label, self.tags, self._spelling.splitter)
        else:
            word_list = self._spelling.splitter.split(text)
            free = set(range(len(word_list)))
        words = tuple(word_list)
        source_of = {i: self._source(word) for i, word in enumerate(words) if i in free and not self.stop_words.keeps(word)}
        sources = {i: source for i, source in source_of.items() if source is not None}
        key = f"{self.settings.seed}\0{row_id(self.rows, row)}\0{side}"
        return Sentence(text, words, sources, key, None if self.tags is not None else self._spelling.spaces(text))

    def _source(self, word: str) -> Chooses | None:
        return next((chooser for chooser in self._choosers if chooser.serves(word)), None)

    def _once(self, sentences: Sequence[Sentence]) -> list[list[Words]]:
        slots = [(s, s.sources[i], Slot(s.words, i, s.words)) for s in sentences for i in s.sources]
        answers = iter(_candidates_of([(source, slot) for _, source, slot in slots]))
        choices = [{i: next(answers) or [sentence.words[i]] for i in sentence.sources} for sentence in sentences]
        return [self._copies(sentence, chosen) for sentence, chosen in zip(sentences, choices, strict=True)]

    def _copies(self, sentence: Sentence, choices: Mapping[int, list[str]]) -> list[Words]:
        random = seeded_random(sentence.key)
        return [self._copy(sentence.words, choices, random) for _ in range(self.settings.copies)]

    def _copy(self, words: Sequence[str], choices: Mapping[int, list[str]], random: Random) -> Words:
        copy = list(words)
        for position, candidates in choices.items():
            candidate = random.choice(candidates)
            if random.random() < self.settings.replace_probability:
                copy[position] = candidate
        return self._rewritten(copy, random)

    def _sequential(self, sentences: Sequence[Sentence]) -> list[list[Words]]:
        """Advances all copies of all sentences together, one replacement at a time, so that their queries share batches."""
        total = self.settings.copies
        chains = [(s, self._chain(s, seeded_random(f"{s.key}\0{copy}"))) for s in sentences for copy in range(total)]
        done: list[Words] = [[] for _ in chains]
        waiting: dict[int, Slot] = {}
        for number in range(len(chains)):
            _advance(number, chains[number][1], None, waiting, done)
        while waiting:
            queries, waiting = waiting, {}
            answers = _candidates_of([(chains[n][0].sources[slot.position], slot) for n, slot in queries.items()])
            for number, answer in zip(queries, answers, strict=True):
                _advance(number, chains[number][1], answer, waiting, done)
        return [done[start : start + total] for start in range(0, len(done), total)]

    def _chain(self, sentence: Sentence, random: Random) -> Chain:
        copy = list(sentence.words)
        for position in sentence.sources:
            if random.random() < self.settings.replace_probability:
                candidates = yield Slot(tuple(copy), position, sentence.words)
                copy[position] = random.choice(candidates or [copy[position]])
        return self._rewritten(copy, random)

    def _rewritten(self, copy: Words, random: Random) -> Words:
        for rewriter in self._rewriters:
            copy = rewriter.rewrite(copy, random)
        return copy

    def _all_words(self) -> Iterator[Words]:
        return (self._spelling.splitter.split(text) for texts in self.rows.texts for text in texts)

    def _eligible_share(self) -> float:
        sample = self.rows.texts[:: max(1, len(self.rows.texts) // ELIGIBLE_SAMPLE)]
        split = self._spelling.splitter.split
        words = [word for texts in sample for text in texts for word in split(text) if has_substance(word)]
        share = sum(not self.stop_words.keeps(word) for word in words) / max(1, len(words))
        if words and share < MIN_ELIGIBLE_SHARE:
            self.reporter.warn(
                f"only {share:.0%} of the words may be replaced (letters only, no stop words): copies hardly differ. "
                "Check that the text is prose, and that augment.stop_words fits its language."
            )
        return share


def augment(rows: Examples, *, keep_original: bool = True, **options: Any) -> Examples:
    """Returns the rows, each followed by its copies; `augmented` and `source` say which is which, ids end in -a1, -a2, ...

    options  of `DatasetAugmenter`: tokenizer, masked_lm_model, vectors, settings, dev, catalog, reporter
    """
    augmenter = DatasetAugmenter(rows, **options)
    return concatenate([augmenter.shard(number, keep_original=keep_original) for number in range(augmenter.shards())])


def concatenate(shards: Sequence[Examples]) -> Examples:
    """Concatenates shards."""
    unlabelled = any(shard.labels is None for shard in shards)
    labels: list[Any] = [label for shard in shards for label in shard.labels or ()]
    return Examples(
        [texts for shard in shards for texts in shard.texts],
        None if unlabelled else labels,
        [identity for shard in shards for identity in shard.ids or ()],
        [flag for shard in shards for flag in shard.augmented or ()],
        [index for shard in shards for index in shard.source or ()],
    )


def _candidates_of(queries: Sequence[tuple[Chooses, Slot]]) -> list[list[str]]:
    """Returns each slot's candidates, in order; every augmenter is called once for all of its slots."""
    answers: list[list[str]] = [[] for _ in queries]
    for source in {id(source): source for source, _ in queries}.values():
        indices = [i for i, (augmenter, _) in enumerate(queries) if augmenter is source]
        for i, words in zip(indices, source.candidates([queries[i][1] for i in indices]), strict=True):
            answers[i] = words
    return answers


def _advance(number: int, chain: Chain, answer: list[str] | None, waiting: dict[int, Slot], done: list[Words]) -> None:
    try:
        waiting[number] = next(chain) if answer is None else chain.send(answer)
    except StopIteration as end:
        done[number] = end.value


def _distinct_copies(sentence: Sentence, copies: Sequence[Words]) -> list[str]:
    """Returns the copies as text, without duplicates, the sentence itself, and empty ones."""
    texts = (join_words(words, sentence.spaces) for words in copies)
    unique = {" ".join(sentence.text.split()): None} | dict.fromkeys(texts)
    return [copy for copy in list(unique)[1:] if copy.strip()]


def _augmented_examples(
    rows: Examples,
    indices: Sequence[int],
    copies: Mapping[int, list[Texts]],
    new_rows: Mapping[int, list[Texts]],
    keep_original: bool,
) -> Examples:
    """Returns the rows, each followed by its copies, which have its label, and by its new rows, which have none."""
    texts: list[Texts] = []
    ids: list[str] = []
    source: list[int] = []
    augmented: list[bool] = []
    labels: list[Any] = []
    for i in indices:
        row_copies, row_new = copies.get(i, []), new_rows.get(i, [])
        count, name = len(row_copies) + len(row_new), row_id(rows, i)
        texts += [rows.texts[i]] * keep_original + row_copies + row_new
        ids += [name] * keep_original + [f"{name}-a{n}" for n in range(1, count + 1)]
        augmented += [False] * keep_original + [True] * count
        source += [i] * (keep_original + count)
        label = None if rows.labels is None else rows.labels[i]
        labels += [label] * (keep_original + len(row_copies)) + [None] * len(row_new)
    return Examples(texts, None if rows.labels is None else labels, ids, augmented, source)


def settings_of(recipe: Recipe) -> AugmentSettings:
    """Returns the settings of Algorithm 1 in a recipe."""
    spec = recipe.augment
    return AugmentSettings(
        copies=spec.copies,
        replace_probability=spec.replace_probability,
        candidates_per_word=spec.candidates_per_word,
        query=spec.query,
        candidates=spec.candidates,
        stop_words=spec.stop_words,
        seed=recipe.seed,
        batch_size=spec.batch_size,
        vectors_limit=recipe.vectors.limit,
        sources=tuple(spec.sources),
        options=spec.options,
    )
