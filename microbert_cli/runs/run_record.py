"""What a whole run was made from, so that "everything up to date" is said in a second, without torch.

`run.json` in the run's folder holds one hash over every stage's keys and every input from outside the run, by content, and the
hash of each stage's output. It only ever says that nothing changed; whatever else it finds, the stages check for themselves.
"""

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.recipe.multitask import recipe_of_task, transfer_of
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.schema import Recipe
from microbert_cli.recipe.task import load_task
from microbert_cli.runs import atomic, manifest
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.version import __version__

FILE = "run.json"
BUILT_IN_TASK = "python-docs"


def claim(root: Path, recipe: str, *, force: bool = False) -> None:
    """Makes the folder this recipe's; raises M115 where another recipe runs there, unless `force`."""
    owner = _read(root).get("recipe", recipe)
    if owner != recipe and not force:
        raise MbertError(
            "M115",
            f'this folder holds the run of the recipe "{owner}"',
            where=f"-o {root}",
            allowed="A new or empty folder, or the one that the same recipe used before.",
            fix=f"Choose another: mbert run {recipe} -o {root}-{recipe}; or move the old stages aside: --force",
        )
    if owner != recipe or not (root / FILE).is_file():
        root.mkdir(parents=True, exist_ok=True)
        atomic.remove_stale_temporaries(root / FILE)
        atomic.write_text(root / FILE, atomic.dump_with_checksum({"recipe": recipe}))


def is_unchanged(root: Path, recipe: str, steps: Sequence[Step]) -> bool:
    """Whether every stage of the run is complete and nothing it was made from has changed."""
    try:
        return _read(root) == _record(root, recipe, steps)
    except Exception:
        return False


def write(root: Path, recipe: str, steps: Sequence[Step]) -> None:
    """Records the run as it stands, all stages complete."""
    atomic.write_text(root / FILE, atomic.dump_with_checksum(_record(root, recipe, steps)))


def _read(root: Path) -> dict[str, Any]:
    try:
        return atomic.load_with_checksum((root / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def _record(root: Path, recipe: str, steps: Sequence[Step]) -> dict[str, Any]:
    results = {step.name: manifest.read_verified(step.out)["result"] for step in steps}
    return {"recipe": recipe, "key": _key(root, steps), "results": results}


def _key(root: Path, steps: Sequence[Step]) -> str:
    parts = [__version__]
    for step in steps:
        recipe = step.resolved.recipe
        outside = {name: _content(value) for name, value in step.places.items() if _is_outside(value, root)}
        parts.append(atomic.digest([step.name, step.kind, recipe.identity(*Recipe.model_fields), outside]))
        parts += [str(_content(path)) for path in _data_paths(recipe)]
    return atomic.digest(parts)


def _is_outside(value: str, root: Path) -> bool:
    return not Path(value).absolute().is_relative_to(root.absolute())


def _data_paths(recipe: Recipe) -> Iterator[str]:
    """Yields every file or folder the task's rows may come from, a user's own task file among them."""
    data = recipe.data
    yield from (path for path in (data.train_file, data.dev_file, data.test_file) if path)
    transfer_files = [transfer_of(recipe_of_task(recipe, task)) for task in recipe.tasks] or [transfer_of(recipe)]
    yield from (path for path in transfer_files if path)
    folder = data.folder or os.environ.get("MBERT_DATA")
    for task in recipe.tasks or [recipe.task or ""]:
        yield from _task_paths(task, folder) if task else ()


def _task_paths(task: str, folder: str | None) -> Iterator[str]:
    if folder:
        source = load_task(Catalog().path("tasks", task, where="task")).folder
        task_folder = Path(folder) / source.name if source else Path(folder)
        yield str(task_folder if task_folder.is_dir() else folder)
    if task == BUILT_IN_TASK or Path(task).is_file():
        yield task
        yield from (str(path) for path in sorted(Path(task).parent.glob("*.*")) if Path(task).is_file())


def _content(source: str) -> str | None:
    return _python_build() if source == BUILT_IN_TASK else manifest.identify(source)


def _python_build() -> str:
    """Returns a digest of this build of Python and its documentation topics, which the built-in corpus is read from."""
    topics = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    return hashlib.sha256(sys.version.encode() + topics.read_bytes()).hexdigest()
