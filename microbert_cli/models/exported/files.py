"""The files of an export directory: what each is called, which there are, and which answers where nothing else is said.

DIR/onnx/model.onnx             float32, any batch size, any length
DIR/onnx/model_quantized.onnx   weights as int8, activations quantised on the way (dynamic)
DIR/onnx/model_q4.onnx          products' weights in blocks of 4 bits, for ONNX Runtime alone
DIR/onnx/model_optimized.onnx, model_optimized_quantized.onnx   fused, for ONNX Runtime alone: exporting/onnx_fusion.py
DIR/onnx/model_exits.onnx       of a model with exits: models/exits/graph.py
DIR/openvino/                   int8 for OpenVINO: exporting/openvino.py
DIR/config.json                 above them, with the tokenizer: together an export directory

transformers.js, sentence-transformers, optimum and others look there for these names. Exports that were made earlier have
their ONNX files at the top, under the names of `EARLIER_FILES`; they are read like the others.
"""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

from microbert_cli.errors import MbertError
from microbert_cli.recipe.schema import Export
from microbert_cli.runs.manifest import model_home

ONNX_FILES = {
    "fp32": "onnx/model.onnx",
    "int8": "onnx/model_quantized.onnx",
    "q4": "onnx/model_q4.onnx",
    "fp32-optimized": "onnx/model_optimized.onnx",
    "int8-optimized": "onnx/model_optimized_quantized.onnx",
}
EXPORTED_FILES = ONNX_FILES | {"openvino": "openvino/openvino_model_qint8_quantized.xml"}
EARLIER_FILES = {
    "fp32": "model.onnx",
    "int8": "model.int8.onnx",
    "fp32-optimized": "model.optimized.onnx",
    "int8-optimized": "model.int8.optimized.onnx",
}
EXITS_FILE, EARLIER_EXITS_FILE = "onnx/model_exits.onnx", "model.exits.onnx"
OPENVINO_WEIGHTS = EXPORTED_FILES["openvino"].replace(".xml", ".bin")
FOLDERS = ("onnx", "openvino")
NAMES = (*EXPORTED_FILES.values(), OPENVINO_WEIGHTS, EXITS_FILE, *EARLIER_FILES.values(), EARLIER_EXITS_FILE)


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


def require_openvino() -> None:
    """Raises M511 if OpenVINO is not installed; to be called before it is imported, so that it sends no usage events."""
    if find_spec("openvino") is None:
        raise MbertError(
            "M511",
            "the package openvino is not installed",
            where="OpenVINO",
            allowed="Writing and running OpenVINO's files takes that package, an optional extra.",
            fix='Install it: pip install "microbert-cli[openvino]"',
        )
    # It sends events as soon as it is imported, unless this package of its is missing, as it is to an import of None.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def file_of(home: Path, precision: str) -> Path:
    """Returns the file of an export that answers in a precision, also where an earlier mbert wrote it; it need not be there."""
    return _now_or_earlier(home / EXPORTED_FILES[precision], home / EARLIER_FILES.get(precision, EXPORTED_FILES[precision]))


def exits_file(home: Path) -> Path:
    """Returns the file of an export that rows leave early; it need not be there."""
    return _now_or_earlier(home / EXITS_FILE, home / EARLIER_EXITS_FILE)


def _now_or_earlier(path: Path, earlier: Path) -> Path:
    return earlier if earlier.is_file() and not path.is_file() else path


def precisions(path: Path) -> tuple[str, ...]:
    """Which models `path` offers, the default first; none if it is no export.

    An export directory holds config.json and at least one of the files; if nothing else is said it answers in fp32. The path
    of one of the files stands for the directory at that precision: `DIR/onnx/model_quantized.onnx`.
    """
    home = model_home(path)
    if not (home / "config.json").is_file():
        return ()
    if path.is_file():
        names = {file: precision for files in (EARLIER_FILES, EXPORTED_FILES) for precision, file in files.items()}
        inside = path.name if (path.parent / "config.json").is_file() else f"{path.absolute().parent.name}/{path.name}"
        return (names[inside],) if inside in names else ()
    return tuple(name for name in EXPORTED_FILES if file_of(home, name).is_file())


def can_answer_here(precision: str) -> bool:
    """Whether the package that answers in a precision is installed, of those that an export can do without."""
    return precision != "openvino" or find_spec("openvino") is not None


def export_parts(export: Export) -> dict[str, bool]:
    """Returns which files an export makes: those of `formats`, else those whose keys switch them on.

    Whatever is made of the float32 graph comes with it.
    """
    if export.formats is None:
        return {"onnx": export.onnx, "int8": export.int8, "optimize": export.optimize, "q4": False, "openvino": False}
    parts = {"int8": "int8", "optimize": "optimized", "q4": "q4", "openvino": "openvino"}
    return {"onnx": bool(export.formats), **{part: name in export.formats for part, name in parts.items()}}


def export_forms(
    *, onnx: bool = True, int8: bool = True, optimize: bool = True, q4: bool = False, openvino: bool = False
) -> tuple[str, ...]:
    """The precisions that an export with these parts offers."""
    left_out = {
        "int8": not int8, "q4": not q4, "fp32-optimized": not optimize, "int8-optimized": not (int8 and optimize),
        "openvino": not openvino,
    }  # fmt: skip
    return tuple(name for name in EXPORTED_FILES if onnx and not left_out.get(name, False))


def is_export(path: Path) -> bool:
    """Whether `path` is an export directory, or one of its files."""
    return bool(precisions(path))


def chosen_precision(path: Path, precision: str | None) -> str:
    """Returns the precision that answers: as asked for, else the path's own, else fp32; raises M231 where it is not there."""
    offered = precisions(path)
    if offered and precision in (None, *offered):
        return precision or offered[0]
    what = "there is no {} model" if precision in (None, *EXPORTED_FILES) else 'no precision "{}"'
    raise MbertError(
        "M231",
        what.format(precision or "ONNX"),
        where=str(path),
        allowed=f"An export directory holds config.json and {' or '.join(EXPORTED_FILES.values())} "
        f"({', '.join(EXPORTED_FILES)}). Here: {', '.join(offered) or 'none'}.",
        fix="Make one: mbert export MODEL -o DIR",
    )
