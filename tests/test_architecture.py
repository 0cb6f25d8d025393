"""Rules of the package, read off the source with `ast`: direction between folders, light start-up, sizes, docstrings.

A file imports from its own folder or from folders below it, and no two files import each other in a circle. What the rules
protect: any file can be read alone, `mbert --help` stays fast, and one more loss or method stays one more file.
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

MAX_FILES = 14
MAX_ROOT_FILES = 12

# A file imports only from folders of a lower rank, or from its own; folders of one rank do not know each other.
ORDER = (
    ("root",), ("recipe",), ("runs",), ("models",), ("data",), ("training", "evaluation", "augmentation"),
    ("distillation", "exporting"), ("plan",), ("stages",), ("cli",),
)  # fmt: skip
RANK = {folder: rank for rank, folders in enumerate(ORDER) for folder in folders}
ENTRY = {"__init__", "__main__", "api"}  # files of the root that offer what the stages do
# A plug-in may import the root, the models, and the interface of its kind; the registry alone imports plug-ins.
CATALOG_MAY_IMPORT = {"root", "models"}
INTERFACES = {"augmenters": "augmentation.interface", "kinds": "recipe.task_kinds"}
LIGHT = {"root", "recipe", "runs", "cli"}  # load nothing heavy at start, so that `mbert --help` is quick
HEAVY_ROOT = {"reduce"}  # what losses share: tensors

SHELL_ONLY = {"typer", "rich", "click"}
LIGHT_MAY_IMPORT = {"pydantic", PACKAGE}
HEAVY_NAMES = """torch transformers datasets tokenizers safetensors accelerate onnx onnxruntime onnxscript
    sklearn scipy nltk numpy pandas pyarrow"""
HEAVY = set(HEAVY_NAMES.split())
# What only the table of architectures reads off a configuration, and files that define an architecture of ours.
CONFIG_FACTS = set(
    """model_type hidden_size num_hidden_layers num_attention_heads intermediate_size
    max_position_embeddings vocab_size embedding_size""".split()
)
DEFINES_ARCHITECTURES = {"models.architectures", "models.moe.bert"}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
# Locals, parameters and loop variables of these names say nothing of what they hold: a noun does.
BANNED_LOCALS = {"found", "one", "told", "own", "made", "known", "said", "ours", "theirs"}


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
    def folder(self) -> str:
        """The folder directly under the package; "root" for the files beside them."""
        return (
            self.name.split(".")[0]
            if "." in self.name or self.path.name == "__init__.py" and self.name != "__init__"
            else "root"
        )

    @property
    def kind(self) -> str | None:
        """Of a plug-in under catalog/ its kind, such as "losses"."""
        parts = self.name.split(".")
        return parts[1] if parts[0] == "catalog" and len(parts) > 2 else None


def read_package(root: Path) -> dict[str, Module]:
    """All modules under `root`; a package's own name stands for its __init__.py."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        modules[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return modules


IMPORTS: dict[Module, list[Import]] = {}  # a file is read once, its imports are asked for a thousand times


def imports_of(module: Module, modules: dict[str, Module]) -> list[Import]:
    """Every import in the file, inside functions too; those for type checkers alone count as not at start."""
    if module not in IMPORTS:
        IMPORTS[module] = [
            Import(target, node.lineno, at_start)
            for node, at_start in _import_nodes(module.tree, True)
            for target in _targets(node, module, modules)
        ]
    return IMPORTS[module]


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


def inner_imports(module: Module, modules: dict[str, Module]) -> Iterator[tuple[Import, Module]]:
    """The imports that lead to modules of this package."""
    for statement in imports_of(module, modules):
        name = inner(statement.target)
        if name in modules:
            yield statement, modules[name]


def wrong_directions(modules: dict[str, Module]) -> list[str]:
    """Imports of a folder that is not below the importing one, and plug-ins that import more than they may."""
    return [
        f"{module.path}:{statement.line} {module.name} imports {target.name}"
        for module in modules.values()
        for statement, target in inner_imports(module, modules)
        if target is not module and module.name not in ENTRY and not may_import(module, target)
    ]


def may_import(module: Module, target: Module) -> bool:
    """Whether the direction between folders allows this import."""
    if module.folder == "catalog":
        inside = target.path.parent == module.path.parent and target.path.name == "__init__.py"
        return inside or target.folder in CATALOG_MAY_IMPORT or target.name == INTERFACES.get(module.kind or "")
    if target.folder == "catalog" or target.name in ENTRY - {"__init__"}:
        return False
    same = module.folder == target.folder
    return same or RANK[target.folder] < RANK[module.folder]


def siblings(modules: dict[str, Module]) -> list[str]:
    """Imports of one stage's files by another stage; a stage's own files are in its folder."""
    return [
        f"{module.path}:{statement.line} imports its sibling {target.name}"
        for module in modules.values()
        if module.folder == "stages" and module.name != "stages"
        for statement, target in inner_imports(module, modules)
        if target.folder == "stages" and target.name != "stages" and target.name.split(".")[1] != module.name.split(".")[1]
    ]


def loaded_by(name: str, modules: dict[str, Module]) -> dict[str, list[str]]:
    """What importing a module loads: each module of ours with the chain that leads to it."""
    chains = {name: [name]}
    queue = [name]
    while queue:
        current = queue.pop()
        nexts = [target.name for statement, target in inner_imports(modules[current], modules) if statement.at_start]
        parts = current.split(".")
        nexts += [".".join(parts[:i]) for i in range(1, len(parts))] + ["__init__"]
        for following in nexts:
            if following in modules and following not in chains:
                chains[following] = [*chains[current], following]
                queue.append(following)
    return chains


def is_light(module: Module) -> bool:
    """Whether the file must load nothing heavy when it is imported."""
    is_record = module.folder == "stages" and module.path.name == "__init__.py"
    return is_record or module.folder in LIGHT and module.name not in HEAVY_ROOT


def heavy_at_start(modules: dict[str, Module]) -> list[str]:
    """Heavy libraries that importing a file of the light folders would load."""
    wrong = set()
    for module in modules.values():
        if is_light(module):
            for name, chain in loaded_by(module.name, modules).items():
                for statement in imports_of(modules[name], modules):
                    if statement.at_start and statement.target.split(".")[0] in HEAVY:
                        wrong.add(f"{modules[name].path}:{statement.line} {' -> '.join(chain)} loads {statement.target}")
    return sorted(wrong)


# What answers with an export: neither these files nor what they import may load what takes seconds.
ANSWER_EXPORTS = ("stages.predict", "stages.evaluate.run", "evaluation.compare_speed", "evaluation.alternatives.bench_rows")
SECONDS_TO_LOAD = {"torch", "transformers", "datasets", "sklearn", "accelerate"}


def slow_at_start(name: str, modules: dict[str, Module]) -> list[str]:
    """Libraries of SECONDS_TO_LOAD that importing a module would load."""
    return [
        f"{modules[loaded].path}:{statement.line} {' -> '.join(chain)} loads {statement.target}"
        for loaded, chain in loaded_by(name, modules).items()
        for statement in imports_of(modules[loaded], modules)
        if statement.at_start and statement.target.split(".")[0] in SECONDS_TO_LOAD
    ]


def circles(modules: dict[str, Module]) -> list[str]:
    """Modules that import each other at start, directly or through others."""
    edges = {
        module.name: {target.name for statement, target in inner_imports(module, modules) if statement.at_start} - {module.name}
        for module in modules.values()
    }
    while leaves := [name for name, targets in edges.items() if not targets & edges.keys()]:
        for name in leaves:
            del edges[name]
    return sorted(edges)


def raw_facts(modules: dict[str, Module]) -> list[str]:
    """Reads of a configuration's model type or sizes in a file that does not define an architecture."""
    return [
        f"{module.path}:{node.lineno} reads {name} of a configuration: ask models/architectures.py"
        for module in modules.values()
        if module.name not in DEFINES_ARCHITECTURES and module.kind != "students"
        for node in ast.walk(module.tree)
        if (name := _name_read(node)) in CONFIG_FACTS
    ]


def _name_read(node: ast.AST) -> str | None:
    """The attribute that an expression reads, as `config.name` or `getattr(config, "name", ...)`."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        return node.attr
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr" and node.args[1:]
    return node.args[1].value if called and isinstance(node.args[1], ast.Constant) else None  # type: ignore[attr-defined]


def undocumented(modules: dict[str, Module]) -> list[str]:
    """Public functions and classes without a docstring."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [
        f"{module.path}:{node.lineno} {node.name}"
        for module in modules.values()
        for node in module.tree.body
        if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]


def banned_locals(module: Module) -> list[str]:
    """Locals, parameters and loop variables of a module with a banned name; losses take the module they train as `own`."""
    allowed = {"own"} if module.kind == "losses" else set()
    bound = [(node.lineno, node.arg) for node in ast.walk(module.tree) if isinstance(node, ast.arg) and node.arg not in allowed]
    bound += [
        (node.lineno, node.id)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    return [f"{module.path}:{line} {name}" for line, name in bound if name in BANNED_LOCALS]


def report(wrong: list[str]) -> str:
    """The complaints, one a line, with paths from the root of the repository."""
    return "\n" + "\n".join(line.replace(f"{ROOT}/", "") for line in wrong)


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    sources = read_package(ROOT / PACKAGE)
    assert sources, f"no sources under {ROOT / PACKAGE}"
    return sources


def test_every_folder_has_a_rank(modules: dict[str, Module]) -> None:
    unknown = {module.folder for module in modules.values()} - RANK.keys() - {"catalog"}
    assert not unknown, f"these folders stand nowhere in ORDER: {unknown}"


def test_imports_follow_the_direction_between_folders(modules: dict[str, Module]) -> None:
    wrong = wrong_directions(modules)
    assert not wrong, report(wrong)


def test_folders_are_small(modules: dict[str, Module]) -> None:
    """cli/ and the kinds of the catalogue hold a file for each command and plug-in, as many as there are."""
    folders: dict[Path, int] = {}
    for module in modules.values():
        if module.folder not in ("cli", "catalog"):
            folders[module.path.parent] = folders.get(module.path.parent, 0) + 1
    limits = {folder: MAX_ROOT_FILES if folder == ROOT / PACKAGE else MAX_FILES for folder in folders}
    wrong = [f"{folder} has {count} files" for folder, count in folders.items() if count > limits[folder]]
    assert not wrong, report(wrong)


def test_no_siblings(modules: dict[str, Module]) -> None:
    wrong = siblings(modules)
    assert not wrong, report(wrong)


def test_no_circles(modules: dict[str, Module]) -> None:
    wrong = circles(modules)
    assert not wrong, f"these modules import each other in a circle, or depend on one: {wrong}"


def test_typer_and_rich_only_in_the_shell(modules: dict[str, Module]) -> None:
    wrong = [
        f"{module.path}:{statement.line} imports {statement.target}"
        for module in modules.values()
        for statement in imports_of(module, modules)
        if statement.target.split(".")[0] in SHELL_ONLY - ({"typer", "rich"} if module.folder == "cli" else set())
    ]
    assert not wrong, report(wrong)


def test_light_files_import_the_standard_library_and_pydantic(modules: dict[str, Module]) -> None:
    allowed = LIGHT_MAY_IMPORT | sys.stdlib_module_names
    wrong = [
        f"{module.path}:{statement.line} imports {statement.target}"
        for module in modules.values()
        if is_light(module) and module.folder != "cli"
        for statement in imports_of(module, modules)
        if statement.at_start and statement.target.split(".")[0] not in allowed
    ]
    assert not wrong, report(wrong)


def test_nothing_heavy_at_start(modules: dict[str, Module]) -> None:
    wrong = heavy_at_start(modules)
    assert not wrong, report(wrong)


def test_nothing_heavy_at_start_in_a_real_process(modules: dict[str, Module]) -> None:
    names = [
        PACKAGE if module.name == "__init__" else f"{PACKAGE}.{module.name}"
        for module in modules.values()
        if is_light(module) and module.name != "__main__"
    ]
    code = f"import sys, importlib\nfor name in {names!r}: importlib.import_module(name)\n"
    code += "print(*sorted({'torch', 'transformers', 'datasets', 'sklearn'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", ANSWER_EXPORTS)
def test_what_answers_with_an_export_loads_no_torch(name: str, modules: dict[str, Module]) -> None:
    wrong = slow_at_start(name, modules)
    assert not wrong, report(wrong)


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


def test_one_table_knows_the_model_types(modules: dict[str, Module]) -> None:
    wrong = raw_facts(modules)
    assert not wrong, report(wrong)


def test_public_things_are_documented(modules: dict[str, Module]) -> None:
    wrong = undocumented(modules)
    assert not wrong, report(wrong)


def test_locals_say_what_they_hold(modules: dict[str, Module]) -> None:
    others = [module for folder in ("tests", "benchmarks") for module in read_package(ROOT / folder).values()]
    wrong = [line for module in [*modules.values(), *others] for line in banned_locals(module)]
    assert not wrong, report(wrong)


@pytest.fixture
def broken_package(tmp_path: Path) -> dict[str, Module]:
    """A small package that breaks every rule, to see that the rules notice."""
    sources = {
        "__init__.py": "",
        "errors.py": "from microbert_cli.recipe import schema\n",
        "reduce.py": "import torch\n",
        "recipe/__init__.py": "",
        "recipe/schema.py": "def f():\n    import torch\n",
        "recipe/registry.py": "from microbert_cli.catalog.losses import one\n",
        "catalog/losses/__init__.py": "import torch\n",
        "catalog/losses/one.py": "from microbert_cli.catalog.losses.two import g\nfrom microbert_cli import reduce\n",
        "catalog/losses/two.py": "class Open: pass\nfrom microbert_cli.data import load\n",
        "catalog/augmenters/mine.py": "from microbert_cli.augmentation.interface import Slot\n",
        "augmentation/interface.py": "class Slot:\n    'A word.'\n",
        "data/load.py": "import microbert_cli.data.tables\n",
        "data/tables.py": "from microbert_cli.data import load\ndef f(said):\n    for one in said: found = one\n",
        "stages/a.py": "from microbert_cli.stages import b\nwidth = config.hidden_size\nconfig.hidden_size = width\n",
        "stages/b.py": "kind = getattr(config, 'model_type', None)\n",
        "cli/__init__.py": "",
        "cli/main.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n",
        "attic/old.py": "",
    }
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    return read_package(tmp_path)


def test_the_rules_notice(broken_package: dict[str, Module]) -> None:
    modules = {name: module for name, module in broken_package.items() if module.folder != "attic"}
    assert {module.folder for module in broken_package.values()} - RANK.keys() == {"catalog", "attic"}
    wrong = [line.split(" ", 1)[1] for line in wrong_directions(modules)]
    assert sorted(wrong) == [
        "catalog.losses.one imports catalog.losses.two",
        "catalog.losses.two imports data.load",
        "errors imports recipe.schema",
        "recipe.registry imports catalog.losses.one",
    ]
    assert len(siblings(modules)) == 1 and "imports its sibling stages.b" in siblings(modules)[0]
    heavy = heavy_at_start(modules)
    assert len(heavy) == 2 and all("recipe.registry -> catalog.losses.one" in line for line in heavy)
    assert [line.split()[-1] for line in slow_at_start("catalog.losses.one", modules)] == ["torch", "torch"]
    assert not slow_at_start("recipe.schema", modules), "what a function imports is loaded when it is called"
    assert {"data.load", "data.tables"} <= set(circles(modules)) and "reduce" not in circles(modules)
    assert [line.split()[-1] for line in undocumented(modules)] == ["Open", "f", "f"]
    assert sorted(line.split()[-1] for line in banned_locals(modules["data.tables"])) == ["found", "one", "said"]
    assert [line.split(" ", 1)[1].split(" of ")[0] for line in raw_facts(modules)] == ["reads hidden_size", "reads model_type"]
