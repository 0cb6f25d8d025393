"""Finds losses, methods, students, tasks, augmenters, recipes and machines by FILE NAME, built-in or under `--include DIR`.

Nothing is imported to list or check a name: what a loss needs and which parameters it has is read with `ast`, so a recipe
is validated before torch is. A name with upper-case letters is a pattern: `bert-LxH.toml` serves `bert-4x312`.
A TOML file may also be named by its path, code never: it comes from this package or from `--include`, which only the command
line has, so that no recipe can run code.
"""

import ast
import hashlib
import importlib.util
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from microbert_cli.errors import MbertError, nearest

PACKAGE = Path(__file__).parent.parent


# An architecture that loading itself needs lies with the models, and is listed with the other students.
OUTSIDE_CATALOG = {"students": {"routed_bert": PACKAGE / "models" / "moe" / "bert.py"}}
# What users see and may add to. The kinds of task are found in the same way, but are no part of the list.
KINDS = ("losses", "methods", "students", "tasks", "augmenters", "recipes", "machines", "trackers")
SUFFIXES = {
    "kinds": (".py",),
    "losses": (".py",),
    "methods": (".toml",),
    "students": (".toml", ".py"),
    "tasks": (".toml",),
    "augmenters": (".py",),
    "recipes": (".toml",),
    "machines": (".toml",),
    "trackers": (".py",),
}


@dataclass(frozen=True)
class TypeOrWords:
    """The annotation of a parameter that takes values of a type and some words: `float | Literal["auto"]`."""

    type: str
    words: tuple[str, ...]


Annotation = str | tuple[Any, ...] | TypeOrWords | None  # a type's name, the words of a Literal, both, or any other


class Catalog:
    """Finds everything that has a name. A file in an included folder replaces the built-in one of the same name."""

    def __init__(self, include: Sequence[str | Path] = ()):
        self.include = [Path(folder) for folder in include]
        for folder in self.include:
            if not folder.is_dir():
                raise MbertError(
                    "M202",
                    "there is no such folder",
                    where=f"--include {folder}",
                    allowed=f"A folder with any of {', '.join(KINDS)} in it.",
                    fix=f"mkdir -p {folder}/losses",
                )

    def names(self, kind: str) -> list[str]:
        """Returns all names of a kind, sorted; patterns are listed as they are."""
        return sorted(self._files(kind))

    def path(self, kind: str, name: str, *, where: str) -> Path:
        """Returns the file of a name, or of a path to a TOML file; raises M005 with the nearest name, M040 for code."""
        for error in self.check(kind, name, where):
            raise error
        file = self._find(kind, name)
        assert file is not None
        return file

    def check(self, kind: str, name: str, where: str) -> Iterable[MbertError]:
        """Yields the error of a wrong name, or nothing."""
        if Path(name).suffix == ".py" and ".py" in SUFFIXES[kind]:
            yield MbertError(
                "M040",
                f'"{name}" is a file of code, and code is not named by its path',
                where=where,
                allowed=f"Known {kind}: {nearest(Path(name).stem, self.names(kind))}",
                fix=f"If you trust it: put it into DIR/{kind}/, name it {Path(name).stem}, and type --include DIR.",
            )
        elif self._find(kind, name) is None:
            yield MbertError(
                "M005",
                f'there is no {singular(kind)} "{name}"',
                where=where,
                allowed=f"Known {kind}: {nearest(name, self.names(kind), self._filled_patterns(kind, name))}",
                fix=f"See them: mbert list {kind}",
            )

    def _filled_patterns(self, kind: str, name: str) -> list[str]:
        """Returns the patterns of a kind with the numbers of a name: `bert-6x768` of `bert-LxH` for `bert-6l-768`."""
        numbers = re.findall(r"[1-9][0-9]{0,8}", name)
        return [
            re.sub(r"[A-Z]", "{}", stem).format(*numbers)
            for stem in self._files(kind)
            if numbers and len(re.findall(r"[A-Z]", stem)) == len(numbers)
        ]

    def about(self, kind: str, name: str) -> tuple[str, str]:
        """Returns what the file of a name says it is, in a line, and where that is from; empty where it does not say.

        TOML: its title and source, a recipe's comment "What:";  code: the first line and "Source:" of its docstring
        """
        text = self.path(kind, name, where=kind).read_text(encoding="utf-8")
        if kind == "recipes":
            return _first_sentence(text), ""
        if self.path(kind, name, where=kind).suffix == ".toml":
            values = tomllib.loads(text)
            return str(values.get("title", "")), str(values.get("source", ""))
        paragraphs = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")
        sources = [" ".join(part.removeprefix("Source:").split()) for part in paragraphs if part.startswith("Source:")]
        return " ".join(paragraphs[0].split()), " ".join(sources)

    def recipe_path(self, recipe: str | Path) -> Path:
        """Returns a recipe's file, given its path or its catalogued name."""
        path = Path(recipe)
        if path.suffix == ".toml" or os.path.exists(path):
            return path
        return self.path("recipes", str(recipe), where="recipe")

    def numbers(self, kind: str, name: str) -> dict[str, int]:
        """Returns the values of a pattern's letters in a name: `bert-4x312` under `bert-LxH` -> {"L": 4, "H": 312}."""
        for stem in self._files(kind):
            if match := _pattern(stem).fullmatch(name):
                return {letter: int(value) for letter, value in match.groupdict().items()}
        return {}

    def module(self, kind: str, name: str) -> ModuleType:
        """Imports the Python file of a name."""
        path = self.path(kind, name, where=kind)
        if path.is_relative_to(PACKAGE):
            return import_module(".".join(("microbert_cli", *path.relative_to(PACKAGE).with_suffix("").parts)))
        spec = importlib.util.spec_from_file_location(f"mbert_included_{kind}_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # before it runs: dataclasses and pickle look their module up by name
        spec.loader.exec_module(module)
        return module

    def register_model_type(self, model_type: str) -> None:
        """Imports the student file that defines a `model_type`, so that transformers' Auto classes know it."""
        for name, path in self._files("students").items():
            if path.suffix == ".py" and f'MODEL_TYPE = "{model_type}"' in path.read_text(encoding="utf-8"):
                self.module("students", name)

    def loss_parameters(self, name: str) -> dict[str, Annotation]:
        """Returns the keyword parameters of a loss, which are its recipe keys; `normalisation` may be set for one term, too.

        With each stands its annotation: a type's name, the words of a Literal, both, or None for any other.
        """
        arguments = [argument for node in self._functions(name, name) for argument in node.args.kwonlyargs]
        aliases = {
            target.id: node.value for node in self._loss(name).body if isinstance(node, ast.Assign)
            for target in node.targets if isinstance(target, ast.Name)
        }  # fmt: skip
        return {argument.arg: _annotation(argument.annotation, aliases) for argument in arguments}

    def loss_defaults(self, name: str) -> dict[str, Any]:
        """Returns the defaults of a loss's keyword parameters, as far as they are literals."""
        signatures = (node.args for node in self._functions(name, name))
        pairs = (pair for arguments in signatures for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
        return {argument.arg: _literal(value) for argument, value in pairs if value is not None}

    def loss_needs_labels(self, name: str) -> bool:
        """Whether a loss, or its adversary's loss, cannot be called without labels: `labels_B` has no default."""
        signatures = (node.args for node in self._functions(name, name, "against"))
        required = (
            argument for arguments in signatures for argument in arguments.args[: len(arguments.args) - len(arguments.defaults)]
        )
        return any(argument.arg.rpartition("_")[0] == "labels" for argument in required)

    def loss_asks_teacher(self, name: str) -> bool:
        """Whether a loss takes any output of the teacher."""
        arguments = (argument for node in self._functions(name, name) for argument in node.args.args)
        return any(argument.arg.startswith("teacher") for argument in arguments)

    def loss_facts(self, name: str) -> dict[str, Any]:
        """Returns what a loss declares, such as `needs`, `over` and `bounds`; None for what is no literal."""
        values = _assigned_literals(self._loss(name))
        return {fact: values[fact] for fact in ("needs", "over", "projects", "requires", "divides", "bounds") if fact in values}

    def augmenter_needs(self, name: str) -> set[str]:
        """Returns the tools that an augmenter declares in `needs`; the models where that is no literal."""
        declared = _assigned_literals(self._augmenter(name)).get("needs")
        return {"masked_lm", "vectors"} if declared is None else set(declared)

    def augmenter_facts(self, name: str) -> dict[str, Any]:
        """Returns what an augmenter declares: `makes`, `texts` and `bounds`; None for what is no literal."""
        values = _assigned_literals(self._augmenter(name))
        return {fact: values[fact] for fact in ("makes", "texts", "bounds") if fact in values}

    def augmenter_options(self, name: str) -> dict[str, tuple[Annotation, Any]]:
        """Returns the keyword parameters of an augmenter's class, each with its type, as for losses, and its default."""
        classes = (node for node in self._augmenter(name).body if isinstance(node, ast.ClassDef) and node.name == "Augmenter")
        functions = (node for cls in classes for node in cls.body if isinstance(node, ast.FunctionDef))
        signatures = (node.args for node in functions if node.name == "__init__")
        pairs = [pair for arguments in signatures for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
        return {key.arg: (_annotation(key.annotation, {}), None if value is None else _literal(value)) for key, value in pairs}

    def _augmenter(self, name: str) -> ast.Module:
        return ast.parse(self.path("augmenters", name, where="augment.sources").read_text(encoding="utf-8"))

    def _functions(self, loss: str, *names: str) -> list[ast.FunctionDef]:
        return [node for node in self._loss(loss).body if isinstance(node, ast.FunctionDef) and node.name in names]

    def _loss(self, name: str) -> ast.Module:
        return ast.parse(self.path("losses", name, where="losses").read_text(encoding="utf-8"))

    def own_files(self) -> dict[str, str]:
        """Returns the hashes of the included files, by path: a run with a changed file is another run; trackers change none."""
        files = [file for folder in self.include for file in sorted(folder.rglob("*")) if file.suffix in (".py", ".toml")]
        files = [file for file in files if file.parent.name != "trackers"]
        return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def _find(self, kind: str, name: str) -> Path | None:
        path = Path(name)
        if path.suffix == ".toml" and ".toml" in SUFFIXES[kind] and os.path.isfile(path):
            return path
        files = self._files(kind)
        if name in files:
            return files[name]
        return next((file for stem, file in files.items() if _pattern(stem).fullmatch(name)), None)

    def _files(self, kind: str) -> dict[str, Path]:
        folders = [PACKAGE / "catalog" / kind, *(folder / kind for folder in self.include)]
        if kind == "recipes":  # in a wheel inside the package, in a checkout beside it
            folders[0] = next(
                (candidate for candidate in (PACKAGE / kind, PACKAGE.parent / kind) if candidate.is_dir()), folders[0]
            )
        files = (file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()))
        by_name = {file.stem: file for file in files if file.suffix in SUFFIXES[kind] and file.stem != "__init__"}
        return OUTSIDE_CATALOG.get(kind, {}) | by_name


@cache
def stage_names() -> tuple[str, ...]:
    """The stages a recipe may name, sorted: the folders of stages/. Their records are runs/stage_registry.py's matter."""
    files = (PACKAGE / "stages").glob("*/__init__.py")
    return tuple(sorted(file.parent.name.replace("_", "-") for file in files))


def _first_sentence(recipe: str) -> str:
    """Returns the first sentence of a recipe's comment "What:", which may go over several lines."""
    comment = recipe.partition("# What: ")[2].partition("\n\n")[0]
    text = " ".join(line.removeprefix("#").removeprefix(" ") for line in comment.splitlines())
    return re.split(r"\.? {2,}|\. (?=[A-Z0-9])(?<!al\. )|\. ?(?=mbert )|\.$", text)[0]


def _assigned_literals(module: ast.Module) -> dict[str, Any]:
    """Returns what a module assigns to names at its top level; None for what is no literal."""
    values: dict[str, Any] = {}
    for node in module.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            values |= {target.id: _literal(node.value) for target in targets if isinstance(target, ast.Name)}
    return values


def _literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None


def _annotation(node: ast.expr | None, aliases: Mapping[str, ast.expr]) -> Annotation:
    if isinstance(node, ast.BinOp):  # float | Literal["auto"]
        kind, words = _annotation(node.left, aliases), _annotation(node.right, aliases)
        return TypeOrWords(kind, words) if isinstance(kind, str) and isinstance(words, tuple) else None
    if isinstance(node, ast.Name):
        return _annotation(aliases[node.id], {}) if node.id in aliases else node.id
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).rpartition(".")[2] == "Literal":
        words = _literal(node.slice)
        return words if isinstance(words, tuple) else (words,)
    return None


def _pattern(stem: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"([A-Z])", r"(?P<\1>[1-9][0-9]{0,8})", re.escape(stem)))


def singular(kind: str) -> str:
    """Returns the singular of a kind."""
    return "loss" if kind == "losses" else kind.removesuffix("s")
