"""mbert: two-stage distillation of BERT-style encoders.

The stage functions for use from Python, each the same work as the command of its name:

    from microbert_cli import augment, cascade, distill, evaluate, export, extract, finetune, general_distill, predict

Nothing heavy is imported before one of them is called.
"""

from __future__ import annotations

import os
import sys

from microbert_cli.version import __version__

TYPE_CHECKING = False  # not from typing: `mbert` can answer a signal only once this file is read
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    from microbert_cli.api import (
        augment,
        cascade,
        distill,
        evaluate,
        export,
        extract,
        finetune,
        general_distill,
        predict,
        pretrain,
        run,
        trim,
    )

# ONNX Runtime 1.31 writes usage events into the user's cache as soon as it is imported, to be sent to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "__version__",
    "augment",
    "cascade",
    "distill",
    "evaluate",
    "export",
    "extract",
    "finetune",
    "general_distill",
    "predict",
    "pretrain",
    "run",
    "trim",
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
        if not self.current_name(name):
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, self)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        from importlib import import_module

        module = import_module(str(self.current_name(spec.name)))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module has run already, under its own name; importlib has replaced its spec by that of the old name.
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.insert(0, _MovedModules())
