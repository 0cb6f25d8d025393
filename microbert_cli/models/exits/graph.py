"""A model with exits as one ONNX file: rows leave inside of it, and the batch shrinks there.

    DIR/onnx/model_exits.onnx    token ids and `speed`, a number -> logits [B, C], layers [B]: behind which each row left

Behind an exit `Compress` keeps the rows that are unsure; where there are any, the branch of an `If` runs the next segment on
them, and `ScatterND` puts its answers in the place of the exit's own: the graph is nested as deep as there are exits. The rule
is that of `answers.py`. It answers faster than segments that are run one by one from Python (benchmarks/exit_graphs.py,
docs/early-exit.md).
"""

import math
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from microbert_cli.models.architectures import input_names
from microbert_cli.models.exits.answers import ExitLogits, answer_early
from microbert_cli.models.exits.build import exit_ends
from microbert_cli.models.exits.segments import write_segments
from microbert_cli.models.exported.files import EXITS_FILE as EXITS_FILE
from microbert_cli.models.exported.files import require_onnx
from microbert_cli.models.exported.session import Batch, feed, open_session, thread_count
from microbert_cli.models.exported.session import ExitSession as ExitSession


def write_exits(model: Any, path: Path, *, inputs: Sequence[str] = (), batches: Iterable[Batch] = ()) -> tuple[float, float]:
    """Writes a model with exits as one graph; returns the seconds it took and the largest difference of logits.

    inputs   of the graph, beside `speed`; by default all that the model takes
    batches  on which all exits' logits are compared, and the graph's where all rows leave at the last or at the first exit
    Raises M510 (packages missing), M611 (the exporter cannot follow the architecture).
    """
    require_onnx("onnx", "onnxscript", "onnxruntime")
    started, names, batches = time.perf_counter(), tuple(inputs) or input_names(model), list(batches)
    with tempfile.TemporaryDirectory() as folder:
        segments = write_segments(model, Path(folder), inputs=names)
        _nest(segments, path, model.config, names)
        seconds = time.perf_counter() - started
        differences = [_difference_of_exits(segments, model, batch) for batch in batches]
    for speed in (0.0, 1.0) if batches else ():
        session = ExitSession(path, speed)
        differences += [_difference(session.logits(batch), _answers(model, batch, speed)) for batch in batches]
    return seconds, max(differences, default=0.0)


@torch.no_grad()
def _answers(model: Any, batch: Batch, speed: float) -> np.ndarray:
    inputs = {name: torch.as_tensor(value, device=model.device) for name, value in batch.items()}
    logits: np.ndarray = answer_early(model.eval(), inputs, speed).logits.cpu().numpy()
    return logits


def _difference_of_exits(segments: Sequence[Path], model: Any, batch: Batch) -> float:
    """Returns the largest difference of the logits of all exits, none of which any row leaves at."""
    expected = ExitLogits(model).logits({name: torch.as_tensor(value) for name, value in batch.items()})
    state, logits = feed(batch, ("input_ids", "attention_mask", "token_type_ids")), []
    for path in segments:
        session = open_session(path, thread_count())
        *hidden, exit_logits = session.run(None, {each.name: state[each.name] for each in session.get_inputs()})
        state |= {"hidden": hidden[0]} if hidden else {}
        logits.append(exit_logits)
    return _difference(np.concatenate(logits, axis=-1), expected)


def _difference(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left - right).max())


@dataclass(frozen=True)
class _Part:
    """A segment and all behind it: nodes, constants, and the names of logits and layers."""

    nodes: list[Any]
    constants: list[Any]
    logits: str
    layers: str


def _nest(segments: Sequence[Path], path: Path, config: Any, names: Sequence[str]) -> None:
    """Writes the segments as one graph."""
    import onnx
    from onnx import TensorProto, compose, helper

    models = [onnx.load(file) for file in segments]
    graphs = [compose.add_prefix(model, f"s{number}_").graph for number, model in enumerate(models)]
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    whole = _from(graphs, 0, {name: name for name in names}, config)
    ends = {whole.logits: "logits", whole.layers: "layers"}
    nodes = [
        helper.make_node("Equal", ["speed", "zero"], ["all_layers"]),
        *whole.nodes,
        *(helper.make_node("Identity", [inner], [outer]) for inner, outer in ends.items()),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in names]
    inputs.append(helper.make_tensor_value_info("speed", TensorProto.FLOAT, []))
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", config.num_labels]),
        helper.make_tensor_value_info("layers", TensorProto.INT64, ["batch"]),
    ]
    graph = helper.make_graph(nodes, "exits", inputs, outputs, [zero, *whole.constants])
    model = helper.make_model(graph, opset_imports=models[0].opset_import, ir_version=models[0].ir_version)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _from(graphs: Sequence[Any], number: int, given: Mapping[str, str], config: Any, before: str | None = None) -> _Part:
    """Returns a segment and all behind it.

    given   the names outside of what the segment takes;  before  of a score: that of the same rows at the exit before
    """
    from onnx import TensorProto, helper

    graph, layer = graphs[number], exit_ends(config)[number]
    node, p = helper.make_node, f"e{number}_"
    outer = {f"s{number}_{name}": source for name, source in given.items()}
    nodes = [node("Identity", [outer[each.name]], [each.name]) for each in graph.input] + list(graph.node)
    constants, outputs = list(graph.initializer), [each.name for each in graph.output]
    number_of_layer = helper.make_tensor("value", TensorProto.INT64, [1], [layer])
    nodes += [
        node("Shape", [outputs[-1]], [f"{p}rows"], end=1),
        node("ConstantOfShape", [f"{p}rows"], [f"{p}here"], value=number_of_layer),
    ]
    if number == len(graphs) - 1:
        return _Part(nodes, constants, outputs[0], f"{p}here")
    hidden, logits = outputs
    rule = _unsure(p, logits, before, config)
    kept = {"hidden": hidden, "attention_mask": given["attention_mask"], "before": logits}
    names = {name: f"{p}{name}" for name in kept}
    rest = {name: names[name] for name in ("hidden", "attention_mask")}
    inner = _from(graphs, number + 1, rest, config, names["before"])
    gone = {logits: f"{p}no_logits", f"{p}here": f"{p}no_layers"}
    nobody = [node("Compress", [name, f"{p}unsure"], [none], axis=0) for name, none in gone.items()]
    then = helper.make_graph(inner.nodes, f"{p}then", [], _values(inner.logits, inner.layers), inner.constants)
    otherwise = helper.make_graph(nobody, f"{p}else", [], _values(*gone.values()))
    answers = {logits: f"{p}logits", f"{p}here": f"{p}layers"}
    nodes += [
        *rule.nodes,
        *(node("Compress", [kept[name], f"{p}unsure"], [names[name]], axis=0) for name in kept),
        node("Cast", [f"{p}unsure"], [f"{p}ones"], to=TensorProto.INT64),
        node("ReduceMax", [f"{p}ones"], [f"{p}most"], keepdims=0),
        node("Cast", [f"{p}most"], [f"{p}any"], to=TensorProto.BOOL),
        node("If", [f"{p}any"], [f"{name}_rest" for name in answers.values()], then_branch=then, else_branch=otherwise),
        node("NonZero", [f"{p}unsure"], [f"{p}where"]),
        node("Transpose", [f"{p}where"], [f"{p}places"], perm=[1, 0]),
        *(node("ScatterND", [name, f"{p}places", f"{out}_rest"], [out]) for name, out in answers.items()),
    ]
    return _Part(nodes, constants + rule.constants, *answers.values())


def _unsure(p: str, logits: str, before: str | None, config: Any) -> _Part:
    """Returns the nodes that say which rows are less sure than the speed asks; all where that is 0."""
    from onnx import TensorProto, helper

    node = helper.make_node
    axis = helper.make_tensor(f"{p}axis", TensorProto.INT64, [1], [-1])
    unit = config.score_spread or 1.0 if config.num_labels == 1 else math.log(config.num_labels)
    scale = helper.make_tensor(f"{p}unit", TensorProto.FLOAT, [], [unit])
    entropy = [
        node("LogSoftmax", [logits], [f"{p}log"], axis=-1),
        node("Exp", [f"{p}log"], [f"{p}p"]),
        node("Mul", [f"{p}p", f"{p}log"], [f"{p}terms"]),
        node("ReduceSum", [f"{p}terms", f"{p}axis"], [f"{p}sum"], keepdims=0),
        node("Neg", [f"{p}sum"], [f"{p}entropy"]),
        node("Div", [f"{p}entropy", f"{p}unit"], [f"{p}share"]),
        node("Clip", [f"{p}share", "zero", f"{p}largest"], [f"{p}U"]),
    ]
    step = [
        node("Sub", [logits, before or logits], [f"{p}step"]),
        node("Abs", [f"{p}step"], [f"{p}size"]),
        node("Squeeze", [f"{p}size", f"{p}axis"], [f"{p}distance"]),
        node("Div", [f"{p}distance", f"{p}unit"], [f"{p}U"]),
    ]
    nodes = [*(entropy if config.num_labels > 1 else step), node("Greater", [f"{p}U", "speed"], [f"{p}less"])]
    if config.num_labels == 1 and before is None:  # U = 0, and behind the first exit no score leaves
        nodes += [node("Not", [f"{p}less"], [f"{p}not"]), node("Or", [f"{p}less", f"{p}not"], [f"{p}unsure"])]
    else:
        nodes.append(node("Or", [f"{p}less", "all_layers"], [f"{p}unsure"]))
    largest = helper.make_tensor(f"{p}largest", TensorProto.FLOAT, [], [1.0])
    return _Part(nodes, [axis, scale, largest], logits, "")


def _values(logits: str, layers: str) -> list[Any]:
    from onnx import TensorProto, helper

    kinds = {logits: TensorProto.FLOAT, layers: TensorProto.INT64}
    return [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
