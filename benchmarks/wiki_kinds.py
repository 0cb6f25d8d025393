"""Two real sets out of encyclopedia articles: python benchmarks/wiki_kinds.py CORPUS TITLES DIRECTORY

CORPUS is a text file, plain or gzipped, a paragraph a line and an empty line between articles; TITLES has a number, a tab and
the article's title a line, in the same order. Two things of the first sentence, "Abbie Rowe (1905-1967) was an American
photographer, best known for ...", are the answers, and a later paragraph, in which that sentence does not stand, is the text:

words-train.conll, words-dev.conll, words-test.conll     Which words name the article's subject, and what is it? A person, a
    place, a work or an organisation, by the noun that the first sentence calls it. Mentions are the title's words, and of a
    person the last name alone. Whoever else is named there is O. An article has one row: its first such paragraph.
labels-train.jsonl, labels-dev.jsonl, labels-test.jsonl  Which of fifteen occupations, and of ten nations, does the first
    sentence give the person? `text` is the second paragraph's beginning, an article a row.

Fair: the answers are what the article's authors wrote elsewhere of the same subject, in its title and its first sentence, which
no row shows. Neither set is complete: a paragraph need not show what somebody is, and a name may be that of another.
Articles are split by the hash of their title, an eighth each in dev and in test, so that no article is on both sides.
"""

import gzip
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

IS_A = re.compile(r"\b(?:is|was|are|were) (?:an?|the|one of the) ([^.;:()]+)")
ENDS = re.compile(
    r"\b(?:in|of|from|who|that|which|by|for|on|at|with|to|where|as|between|near|known|born|located|based|published|released|directed"
    r"|written|held|established|founded|created|produced|recorded|starring|played|playing|built|best|whose|during|after|about)\b"
)
WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")
MOST, LEAST = 40, 8  # words of a row
MOST_OF_TEXT = 24  # of a row with labels
PARTS = 8  # one in eight articles is in dev, one in test

NOUNS = {
    "PERSON": """player footballer politician artist singer actress actor cricketer painter writer coach businessman skier
        officer journalist priest lawyer author poet professor director mathematician activist historian
        musician engineer bishop architect scientist economist rower academic prelate producer composer designer
        scholar educator photographer sculptor entrepreneur athlete physician leader judge rapper attorney
        manager senator boxer model president diplomat minister cyclist pianist physicist sprinter executive
        chemist wrestler swimmer philosopher novelist singer-songwriter guitarist racer driver soldier nun
        missionary librarian psychologist biologist botanist translator gymnast golfer fencer jockey dancer
        comedian filmmaker surgeon banker naturalist astronomer theologian nobleman admiral general broadcaster
        presenter songwriter""",
    "PLACE": """village station locality parish lighthouse house community church area town site district building subdistrict
        stream townland museum municipality river reserve tributary park constituency city lake island mountain
        bridge road street castle settlement suburb hamlet hill cemetery railway airport stadium neighborhood
        province county canal valley creek bay beach""",
    "WORK": """album film series song novel book play game episode single newspaper magazine musical opera documentary painting
        comedy drama manga sitcom mixtape poem journal EP""",
    "ORGANISATION": """company club band group organization organisation party school team university college agency society
        association institute foundation charity label bank union orchestra choir hospital brewery airline
        manufacturer network""",
}
TYPES = {noun: kind for kind, nouns in NOUNS.items() for noun in nouns.split()}
OCCUPATIONS = {
    "actor": "actor actress",
    "artist": "artist painter sculptor illustrator",
    "athlete": "athlete sprinter runner swimmer skier rower",
    "businessperson": "businessman businesswoman entrepreneur banker executive industrialist",
    "clergy": "priest bishop prelate clergyman missionary",
    "coach": "coach manager",
    "footballer": "footballer",
    "journalist": "journalist broadcaster editor",
    "lawyer": "lawyer attorney judge jurist barrister",
    "musician": "musician singer composer singer-songwriter songwriter rapper pianist guitarist",
    "officer": "officer soldier general",
    "player": "player cricketer",
    "politician": "politician senator minister diplomat",
    "scholar": """academic professor historian scholar scientist mathematician economist physicist chemist engineer
        philosopher biologist botanist physician""",
    "writer": "writer author poet novelist playwright screenwriter",
}
NATIONS = "american british indian canadian australian german french italian japanese chinese"
LABEL_OF = {noun: label for label, nouns in OCCUPATIONS.items() for noun in nouns.split()}
LABEL_OF |= {name: name for name in NATIONS.split()} | dict.fromkeys(("english", "scottish", "welsh"), "british")


def articles(corpus: Path, titles: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields the title and the paragraphs of every article."""
    opened = gzip.open if corpus.suffix == ".gz" else open
    with opened(corpus, "rt", encoding="utf-8") as file:
        texts = file.read().strip("\n").split("\n\n")
    names = [line.split("\t")[1] for line in titles.read_text(encoding="utf-8").splitlines() if line]
    for name, text in zip(names, texts, strict=True):
        yield name, text.split("\n")


def description(paragraph: str) -> str:
    """Returns what a first paragraph says its subject is: "American photographer"; "" where it does not say so."""
    match = IS_A.search(paragraph)
    return ENDS.split(match[1])[0].strip() if match else ""


def kind_of(text: str) -> str:
    """Returns the kind of thing that a description names, by the last noun before its first comma; "" for another."""
    words = WORD.findall(re.split(r", | and ", text)[0])
    return TYPES.get(words[-1], "") if words else ""


def labels_of(text: str) -> list[str]:
    """Returns the labels that a description names; none where it names no occupation."""
    labels = {LABEL_OF[word] for word in WORD.findall(text.lower()) if word in LABEL_OF}
    return sorted(labels) if labels & OCCUPATIONS.keys() else []


def tags_of(words: Sequence[str], title: str, kind: str) -> list[str]:
    """Returns the tags of a row: B- and I- of the kind where the title stands, or a person's last name by itself."""
    name = WORD.findall(re.split(r" \(", title)[0] if kind != "PLACE" else re.split(r" \(|, ", title)[0])
    tags, i = ["O"] * len(words), 0
    while i < len(words):
        length = len(name) if list(words[i : i + len(name)]) == name else 0
        if not length and kind == "PERSON" and words[i] == name[-1]:
            before = words[i - 1] if i > 1 else ""
            length = int(not before[:1].isupper() or before in name)  # behind another first name it is another's
        for number in range(i, i + length):
            tags[number] = f"{'B' if number == i else 'I'}-{kind}"
        i += length or 1
    return tags


def word_rows(title: str, paragraphs: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Yields words and tags of the article's first later paragraph that names its subject, if any does."""
    if kind := kind_of(description(paragraphs[0])):
        for paragraph in paragraphs[1:]:
            words = WORD.findall(paragraph)[:MOST]
            tags = tags_of(words, title, kind)
            if len(words) >= LEAST and {*tags} != {"O"}:
                yield words, tags
                return


def label_rows(paragraphs: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields the second paragraph and the labels of an article on a person."""
    subject = description(paragraphs[0])
    if len(paragraphs) > 1 and (labels := labels_of(subject)) and kind_of(subject) in ("PERSON", ""):
        words = paragraphs[1].split()[:MOST_OF_TEXT]
        if len(words) >= LEAST:
            yield " ".join(words), labels


def part_of(title: str) -> str:
    """Returns train, dev or test, by the hash of a title."""
    return {0: "dev", 1: "test"}.get(hashlib.sha256(title.encode()).digest()[0] % PARTS, "train")


def write_sets(corpus: Path, titles: Path, folder: Path) -> None:
    """Writes the six files, and prints how many rows and labels each has."""
    folder.mkdir(parents=True, exist_ok=True)
    words: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    labels: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    counts: Counter[tuple[str, str, str]] = Counter()
    for title, paragraphs in articles(corpus, titles):
        part = part_of(title)
        for row, tags in word_rows(title, paragraphs):
            words[part].append("".join(f"{word} {tag}\n" for word, tag in zip(row, tags, strict=True)))
            counts.update(("words", part, tag[2:]) for tag in tags if tag.startswith("B-"))
        for text, names in label_rows(paragraphs):
            labels[part].append(json.dumps({"text": text, "labels": names}, ensure_ascii=False) + "\n")
            counts.update(("labels", part, name) for name in names)
    for part in words:
        (folder / f"words-{part}.conll").write_text("\n".join(words[part]), encoding="utf-8")
        (folder / f"labels-{part}.jsonl").write_text("".join(labels[part]), encoding="utf-8")
        for form, rows in (("words", words[part]), ("labels", labels[part])):
            of_form = {name: n for (f, p, name), n in sorted(counts.items()) if (f, p) == (form, part)}
            print(form, part, len(rows), of_form)


if __name__ == "__main__":
    write_sets(*map(Path, sys.argv[1:4]))
