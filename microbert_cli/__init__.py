"""mbert: two-stage distillation of BERT-style encoders.

The stage functions for use from Python, each the same work as the command of its name:

    from microbert_cli import augment, distill, evaluate, export, extract, finetune, general_distill, predict, pretrain

Nothing heavy is imported before one of them is called.
"""

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
