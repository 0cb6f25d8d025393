"""Windows and joins: pieces of training texts as long as the texts of dev.

For a row x of n words, N_a times: a length L is drawn from the lengths of dev's texts, and

    L < n    the new text is L words of x in a row, from a place drawn uniformly
    L > n    the new text is x and as many other training texts as it takes, in random order, the last one cut to a window, so
             that there are L words in all
    L = n    likewise, with a window of x in the place of x

Words are those of BERT's basic tokenizer; pieces keep case and white space, and texts are joined by a space. Of dev nothing is
read but the lengths. A training set of phrases (SST-2) teaches a student little of how parts of a whole sentence add up, though
that is what dev asks; what a window or a join means, a teacher says.

Source: ours; n-gram sampling of a text is that of Tang et al. 2019 (arXiv 1903.12136, section 3.3), where lengths are 1 to 5.
"""

from collections.abc import Sequence
from random import Random

from microbert_cli.augmentation.interface import Phrase, Texts, Tools

title = "Windows and joins of training texts, as long as the texts of dev"
needs = {"dev_lengths"}
makes = "rows"
texts = {1}


class Augmenter:
    """Cuts texts and joins them."""

    def __init__(self, tools: Tools):
        assert tools.dev_lengths is not None
        self._rows, self._copies = tools.rows, tools.copies
        self._lengths = sorted(tools.dev_lengths)

    def new_rows(self, rows: Sequence[int], randoms: Sequence[Random]) -> list[list[Texts]]:
        """Returns N_a texts of each row."""
        return [[self._text(row, random) for _ in range(self._copies)] for row, random in zip(rows, randoms, strict=True)]

    def _text(self, row: int, random: Random) -> Texts:
        length = random.choice(self._lengths)
        phrases = [self._phrase(row)]
        if length < len(phrases[0]):
            return (str(_window(phrases[0], length, random)),)
        if length == len(phrases[0]) > 1:
            phrases = [_window(phrases[0], random.randint(1, length - 1), random)]
        missing = length - len(phrases[0])
        while missing > 0 and len(phrases) <= length:  # rows without words add none
            other = self._phrase(random.randrange(len(self._rows)))
            phrases.append(_window(other, min(missing, len(other)), random))
            missing -= len(phrases[-1])
        random.shuffle(phrases)
        joined = phrases[0]
        for phrase in phrases[1:]:
            joined += phrase
        return (str(joined),)

    def _phrase(self, row: int) -> Phrase:
        return Phrase.of(self._rows[row][0])


def _window(phrase: Phrase, length: int, random: Random) -> Phrase:
    return phrase.window(random.randint(0, len(phrase) - length), length)
