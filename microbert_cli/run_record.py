"""What a whole run was made from, so that "everything up to date" is said in a second, without torch.

`run.json` in the run's folder holds one hash over every stage's keys and every input from outside the run, by content, and the
hash of each stage's output. It only ever says that nothing changed; whatever else it finds, the stages check for themselves.
"""

import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from microbert_cli import manifest
from microbert_cli.recipe import Recipe
from microbert_cli.version import __version__
from microbert_cli.wiring import Step

FILE = "run.json"
BUILT_IN = "python-docs"


def is_unchanged(root: Path, steps: Sequence[Step]) -> bool:
    """Whether every stage of the run is complete and nothing it was made from has changed."""
    try:
        record = json.loads((root / FILE).read_text(encoding="utf-8"))
        results = {step.name: manifest.read(step.out)["result"] for step in steps}
        return bool(record == {"key": _key(root, steps), "results": results})
    except Exception:
        return False


def write(root: Path, steps: Sequence[Step]) -> None:
    """Records the run as it stands, all stages complete."""
    results = {step.name: manifest.read(step.out)["result"] for step in steps}
    record = {"key": _key(root, steps), "results": results}
    manifest.write_text(root / FILE, json.dumps(record, indent=2) + "\n")


def _key(root: Path, steps: Sequence[Step]) -> str:
    parts = [__version__]
    for step in steps:
        recipe = step.resolved.recipe
        outside = {name: _content(value) for name, value in step.inputs.items() if _is_outside(value, root)}
        parts.append(manifest.digest([step.name, step.kind, recipe.identity(*Recipe.model_fields), outside]))
        parts += [str(_content(place)) for place in _data_places(recipe)]
    return manifest.digest(parts)


def _is_outside(value: Any, root: Path) -> bool:
    return isinstance(value, str) and not Path(value).absolute().is_relative_to(root.absolute())


def _data_places(recipe: Recipe) -> Iterator[str]:
    """Every file or folder the task's rows may come from; a task file of the user's own among them."""
    data = recipe.data
    yield from (place for place in (data.folder, data.train_file, data.dev_file, data.test_file) if place)
    if recipe.task and (recipe.task == BUILT_IN or Path(recipe.task).is_file()):
        yield recipe.task
        yield from (str(path) for path in sorted(Path(recipe.task).parent.glob("*.*")) if Path(recipe.task).is_file())


def _content(source: str) -> str | None:
    return _python_build() if source == BUILT_IN else manifest.identify(source)


def _python_build() -> str:
    """This build of Python and its documentation topics: what the built-in corpus is read from."""
    topics = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    return hashlib.sha256(sys.version.encode() + topics.read_bytes()).hexdigest()
