"""The house rules, read off the source with `ast`: floors, siblings, light start-up, sizes, docstrings.

A thing imports only from floors below, or from its own floor where that makes no circle. What the rules protect: any
file can be read alone, `mbert --help` stays fast, and one more loss or method stays one more file.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "microbert_cli"
ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 350

FLOORS = {
    0: "durable stopping errors recipe several resolve catalog manifest output tracking task words version toml_files "
    "processes shown nested expert_keys key_types requirements shapes splits disk reusing",
    1: "losses methods students tasks augmenters metrics layer_map reduce experts",
    2: "models capture data readers rows own_data augmented encoding submission corpus python_docs vocabulary batching "
    "transfer "
    "teacher_cache objective terms optimisers checkpoint word_table augmentation onnx_model counting timing model_card "
    "onnx_fusion exporting augmenter_tools teacher sources cache blocks masking scoring answering places baseline numerics "
    "int8_teacher memory ancestry packed mixture ensemble extraction importance routed_student initialising slicing matching "
    "progressive building",
    3: "loop phases bests",
    4: "stages pipeline api stage task_rows task_results lesson course racing lineage wiring run_record report_table planning "
    "preflight comparing",
    5: "cli __init__ __main__",
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}

IDEAS = {"losses", "methods", "students", "tasks", "augmenters"}
NO_SIBLINGS = IDEAS | {"stages"}
SHARED_BY_IDEAS = {"reduce", "experts"}
SHELL_ONLY = {"typer", "rich", "click"}
WORDS_MAY_IMPORT = {"pydantic", PACKAGE}
HEAVY_NAMES = """torch transformers datasets tokenizers safetensors accelerate onnx onnxruntime onnxscript
    sklearn scipy nltk numpy pandas pyarrow"""
HEAVY = set(HEAVY_NAMES.split())
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name; `at_start` = it happens when the importing module is imported."""

    target: str
    line: int
    at_start: bool


@dataclass(frozen=True)
class Module:
    """One source file of the package."""

    name: str  # dotted, without the package: "losses.soft_target", "__init__"
    path: Path
    tree: ast.Module

    @property
    def top(self) -> str:
        return self.name.split(".")[0]

    @property
    def floor(self) -> int | None:
        return FLOOR_OF.get(self.top)


def read_package(root: Path) -> dict[str, Module]:
    """All modules under `root`; a package's own name stands for its __init__.py."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        modules[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return modules


def imports_of(module: Module, modules: dict[str, Module]) -> list[Import]:
    """Every import in the file, inside functions too; those for type checkers alone count as not at start."""
    return [
        Import(target, node.lineno, at_start)
        for node, at_start in _import_nodes(module.tree, True)
        for target in _targets(node, module, modules)
    ]


def _import_nodes(node: ast.AST, at_start: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_start
        else:
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from _import_nodes(child, at_start and not later and not typing_only)


def _targets(node: ast.Import | ast.ImportFrom, module: Module, modules: dict[str, Module]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = module.name.split(".") if module.path.name == "__init__.py" else module.name.split(".")[:-1]
        package = [PACKAGE, *(part for part in package if part != "__init__")]
        base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
    return [_submodule_or(base, alias.name, modules) for alias in node.names]


def _submodule_or(base: str, name: str, modules: dict[str, Module]) -> str:
    full = f"{base}.{name}"
    return full if base.startswith(PACKAGE) and inner(full) in modules else base


def inner(target: str) -> str | None:
    """The name of one of our modules as in `read_package`, or None for a library's."""
    if target == PACKAGE:
        return "__init__"
    return target.removeprefix(PACKAGE + ".") if target.startswith(PACKAGE + ".") else None


def ours(module: Module, modules: dict[str, Module]) -> Iterator[tuple[Import, Module]]:
    """The imports that lead to modules of this package."""
    for found in imports_of(module, modules):
        name = inner(found.target)
        if name in modules:
            yield found, modules[name]


def wrong_floors(modules: dict[str, Module]) -> list[str]:
    """Imports that go up, and ideas that import more than words and the two shared files."""
    wrong = []
    for module in modules.values():
        for found, target in ours(module, modules):
            if module.floor is None or target.floor is None or target is module:
                continue
            where = f"{module.path}:{found.line}"
            if target.floor > module.floor:
                wrong.append(f"{where} {module.name} (floor {module.floor}) imports {target.name} ({target.floor})")
            elif module.top in IDEAS and target.floor == 1 and target.top not in SHARED_BY_IDEAS | {module.top}:
                wrong.append(f"{where} an idea imports {target.name}; of floor 1 only reduce and experts are allowed")
    return wrong


def siblings(modules: dict[str, Module]) -> list[str]:
    """Imports of one file of an idea folder, or one stage, by another."""
    return [
        f"{module.path}:{found.line} imports its sibling {target.name}"
        for module in modules.values()
        if module.top in NO_SIBLINGS and module.path.name != "__init__.py"
        for found, target in ours(module, modules)
        if target.top == module.top and target is not module and target.path.name != "__init__.py"
    ]


def loaded_by(name: str, modules: dict[str, Module]) -> dict[str, list[str]]:
    """What importing a module loads: each module of ours with the chain that leads to it."""
    chains = {name: [name]}
    queue = [name]
    while queue:
        current = queue.pop()
        nexts = [target.name for found, target in ours(modules[current], modules) if found.at_start]
        parts = current.split(".")
        nexts += [".".join(parts[:i]) for i in range(1, len(parts))] + ["__init__"]
        for following in nexts:
            if following in modules and following not in chains:
                chains[following] = [*chains[current], following]
                queue.append(following)
    return chains


def heavy_at_start(modules: dict[str, Module]) -> list[str]:
    """Heavy libraries that importing a word (floor 0) or a part of the shell would load."""
    wrong = set()
    for module in modules.values():
        if module.floor == 0 or module.top == "cli":
            for name, chain in loaded_by(module.name, modules).items():
                for found in imports_of(modules[name], modules):
                    if found.at_start and found.target.split(".")[0] in HEAVY:
                        wrong.add(f"{modules[name].path}:{found.line} {' -> '.join(chain)} loads {found.target}")
    return sorted(wrong)


def circles(modules: dict[str, Module]) -> list[str]:
    """Modules that import each other at start, directly or through others."""
    edges = {
        module.name: {target.name for found, target in ours(module, modules) if found.at_start} - {module.name}
        for module in modules.values()
    }
    while leaves := [name for name, targets in edges.items() if not targets & edges.keys()]:
        for name in leaves:
            del edges[name]
    return sorted(edges)


def undocumented(modules: dict[str, Module]) -> list[str]:
    """Public functions and classes without a docstring."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [
        f"{module.path}:{node.lineno} {node.name}"
        for module in modules.values()
        for node in module.tree.body
        if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]


def report(wrong: list[str]) -> str:
    """The complaints, one a line, with paths from the root of the repository."""
    return "\n" + "\n".join(line.replace(f"{ROOT}/", "") for line in wrong)


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    found = read_package(ROOT / PACKAGE)
    assert found, f"no sources under {ROOT / PACKAGE}"
    return found


def test_every_module_has_a_floor(modules: dict[str, Module]) -> None:
    unknown = [
        f"{module.path} stands nowhere: give it a floor in FLOORS" for module in modules.values() if module.floor is None
    ]
    assert not unknown, report(unknown)


def test_imports_go_down(modules: dict[str, Module]) -> None:
    wrong = wrong_floors(modules)
    assert not wrong, report(wrong)


def test_no_siblings(modules: dict[str, Module]) -> None:
    wrong = siblings(modules)
    assert not wrong, report(wrong)


def test_no_circles(modules: dict[str, Module]) -> None:
    wrong = circles(modules)
    assert not wrong, f"these modules import each other in a circle, or depend on one: {wrong}"


def test_typer_and_rich_only_in_the_shell(modules: dict[str, Module]) -> None:
    wrong = [
        f"{module.path}:{found.line} imports {found.target}"
        for module in modules.values()
        for found in imports_of(module, modules)
        if found.target.split(".")[0] in SHELL_ONLY - ({"typer", "rich"} if module.top == "cli" else set())
    ]
    assert not wrong, report(wrong)


def test_words_import_the_standard_library_and_pydantic(modules: dict[str, Module]) -> None:
    allowed = WORDS_MAY_IMPORT | sys.stdlib_module_names
    wrong = [
        f"{module.path}:{found.line} imports {found.target}"
        for module in modules.values()
        if module.floor == 0
        for found in imports_of(module, modules)
        if found.at_start and found.target.split(".")[0] not in allowed
    ]
    assert not wrong, report(wrong)


def test_nothing_heavy_at_start(modules: dict[str, Module]) -> None:
    wrong = heavy_at_start(modules)
    assert not wrong, report(wrong)


def test_nothing_heavy_at_start_in_a_real_process(modules: dict[str, Module]) -> None:
    names = [
        PACKAGE if module.name == "__init__" else f"{PACKAGE}.{module.name}"
        for module in modules.values()
        if (module.floor == 0 or module.floor == 5) and module.name.split(".")[-1] != "__main__"
    ]
    code = f"import sys, importlib\nfor name in {names!r}: importlib.import_module(name)\n"
    code += "print(*sorted({'torch', 'transformers', 'datasets', 'sklearn'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_only_the_console_prints(modules: dict[str, Module]) -> None:
    wrong = [
        f"{module.path}:{node.lineno} prints"
        for module in modules.values()
        if module.name != "cli.console"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong, report(wrong)


def test_modules_are_short(modules: dict[str, Module]) -> None:
    lengths = {module.path: len(module.path.read_text(encoding="utf-8").splitlines()) for module in modules.values()}
    wrong = [f"{path} has {lines} lines; {MAX_LINES} is the most" for path, lines in lengths.items() if lines > MAX_LINES]
    assert not wrong, report(wrong)


def test_names_say_what_is_inside(modules: dict[str, Module]) -> None:
    wrong = [
        f"{module.path} has a name that says nothing"
        for module in modules.values()
        if BANNED_NAMES & set(module.name.split("."))
    ]
    assert not wrong, report(wrong)


def test_public_things_are_documented(modules: dict[str, Module]) -> None:
    wrong = undocumented(modules)
    assert not wrong, report(wrong)


@pytest.fixture
def house(tmp_path: Path) -> dict[str, Module]:
    """A small house that breaks rules, to see that the rules are seen to be broken."""
    sources = {
        "__init__.py": "",
        "errors.py": "from .losses import one\n",
        "recipe.py": "def f():\n    import torch\n",
        "losses/__init__.py": "import torch\n",
        "losses/one.py": "from microbert_cli.losses.two import g\nfrom microbert_cli import metrics, reduce\n",
        "losses/two.py": "class Open: pass\n",
        "metrics.py": "import microbert_cli.layer_map\n",
        "layer_map.py": "from microbert_cli import metrics\n",
        "reduce.py": "",
        "cli/__init__.py": "",
        "cli/main.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n",
        "attic.py": "",
    }
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return read_package(tmp_path)


def test_the_rules_bite(house: dict[str, Module]) -> None:
    assert [module.name for module in house.values() if module.floor is None] == ["attic"]
    up, idea = wrong_floors(house)
    assert "errors (floor 0) imports losses.one (1)" in up
    assert "an idea imports metrics" in idea
    assert len(siblings(house)) == 1 and "imports its sibling losses.two" in siblings(house)[0]
    assert len(heavy_at_start(house)) == 1 and "errors -> losses.one -> losses loads torch" in heavy_at_start(house)[0]
    assert {"metrics", "layer_map"} <= set(circles(house)) and "reduce" not in circles(house)
    assert [line.split()[-1] for line in undocumented(house)] == ["Open", "f"]
