"""Words of a text: runs of characters between spaces. Words are joined by one space, and a text is split the same way."""

import re
from collections.abc import Sequence

SPACES = " \t\r\n\f\v"
WORD = re.compile(f"[^{SPACES}]+")


def join_words(words: Sequence[str]) -> str:
    """Returns the text that words stand in."""
    return " ".join(words)


def split_text(text: str) -> list[str]:
    """Returns the words of a text."""
    return WORD.findall(text)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Returns where each word of a text begins, and the character behind its last one."""
    return [match.span() for match in WORD.finditer(text)]
