"""Figures of the package's structure, read off its source: python benchmarks/structure.py [DIRECTORY OF A CHECKOUT]

Imports are those that run when a module is imported; those for type checkers and those inside functions do not count.
"""

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = "microbert_cli"


def read_modules(root: Path) -> dict[str, ast.Module]:
    """Returns the modules by dotted name without the package; a folder's name stands for its __init__.py."""
    modules = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        modules[name] = ast.parse(path.read_text(encoding="utf-8"))
    return modules


def imported(node: ast.AST, modules: dict[str, ast.Module]) -> Iterator[str]:
    """Yields the modules of the package that a file imports when it is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == PACKAGE:
            base = (child.module or "").partition(".")[2]
            for alias in child.names:
                full = f"{base}.{alias.name}" if base else alias.name
                yield full if full in modules else base or "__init__"
        elif not isinstance(child, ast.FunctionDef | ast.Lambda):
            if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
                yield from imported(child, modules)


def folder(name: str, root: Path) -> str:
    """Returns a module's folder under the package."""
    return name.split(".")[0] if "." in name or (root / name).is_dir() else "root"


def measure(checkout: Path) -> dict[str, str]:
    """Returns the figures, as they stand in docs/architecture.md."""
    root = checkout / PACKAGE
    modules = read_modules(root)
    edges = {name: set(imported(tree, modules)) - {name, "__init__"} for name, tree in modules.items()}
    lines = {name: len(ast.unparse(tree).splitlines()) for name, tree in modules.items()}

    def physical(name: str) -> int:
        path = root / (name.replace(".", "/") + ".py")
        path = path if path.is_file() else root / name.replace(".", "/") / "__init__.py"
        return len(path.read_text(encoding="utf-8").splitlines())

    @cache
    def level(name: str) -> int:
        return 1 + max((level(other) for other in edges[name]), default=0)

    stage = next(name for name in ("stages.task_distill.run", "stages.task_distill") if name in modules)
    direct = {stage, *edges[stage]}
    pairs = [(a, b) for a, targets in edges.items() for b in targets]
    inside = sum(folder(a, root) == folder(b, root) for a, b in pairs)
    asking = [
        name
        for name in modules
        if re.search(r"\bmodel_type\b|\.num_hidden_layers\b|\.hidden_size\b", ast.unparse(modules[name]))
    ]
    functions = [
        node.end_lineno - node.lineno + 1
        for tree in modules.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno
    ]
    return {
        "files in the root": str(len(list(root.glob("*.py")))),
        "folders with modules": str(len({name.rpartition(".")[0] or "root" for name in modules})),
        "levels of imports": str(max(map(level, modules))),
        "imports inside a folder, of all": f"{inside / len(pairs):.0%}",
        "files that the stage task-distill imports, itself included": f"{len(direct)}, {sum(map(physical, direct)):,} lines",
        "files that read a model type or a shape from a configuration": str(len(asking)),
        "median length of a function": f"{statistics.median(functions):.0f} lines",
        "lines": f"{sum(map(physical, modules)):,}",
        "lines of code, without comments, docstrings' layout and blank lines": f"{sum(lines.values()):,}",
    }


if __name__ == "__main__":
    checkouts = [Path(argument) for argument in sys.argv[1:]] or [Path(__file__).resolve().parent.parent]
    columns = [measure(checkout) for checkout in checkouts]
    for key in columns[0]:
        print(f"| {key} | " + " | ".join(column[key] for column in columns) + " |")
