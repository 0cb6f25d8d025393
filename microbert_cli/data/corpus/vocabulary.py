"""Trains a WordPiece vocabulary on a corpus, as a tokenizer that transformers loads."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from microbert_cli.data.corpus.documents import identify_corpus, read_documents
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, cache

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MAX_ALPHABET = 1000


def train_vocabulary(documents: Callable[[], Iterable[list[str]]], *, size: int, lowercase: bool, max_length: int) -> Any:
    """Trains a BERT tokenizer of at most `size` pieces; the same text gives the same vocabulary.

    documents  called twice: once for the alphabet, once for the pieces. The trainer numbers the `##x` pieces in the order of a
               randomly seeded hash table, and breaks ties by number; handing them in beforehand takes chance out of it.
    """
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    trainer = BertWordPieceTokenizer(lowercase=lowercase, strip_accents=lowercase)
    alphabet = _alphabet(documents(), trainer.normalizer.normalize_str)
    trainer.train_from_iterator(
        _sentences(documents()),
        vocab_size=size,
        min_frequency=2,
        limit_alphabet=MAX_ALPHABET,
        special_tokens=SPECIAL_TOKENS + [f"##{character}" for character in alphabet],
        show_progress=False,
    )
    pieces = sorted(trainer.get_vocab().items(), key=lambda item: item[1])
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
    return BertTokenizerFast(vocab=vocabulary, do_lower_case=lowercase, model_max_length=max_length)


def corpus_vocabulary(
    source: str, *, size: int, lowercase: bool, max_length: int, documents: int | None = None, reporter: Reporter = SILENT
) -> Any:
    """Returns the vocabulary of a corpus, or of its first `documents`, from the cache where it was trained before."""
    from transformers import BertTokenizerFast

    key = {"corpus": identify_corpus(source), "documents": documents, "size": size, "lowercase": lowercase}
    with cache.entry("vocabulary", atomic.digest({**key, "max_length": max_length}), reporter=reporter) as (directory, ready):
        if not ready:
            reporter.note(f"vocabulary: at most {size} pieces from {source}")
            tokenizer = train_vocabulary(
                lambda: read_documents(source, limit=documents), size=size, lowercase=lowercase, max_length=max_length
            )
            tokenizer.save_pretrained(directory)
        return BertTokenizerFast.from_pretrained(directory)


def _alphabet(documents: Iterable[list[str]], normalise: Callable[[str], str]) -> list[str]:
    counts: Counter[str] = Counter()
    for sentence in _sentences(documents):
        counts.update(normalise(sentence))
    characters = [character for character, _ in counts.most_common(MAX_ALPHABET) if not character.isspace()]
    return sorted(characters)


def _sentences(documents: Iterable[list[str]]) -> Iterator[str]:
    return (sentence for document in documents for sentence in document)
