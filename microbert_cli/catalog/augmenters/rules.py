"""Rule-based rows: words masked, replaced by words of the same part of speech, n-grams.

N_a times, in each text that is changed, u ~ U(0, 1) is drawn for every word, which

    becomes `mask_token`                  where u < mask
    becomes a word with the same tag      where mask <= u < mask + replace
    stays                                 else

A word with tag t is drawn with its share of all words tagged t in the training set, so that the new texts have the training
set's distribution of words. Then with probability `ngram` n words in a row are kept, n uniform from 1 to 5. A text none of
whose words stayed is dropped with its row. The rows of a pair change in turn the first text, the second, both.

Words are those of BERT's basic tokenizer, case and accents as they were. Tags are the Penn Treebank's, whole (NN, NNS, VBD), of
NLTK's averaged perceptron: its data is looked for as NLTK does, NLTK_DATA included. No label is copied: a teacher says what a
row has become.

Source: Tang et al. 2019 (arXiv 1903.12136, section 3.3): mask and replace 0.1, n-grams with 0.25, 20 rows a text and 10 a pair.
The released code has n-grams off unless asked for, and its script for single texts takes the second character of a tag
for the tag (`pos_tag[1]`), so that VB and RB are one class to it. Here the whole tag counts.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from microbert_cli.augmentation.interface import Phrase, Texts, Tools
from microbert_cli.errors import MbertError

title = "Words masked, replaced by words of the same part of speech, and n-grams (Tang et al.)"
needs: set[str] = set()
makes = "rows"
bounds = {"mask": (0, 1), "replace": (0, 1), "ngram": (0, 1)}
CHANGED_IN_TURN = {1: ((0,),), 2: ((0,), (1,), (0, 1))}  # which texts a row changes, by how many it has
DATA = "averaged_perceptron_tagger_eng"


class Augmenter:
    """Counts the words of every tag once, and changes texts by their tags."""

    def __init__(
        self, tools: Tools, *, mask: float = 0.1, replace: float = 0.1, ngram: float = 0.25, mask_token: str = "[MASK]"
    ):
        self._rows, self._copies = tools.rows, tools.copies
        self._mask, self._replace, self._ngram, self._mask_token = mask, replace, ngram, mask_token
        self._tagger = _tagger() if replace else None
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for text in (text for texts in tools.rows for text in texts):
            words = Phrase.of(text).words
            for word, tag in zip(words, self._tags(words), strict=True):
                counts[tag][word] += 1
        self._words = {tag: sorted(of_tag) for tag, of_tag in counts.items()}
        self._shares = {tag: list(itertools.accumulate(counts[tag][word] for word in self._words[tag])) for tag in counts}

    def new_rows(self, rows: Sequence[int], randoms: Sequence[Random]) -> list[list[Texts]]:
        """Returns up to N_a rows of each row."""
        return [self._rows_of(self._rows[row], random) for row, random in zip(rows, randoms, strict=True)]

    def _rows_of(self, row: Texts, random: Random) -> list[Texts]:
        phrases = [Phrase.of(text) for text in row]
        tags = [self._tags(phrase.words) for phrase in phrases]
        turns = itertools.islice(itertools.cycle(CHANGED_IN_TURN[len(row)]), self._copies)
        new = []
        for changed in turns:
            texts: list[str | None] = list(row)
            for side in changed:
                texts[side] = self._changed(phrases[side], tags[side], random)
            if None not in texts:
                new.append(tuple(str(text) for text in texts))
        return new

    def _changed(self, phrase: Phrase, tags: Sequence[str], random: Random) -> str | None:
        """Returns a text, changed; None where none of its words stayed."""
        words = []
        for word, tag in zip(phrase.words, tags, strict=True):
            chance = random.random()
            if chance < self._mask:
                words.append(self._mask_token)
            elif chance < self._mask + self._replace:
                words.append(random.choices(self._words[tag], cum_weights=self._shares[tag])[0])
            else:
                words.append(word)
        stayed = any(new == word for new, word in zip(words, phrase.words, strict=True))
        return str(Phrase(tuple(words), phrase.spaces).n_gram(self._ngram, random)) if stayed else None

    def _tags(self, words: Sequence[str]) -> list[str]:
        """Returns the part of speech of each word; "" where no word is replaced."""
        return [""] * len(words) if self._tagger is None else [tag for _, tag in self._tagger.tag(list(words))]


def check(options: Mapping[str, Any]) -> None:
    """Raises M247 where words are to be replaced and the tagger's data is not there."""
    if options.get("replace", 0.1):
        _tagger()


def _tagger() -> Any:
    """Returns NLTK's tagger; raises M247 where its data is not there."""
    from nltk.tag.perceptron import PerceptronTagger

    try:
        return PerceptronTagger()
    except (LookupError, OSError, ValueError) as error:
        raise MbertError(
            "M247",
            "the data of NLTK's part-of-speech tagger is not there, or is damaged",
            where="augment.sources, rules",
            allowed=f"A folder taggers/{DATA} in one that NLTK looks at, such as NLTK_DATA; none where nothing is replaced.",
            fix=f"python -m nltk.downloader {DATA}, or --set augment.options.rules.replace=0",
        ) from error
