"""Tables of embeddings in an ONNX graph, in 8 or 4 bits instead of 32.

int8  a scale per row, in standard operators that every runtime has:

        row v:  q_v = round(E_v / s_v),  s_v = max |E_v| / 127        E [V, d] float32 -> q [V, d] int8, s [V, 1] float32
        graph:  Mul(Cast(Gather(q, ids)), Gather(s, ids))

int4  a scale per block of BLOCK columns, ONNX Runtime's own operator com.microsoft.GatherBlockQuantized, which other runtimes
      lack:  q = clip(round(x / s), -8, 7) in a block x, s the one of SHARES * (the value of largest size in x) / -8 with the
      least squared error, stored as float16

One scale for a whole table, as ONNX Runtime's quantiser has it, is decided by the table's largest value: on MiniLM's words the
relative error is 3.2 to 4.3 % (with 8 and 7 bits), with a scale per row 0.73 %.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

Format = Literal["int8", "int4", "fp32"]
FORMATS: tuple[Format, ...] = ("int8", "int4", "fp32")
BLOCK = 32
# Both signs: the 16 levels reach one further down than up, so either end may be the better one for a block's extreme.
SHARES = tuple(sign * share for share in np.linspace(0.8, 1.1, 13) for sign in (1.0, -1.0))
# Smaller tables stay in float32: segments (2 rows, whose error would be 3.4 % even so) and biases by distance.
LEAST_ROWS, LEAST_VALUES = 8, 1024
# Rows in 4 bits at once: every share is tried on copies of them.
ROWS_AT_ONCE = 4096
DOMAIN = "com.microsoft"


def quantise_tables(graph: Any, form: Format) -> list[str]:
    """Rewrites the tables of embeddings of an ONNX model in place; returns the names of all nodes that read a table.

    graph  an onnx.ModelProto in float32. A table is a float32 matrix that some Gather reads by rows
    form   of the large tables; in 4 bits the largest and those over half of it (words), others (positions) in 8
    The nodes named are not to be quantised again: what they read is as it shall be.
    """
    tables = _tables(graph)
    forms = _forms(tables, form)
    nodes: list[Any] = []
    of_tables: list[str] = []
    for node in graph.graph.node:
        if _reads_row(node) and node.input[0] in forms:
            written = list(_GATHERS[forms[node.input[0]]](node))
            of_tables += [each.name for each in written]
            nodes += written
        else:
            nodes.append(node)
    _replace_nodes(graph, nodes)
    _replace_tables(graph, tables, forms)
    return of_tables


def rows_int8(table_Vd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a table as int8 [V, d] and the scale of each row [V, 1] float32; a row of zeros has the scale 1."""
    scale_V1 = np.abs(table_Vd).max(axis=1, keepdims=True) / np.float32(127)
    scale_V1 = np.where(scale_V1 > 0, scale_V1, 1).astype(np.float32)
    return np.clip(np.rint(table_Vd / scale_V1), -127, 127).astype(np.int8), scale_V1


def blocks_int4(table_Vd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a table in 4 bits, two columns a byte [V, d / 2] uint8, and the scale of each block [V, blocks] float16.

    A level is stored with 8 added; the first of two columns is in the low bits. d is even; the last block may be shorter.
    """
    pieces = [_blocks_int4(table_Vd[first : first + ROWS_AT_ONCE]) for first in range(0, len(table_Vd), ROWS_AT_ONCE)]
    packed, scales = zip(*pieces, strict=True)
    return np.concatenate(packed), np.concatenate(scales)


def stored_tables(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Returns {table: (format, its values [V, d] float32)} of what `quantise_tables` wrote to an ONNX file."""
    import onnx
    from onnx import numpy_helper

    values = {each.name: each for each in onnx.load(path).graph.initializer}
    tables = {}
    for name in values:
        source, _, part = name.rpartition(".")
        if part in ("int8", "int4") and f"{source}.scale" in values:
            stored, scale = (numpy_helper.to_array(values[each]) for each in (name, f"{source}.scale"))
            tables[source] = part, stored * scale if part == "int8" else _from_int4(stored, scale)
    return tables


def table_errors(original: Path, quantised: Path) -> dict[str, dict[str, Any]]:
    """Returns {table: {"format", "rows", "width", "relative_error"}} of a quantised file, by the float32 file it was made of.

    relative_error = |E' - E| / |E|, Frobenius norms over the table, E' as the file has it.
    """
    import onnx

    tables = _tables(onnx.load(original))
    errors = {}
    for name, (form, values_Vd) in stored_tables(quantised).items():
        rows, width = values_Vd.shape
        error = float(np.linalg.norm(values_Vd - tables[name]) / max(float(np.linalg.norm(tables[name])), 1e-30))
        errors[name] = {"format": form, "rows": rows, "width": width, "relative_error": error}
    return dict(sorted(errors.items(), key=lambda item: (-item[1]["rows"] * item[1]["width"], item[0])))


def _blocks_int4(table_Vd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, width = table_Vd.shape
    blocks = -(-width // BLOCK)
    padded = np.zeros((rows, blocks * BLOCK), np.float32)
    padded[:, :width] = table_Vd
    blocks_VNb = padded.reshape(rows, blocks, BLOCK)
    extreme = np.take_along_axis(blocks_VNb, np.abs(blocks_VNb).argmax(-1, keepdims=True), -1)
    least, scale = np.full(extreme.shape, np.inf, np.float32), np.ones(extreme.shape, np.float16)
    for share in SHARES:
        candidate = (extreme * np.float32(share / -8)).astype(np.float16)
        candidate = np.where(candidate == 0, np.float16(1), candidate)  # a block of zeros, or of values below float16
        error = np.square(_levels(blocks_VNb, candidate) * candidate.astype(np.float32) - blocks_VNb).sum(-1, keepdims=True)
        scale, least = np.where(error < least, candidate, scale), np.minimum(error, least)
    levels = (_levels(blocks_VNb, scale) + 8).astype(np.uint8).reshape(rows, -1)[:, :width]
    return levels[:, 0::2] | (levels[:, 1::2] << 4), scale[:, :, 0]


def _levels(blocks_VNb: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(blocks_VNb / scale.astype(np.float32)), -8, 7)


def _from_int4(packed: np.ndarray, scale: np.ndarray) -> np.ndarray:
    levels = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1).astype(np.float32) - 8
    return levels * np.repeat(scale.astype(np.float32), BLOCK, axis=1)[:, : levels.shape[1]]


def _tables(graph: Any) -> dict[str, np.ndarray]:
    """Returns the matrices in float32 that some Gather reads by rows."""
    from onnx import TensorProto, numpy_helper

    read = {node.input[0] for node in graph.graph.node if _reads_row(node)}
    return {
        each.name: numpy_helper.to_array(each)
        for each in graph.graph.initializer
        if each.name in read and len(each.dims) == 2 and each.data_type == TensorProto.FLOAT
    }


def _reads_row(node: Any) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return node.op_type == "Gather" and axis == 0


def _forms(tables: dict[str, np.ndarray], form: Format) -> dict[str, Format]:
    """Returns the format of each table."""
    largest = max((table.size for table in tables.values()), default=0)
    forms: dict[str, Format] = {}
    for name, table in tables.items():
        packs = table.size > largest / 2 and table.shape[1] % 2 == 0
        small = form if form != "int4" or packs else "int8"
        forms[name] = "fp32" if len(table) < LEAST_ROWS or table.size < LEAST_VALUES else small
    return forms


def _gather_fp32(node: Any) -> Iterator[Any]:
    node.name = node.name or f"{node.output[0]}.gather"
    yield node


def _gather_int8(node: Any) -> Iterator[Any]:
    from onnx import TensorProto, helper

    table, ids, out = node.input[0], node.input[1], node.output[0]
    yield helper.make_node("Gather", [f"{table}.int8", ids], [f"{out}.int8"], f"{out}.gather")
    yield helper.make_node("Cast", [f"{out}.int8"], [f"{out}.levels"], f"{out}.cast", to=TensorProto.FLOAT)
    yield helper.make_node("Gather", [f"{table}.scale", ids], [f"{out}.scale"], f"{out}.gather_scale")
    yield helper.make_node("Mul", [f"{out}.levels", f"{out}.scale"], [out], f"{out}.scaled")


def _gather_int4(node: Any) -> Iterator[Any]:
    from onnx import TensorProto, helper

    table, ids, out = node.input[0], node.input[1], node.output[0]
    sizes = {"bits": 4, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    inputs = [f"{table}.int4", ids, f"{table}.scale"]
    # float16 as the scales; half the bytes of float32 scales, at the same error.
    yield helper.make_node("GatherBlockQuantized", inputs, [f"{out}.half"], f"{out}.gather", domain=DOMAIN, **sizes)
    yield helper.make_node("Cast", [f"{out}.half"], [out], f"{out}.cast", to=TensorProto.FLOAT)


_GATHERS = {"int8": _gather_int8, "int4": _gather_int4, "fp32": _gather_fp32}
_PARTS = {"int8": rows_int8, "int4": blocks_int4}


def _replace_nodes(graph: Any, nodes: list[Any]) -> None:
    from onnx import helper

    copies = [type(node).FromString(node.SerializeToString(deterministic=True)) for node in nodes]
    del graph.graph.node[:]
    graph.graph.node.extend(copies)
    if any(node.domain == DOMAIN for node in copies) and DOMAIN not in {each.domain for each in graph.opset_import}:
        graph.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _replace_tables(graph: Any, tables: dict[str, np.ndarray], forms: dict[str, Format]) -> None:
    """Puts the parts of quantised tables in the places of the tables; a table that other nodes read too stays."""
    from onnx import numpy_helper

    read = {name for node in graph.graph.node for name in node.input}
    parts = []
    for name, form in forms.items():
        if form != "fp32":
            values, scale = _PARTS[form](tables[name])
            parts += [numpy_helper.from_array(values, f"{name}.{form}"), numpy_helper.from_array(scale, f"{name}.scale")]
    kept = [each for each in graph.graph.initializer if each.name in read] + parts
    copies = [type(each).FromString(each.SerializeToString(deterministic=True)) for each in kept]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(copies)
