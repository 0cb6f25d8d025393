"""A real set of texts to be written, out of encyclopedia articles: python benchmarks/short_descriptions.py CORPUS DIRECTORY

CORPUS is a text file, plain or gzipped, a paragraph a line and an empty line between articles. What an article's first sentence
says its subject is, "X is a French fast food chain headquartered in ...", is the target, two to eight words (`French fast food
chain`); the source is the rest of the first paragraph, at most 24 words of it: a summary. train.csv and dev.csv, each tenth row
in dev, by the hash of its source; a source that occurs twice is written once.
"""

import csv
import gzip
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SENTENCE_END = re.compile(r'(?<=[a-z)\]"0-9]{2}[.!?]) +(?=[A-Z"])')
IS_A = re.compile(r"\b(?:is|was|are|were) (?:a|an|the) ((?:[^\s,.;:()]+ ?)+)")
GOES_ON = re.compile(
    r" (?:in|of|from|who|that|which|by|for|on|at|with|to|and|where|as|between|near|whose|within|under|is|was|during|after|about"
    r"|located|based|known|born|published|released|held|written|directed|founded|created|produced|played|made|built|situated|set"
    r"|used|owned|operated|working|developed|recorded)\b"
)
FEWEST, MOST = 2, 8  # words of a target
LEAST_READ, MOST_READ = 8, 24  # words of a source
EVERY = 10  # of so many rows one is in dev


def articles(corpus: Path) -> Iterator[str]:
    """Yields the first paragraph of every article."""
    opened = gzip.open if corpus.suffix == ".gz" else open
    with opened(corpus, "rt", encoding="utf-8") as file:
        for article in file.read().split("\n\n"):
            if paragraphs := article.strip().split("\n"):
                yield paragraphs[0]


def rows(corpus: Path) -> dict[str, str]:
    """Returns the targets by their sources."""
    pairs = {}
    for paragraph in articles(corpus):
        first, *others = SENTENCE_END.split(paragraph)
        described = IS_A.search(first)
        if described and others:
            target = GOES_ON.split(" " + described.group(1).strip() + " ")[0].split()
            source = " ".join(others).split()
            if FEWEST <= len(target) <= MOST and len(source) >= LEAST_READ:
                pairs[" ".join(source[:MOST_READ])] = " ".join(target)
    return pairs


def write_tables(corpus: Path, folder: Path) -> None:
    """Writes train.csv and dev.csv, in the order of the sources' hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = rows(corpus)
    in_order = sorted(pairs, key=lambda source: hashlib.sha256(source.encode()).digest())
    count = len(in_order) // EVERY
    for name, sources in (("dev", in_order[:count]), ("train", in_order[count:])):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("source", "target"))
            writer.writerows((source, pairs[source]) for source in sources)
        print(f"{name}.csv", len(sources))


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]), Path(sys.argv[2]))
