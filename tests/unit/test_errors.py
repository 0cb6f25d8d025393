"""One code, one meaning: what a user looks up by its code must be what happened."""

import ast
import functools
import re
from collections import defaultdict
from pathlib import Path

import microbert_cli
from microbert_cli.errors import FAMILIES

PACKAGE = Path(microbert_cli.__file__).parent
CODE = re.compile(r"M\d{3}")
PARSER = "M100"  # the parser of the command line words its own errors


@functools.cache
def all_calls() -> list[tuple[Path, ast.Call]]:
    """Every call in the package with the file it stands in."""
    files = ((path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(PACKAGE.rglob("*.py")))
    return [(path, node) for path, tree in files for node in ast.walk(tree) if isinstance(node, ast.Call)]


def errors() -> list[tuple[Path, ast.Call]]:
    """Calls of `MbertError` itself."""
    return [(path, node) for path, node in all_calls() if isinstance(node.func, ast.Name) and node.func.id == "MbertError"]


@functools.cache
def calls() -> list[tuple[str, str, str]]:
    """(code, place, what) of every call that hands a code on, to `MbertError` itself or to a function that makes one."""
    return [
        (node.args[0].value, f"{path.relative_to(PACKAGE)}:{node.lineno}", ast.unparse(node.args[1]))
        for path, node in all_calls()
        if node.args and isinstance(node.args[0], ast.Constant)
        if isinstance(node.args[0].value, str) and CODE.fullmatch(node.args[0].value)
    ]


def test_a_code_stands_for_one_message() -> None:
    texts = defaultdict(set)
    places = defaultdict(list)
    for code, place, what in calls():
        texts[code].add(what)
        places[code].append(place)
    assert len(texts) > 60, "the calls are not found any more"
    assert {code: places[code] for code, messages in texts.items() if len(messages) > 1} == {}


def test_every_code_belongs_to_a_family() -> None:
    assert {code for code, _, _ in calls() if code[1] not in FAMILIES} == set()


def test_every_error_hands_its_code_on_as_a_literal() -> None:
    """Else the test above would not see it; `code` as a parameter is seen at the caller."""
    for path, node in errors():
        code = ast.unparse(node.args[0])
        assert code == "code" or CODE.fullmatch(code.strip("'")), f"{path.name}:{node.lineno}: {code}"


def test_codes_in_texts_exist() -> None:
    """What a docstring promises is raised somewhere."""
    codes = {code for code, _, _ in calls()}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "errors.py":
            text = path.read_text(encoding="utf-8")
            assert set(re.findall(r"\bM\d{3}\b", text)) <= codes, path.name


def test_the_parts_of_every_error_are_there() -> None:
    for path, node in errors():
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        assert given.keys() == {"where", "allowed", "fix"}, f"{path.name}:{node.lineno}"
        empty = [name for name, value in given.items() if isinstance(value, ast.Constant) and not value.value]
        assert not empty and len(node.args) == 2, f"{path.name}:{node.lineno}"
