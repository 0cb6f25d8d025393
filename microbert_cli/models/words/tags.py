"""Tags of words: the schemes BIO and BIOES, what breaks them, and the entities that a row of tags stands for.

    BIO     B-PER I-PER O        an entity begins with B-, its further words have I-
    BIOES   B-PER E-PER S-LOC    its last word has E-, an entity of one word S-
    plain   NOUN VERB            any other names, such as parts of speech: no entities

`entities` reads broken rows too, as models write them, by the rules of conlleval and of seqeval's default mode: an I- that
follows no word of its type begins an entity.

Source: Ramshaw and Marcus 1995 (BIO); Tjong Kim Sang and De Meulder 2003 (CoNLL-2003, conlleval); seqeval 1.2.2.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

OUTSIDE = "O"
Scheme = Literal["bio", "bioes", "plain"]
PREFIXES = {"bio": "BI", "bioes": "BIES"}
PREFIXED = re.compile(r"([A-Z])-(.+)")
Entity = tuple[str, int, int]  # its type, its first word, the word behind its last one


def scheme_of(names: Iterable[str]) -> Scheme:
    """Returns the scheme of a set of tags: that of entities where a tag begins with B- or I-, or O stands beside S- or E-."""
    names = set(names)
    prefixes = {match[1] for name in names if (match := PREFIXED.fullmatch(name))}
    if prefixes & {"B", "I"} or (OUTSIDE in names and prefixes & {"E", "S"}):
        return "bioes" if prefixes & {"E", "S"} else "bio"
    return "plain"


def all_tags(names: Iterable[str]) -> list[str]:
    """Returns the tags of a scheme in order: O, then those of every type; plain tags are sorted."""
    names = set(names)
    if (scheme := scheme_of(names)) == "plain":
        return sorted(names)
    types = sorted({tag_type for name in names if (tag_type := split_tag(name)[1])})
    return [OUTSIDE, *(f"{prefix}-{tag_type}" for tag_type in types for prefix in PREFIXES[scheme])]


def split_tag(tag: str) -> tuple[str, str]:
    """Returns a tag's prefix and type; ("O", "") for a word outside of entities, and for what has no prefix ("", tag)."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    match = PREFIXED.fullmatch(tag)
    return (match[1], match[2]) if match else ("", tag)


def first_break(tags: Sequence[str], scheme: Scheme) -> tuple[int, str] | None:
    """Returns the first word whose tag breaks the scheme and what is wrong there; None where nothing does."""
    if scheme == "plain":
        return None
    before, type_before = OUTSIDE, ""
    for number, tag in enumerate(tags):
        prefix, tag_type = split_tag(tag)
        if prefix not in (OUTSIDE, *PREFIXES[scheme]):
            return number, f'the tag "{tag}" begins with none of {", ".join(f"{p}-" for p in PREFIXES[scheme])}'
        is_open = before in ("B", "I")
        if prefix in ("I", "E") and not (is_open and tag_type == type_before):
            follows = f"{before}-{type_before}" if type_before else "O" if number else "nothing"
            return number, f'"{tag}" follows {follows}, and continues no entity'
        if scheme == "bioes" and is_open and prefix in (OUTSIDE, "B", "S"):
            return number, f'"{tag}" follows {before}-{type_before}, whose entity has no end'
        before, type_before = prefix, tag_type
    if scheme == "bioes" and before in ("B", "I"):
        return len(tags) - 1, f'"{tags[-1]}" is the last tag, and its entity has no end'
    return None


def entities(tags: Sequence[str]) -> list[Entity]:
    """Returns the entities of a row of tags, broken ones too, as conlleval reads them."""
    spans: list[Entity] = []
    start, before, type_before = 0, OUTSIDE, ""
    for number, tag in enumerate([*tags, OUTSIDE]):
        prefix, tag_type = split_tag(tag)
        if prefix == "":
            prefix = "I"  # a bare name is a word of that type
        if before != OUTSIDE and (before in "ES" or prefix in "BSO" or tag_type != type_before):
            spans.append((type_before, start, number))
        if prefix != OUTSIDE and (prefix in "BS" or before in "OES" or tag_type != type_before):
            start = number
        before, type_before = prefix, tag_type
    return spans


def tags_of_entities(spans: Iterable[Entity], length: int, scheme: Scheme) -> list[str]:
    """Returns the tags of a row of `length` words with these entities."""
    tags = [OUTSIDE] * length
    for tag_type, first, end in spans:
        for number in range(first, end):
            tags[number] = f"{'B' if number == first else 'I'}-{tag_type}"
        if scheme == "bioes":
            tags[end - 1] = f"{'S' if end - first == 1 else 'E'}-{tag_type}"
    return tags


def repaired(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """Returns the tags with entities begun and ended as the scheme wants: of IOB1, where only some entities have B-, BIO."""
    return list(tags) if scheme == "plain" else tags_of_entities(entities(tags), len(tags), scheme)
