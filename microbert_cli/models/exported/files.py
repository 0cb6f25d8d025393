"""The ONNX files of an export directory: which there are, and which answers where nothing else is said.

DIR/model.onnx        float32, any batch size, any length
DIR/model.int8.onnx   weights as int8, activations quantised on the way (dynamic)
DIR/config.json       beside them, with the tokenizer: together an export directory
DIR/model.optimized.onnx, DIR/model.int8.optimized.onnx    the same for ONNX Runtime alone: exporting/onnx_fusion.py
DIR/model.exits.onnx  of a model with exits: models/exits/graph.py
"""

import importlib
from pathlib import Path

from microbert_cli.errors import MbertError

ONNX_FILES = {
    "fp32": "model.onnx",
    "int8": "model.int8.onnx",
    "fp32-optimized": "model.optimized.onnx",
    "int8-optimized": "model.int8.optimized.onnx",
}
EXITS_FILE = "model.exits.onnx"


def require_onnx(*packages: str) -> None:
    """Raises M510 if one of the optional packages for ONNX is not installed."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MbertError(
                "M510",
                f"the package {package} is not installed",
                where="ONNX",
                allowed="Writing and running ONNX files takes onnx, onnxscript and onnxruntime, an optional extra.",
                fix='Install them: pip install "microbert-cli[onnx]"',
            ) from error


def precisions(path: Path) -> tuple[str, ...]:
    """Which ONNX models `path` offers, the default first; none if it is no export.

    An export directory holds config.json and at least one of the ONNX files; if nothing else is said it answers in
    fp32. The path of one of the files stands for the directory at that precision: `DIR/model.int8.onnx`.
    """
    home = path.parent if path.is_file() else path
    if not (home / "config.json").is_file():
        return ()
    forms = tuple(name for name, file in ONNX_FILES.items() if (home / file).is_file())
    return tuple(name for name in forms if ONNX_FILES[name] == path.name) if path.is_file() else forms


def onnx_forms(*, onnx: bool = True, int8: bool = True, optimize: bool = True) -> tuple[str, ...]:
    """The precisions that an export with these parts offers."""
    left_out = [""] * (not onnx) + ["int8"] * (not int8)
    return tuple(name for name in ONNX_FILES if not name.startswith(tuple(left_out)) and (optimize or "-" not in name))


def is_export(path: Path) -> bool:
    """Whether `path` is an export directory, or one of its ONNX files."""
    return bool(precisions(path))


def chosen_precision(path: Path, precision: str | None) -> str:
    """Returns the precision that answers: as asked for, else the path's own, else fp32; raises M231 where it is not there."""
    offered = precisions(path)
    if offered and precision in (None, *offered):
        return precision or offered[0]
    raise MbertError(
        "M231",
        f"there is no {precision or 'ONNX'} model" if precision in (None, *ONNX_FILES) else f'no precision "{precision}"',
        where=str(path),
        allowed=f"An export directory holds config.json and {' or '.join(ONNX_FILES.values())} ({', '.join(ONNX_FILES)}). "
        f"Here: {', '.join(offered) or 'none'}.",
        fix="Make one: mbert export MODEL -o DIR",
    )
