"""mbert: two-stage distillation of BERT-style encoders.

The stage functions for use from Python, each the same work as the command of its name:

    from microbert_cli import augment, distill, evaluate, export, extract, finetune, general_distill, predict, pretrain

Nothing heavy is imported before one of them is called.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from microbert_cli.version import __version__

if TYPE_CHECKING:
    from microbert_cli.api import augment, distill, evaluate, export, extract, finetune, general_distill, predict, pretrain, run


__all__ = [
    "__version__",
    "augment",
    "distill",
    "evaluate",
    "export",
    "extract",
    "finetune",
    "general_distill",
    "predict",
    "pretrain",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from microbert_cli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _MovedModules:
    """Imports modules by the names they had before they moved: users' own losses, students and augmenters import them so."""

    PREFIX = f"{__name__}."
    MOVED = {"augmenters": "augmentation.interface", "students.routed_bert": "models.moe.bert"}
    MOVED_FOLDERS = ("losses", "students")

    def current_name(self, name: str) -> str | None:
        """Returns the name under which a module is found now; None for one that never moved."""
        old = name.removeprefix(self.PREFIX)
        if not name.startswith(self.PREFIX) or old.partition(".")[0] not in (*self.MOVED_FOLDERS, *self.MOVED):
            return None
        return self.PREFIX + self.MOVED.get(old, f"catalog.{old}")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if self.current_name(name) else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(str(self.current_name(spec.name)))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module has run already, under its own name; importlib has replaced its spec by that of the old name.
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.insert(0, _MovedModules())
