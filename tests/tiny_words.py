"""A small task of words with tags, made of the tests' vocabulary: people and places in sentences, in BIO."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

PEOPLE, PLACES = ("anna", "bernd", "clara", "dora"), ("rome", "oslo", "kyoto", "lima")
FAMILIES = ("smith", "jones")
FILLERS = ("a", "film", "the", "good", "bad", "plot", "in", "and", "of")
TAGS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
VOCABULARY = (*PEOPLE, *PLACES, *FAMILIES, "new", *FILLERS)


def tiny_sentences(count: int, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    """Returns rows of words and tags: a family name is a person's behind a first name and O elsewhere."""
    random, rows = Random(seed), []
    for _ in range(count):
        words: list[str] = []
        tags: list[str] = []
        for _ in range(random.randint(2, 6)):
            choice = random.random()
            if choice < 0.2:
                words += [random.choice(PEOPLE), random.choice(FAMILIES)]
                tags += ["B-PER", "I-PER"]
            elif choice < 0.3:
                words += ["new", random.choice(PLACES)]
                tags += ["B-LOC", "I-LOC"]
            elif choice < 0.45:
                words.append(random.choice(PLACES))
                tags.append("B-LOC")
            else:
                words.append(random.choice((*FILLERS, *FAMILIES)))
                tags.append("O")
        rows.append((words, tags))
    return rows


def write_jsonl(path: Path, rows: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Path:
    """Writes rows as JSONL of `tokens` and `ner_tags`."""
    path.write_text("".join(json.dumps({"tokens": w, "ner_tags": t}) + "\n" for w, t in rows), encoding="utf-8")
    return path


def write_conll(path: Path, rows: Sequence[tuple[Sequence[str], Sequence[str]]]) -> Path:
    """Writes rows as a column file: word, a column nobody reads, tag."""
    sentences = ("\n".join(f"{w} X {t}" for w, t in zip(*row, strict=True)) for row in rows)
    path.write_text("-DOCSTART- X O\n\n" + "\n\n".join(sentences) + "\n", encoding="utf-8")
    return path
