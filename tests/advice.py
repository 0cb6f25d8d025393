"""What an error advises, typed: commands and options are found in its `fix`, run, and must lead a step further.

error = refused(5, "M321", *words)
assert follow(error, words, tmp_path, {"DIR": "teacher"}) == 1      # how many pieces of advice were typed
"""

import itertools
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mbert_command import mbert

SHELL = ("sed", "ls", "head", "iconv", "mkdir")
START = re.compile(rf"(?<![\w-])(?:mbert -?-?[a-z]|--[a-z]|(?:{'|'.join(SHELL)}) -?[\w/])")
END = re.compile(r"[;)]|, |: | or | \(|[.,]$|\. ")
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]+\b")
# What tells of an option without typing it.
PROSE = re.compile(r"(leave out|leave|without|with -o DIR,|option)\s*$", re.IGNORECASE)
BRIEF = {
    "finetune": ("finetune.steps=1",),
    "pretrain": ("pretrain.steps=1",),
    "general-distill": ("general.steps=1", "corpus.documents=20"),
    "export": ("export.onnx=false",),
    "task-distill": (
        "method=tinybert",
        "phases.intermediate.steps=1",
        "phases.prediction.steps=1",
        "phases.prediction.warmup=0",
    ),
}
WRITES = {*BRIEF, "trim", "cascade", "augment", "evaluate", "extract", "copy"}
USAGE, RECIPE = 2, 3


def advised(fix: str) -> Iterator[list[str]]:
    """Yields the commands in a text, and runs of options that stand alone."""
    position = 0
    while start := START.search(fix, position):
        position = _end(fix, start.start())
        if not PROSE.search(fix[: start.start()]) and "..." not in fix[start.start() : position]:
            yield shlex.split(fix[start.start() : position])


def _end(text: str, start: int) -> int:
    """Returns where a command ends: at punctuation outside quotes and brackets."""
    quote, depth = "", 0
    for position in range(start, len(text)):
        letter = text[position]
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif not depth and END.match(text, position):
            return position
    return len(text)


def follow(error: Mapping[str, Any], words: Sequence[str | Path], place: Path, meanings: Mapping[str, str]) -> int:
    """Types what an error advises against the command `words`; each piece must end well, or in another error than this one.

    meanings  of placeholders, such as DIR="teacher", after an option `--data DIR`; advice with others is passed over
    """
    count = 0
    for number, tokens in enumerate(advised(error["fix"])):
        filled = [_meant(token, before, meanings) for token, before in zip(tokens, ["", *tokens], strict=False)]
        if any(PLACEHOLDER.fullmatch(part) for token in filled for part in re.split(r"[=,]", token)):
            continue
        count += 1
        if tokens[0] in SHELL:
            done = subprocess.run(shlex.join(filled).replace("'>'", ">"), shell=True, capture_output=True, text=True)
            assert done.returncode == 0, f"{error['fix']}\n{done.stderr}"
            continue
        command = filled[1:] if tokens[0] == "mbert" else merged([str(word) for word in words], filled, error)
        done = mbert(*briefly(command, place / f"advised-{number}"))
        message = f"[{error['code']}] advises: {error['fix']}\nmbert {shlex.join(command)} left with {done.code}:\n{done.err}"
        assert f"[{error['code']}] {error['where']}:" not in done.err, message
        assert done.code not in (USAGE, 70), message
        assert tokens[0] != "mbert" or done.code != RECIPE, message
    return count


def _meant(token: str, before: str, meanings: Mapping[str, str]) -> str:
    return meanings.get(f"{before} {token}") or PLACEHOLDER.sub(lambda match: meanings.get(match.group(), match.group()), token)


def merged(words: list[str], options: list[str], error: Mapping[str, Any]) -> list[str]:
    """Returns the command with the options in the place of those that were wrong."""
    kept: list[str] = []
    new = list(_pairs(options))
    names = {_key(option) for option in new}
    for option in _pairs(words):
        wrong = len(option) > 1 and option[0] in {pair[0] for pair in new} and f"{option[0]} {option[1]}" in error["where"]
        if _key(option) not in names and not wrong and not (option[0] == "--set" and "=" not in option[1]):
            kept += option
    return [*kept, *options]


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yields options with their values, and other words alone."""
    rest = list(words)
    while rest:
        size = 2 if rest[0].startswith("-") and len(rest) > 1 and not rest[1].startswith("--") else 1
        yield tuple(rest[:size])
        rest = rest[size:]


def _key(option: tuple[str, ...]) -> str:
    return " ".join(option).split("=")[0] if option[0] == "--set" else option[0]


def briefly(command: list[str], out: Path) -> list[str]:
    """Returns the command so that it trains for a step or two and writes to `out`."""
    name = command[0] if command else ""
    if "--help" in command or name not in WRITES:
        return command
    if "-o" in command:
        command = list(itertools.chain(*(option for option in _pairs(command) if option[0] != "-o")))
    more = [word for key in BRIEF.get(name, ()) for word in ("--set", key)] if "--explain-config" not in command else []
    return [*command, *more, "-o", str(out) + (".toml" if name == "copy" else "")]
