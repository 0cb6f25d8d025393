"""A model with exits in ONNX Runtime: a segment from exit to exit, one graph with nested `If`, the whole model without exits.

    python benchmarks/exit_graphs.py [--layers 6] [--width 256] [--length 32] [--rounds 30]

The graph with `If` is made of the same segments: behind an exit `Compress` keeps the rows that are unsure, and where there are
any, the branch of the `If` runs the next segment on them; `ScatterND` puts its answers in the place of the exit's own. A random
model answers random rows; its branches are drawn wide, so that rows leave at all exits. All three answer in turn, in batches of
1 and of 32; medians. Prints a JSON object.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, compose, helper
from transformers import BertConfig, BertForSequenceClassification

from microbert_cli.evaluation.benchmark import in_turn
from microbert_cli.models.capture import show_scores
from microbert_cli.models.exits.answers import answer_early
from microbert_cli.models.exits.build import ExitSettings, add_exits
from microbert_cli.models.exits.segments import FOLDER, SegmentedClassifier, write_segments
from microbert_cli.models.load import LoadedModel
from microbert_cli.models.onnx import open_session, write_onnx

SPEEDS = (0.1, 0.3, 0.5, 0.8)
INPUTS = ("input_ids", "attention_mask")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    for name, default in (("layers", 6), ("width", 256), ("length", 32), ("rounds", 30), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    sizes = parser.parse_args()
    torch.set_num_threads(sizes.threads)
    model = random_model(sizes.layers, sizes.width)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_onnx(model, place / "model.onnx", inputs=INPUTS)
        write_segments(model, place, inputs=INPUTS)
        nest(place / FOLDER, place / "if.onnx")
        print(json.dumps({"sizes": vars(sizes), "milliseconds": measure(model, place, sizes)}, indent=2))


def random_model(layers: int, width: int) -> Any:
    """Returns a random BERT with linear branches whose answers are spread."""
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 32, intermediate_size=4 * width,
        vocab_size=2000, initializer_range=0.05,
    )  # fmt: skip
    plain = BertForSequenceClassification(config)
    show_scores(plain)
    model = add_exits(LoadedModel(plain, None, "random", []), ExitSettings(branch="linear"), seed=1).model.eval()
    with torch.no_grad():
        for branch in model.branches.values():
            branch.out.weight.normal_(std=2.5 * width**-0.5)
    return model


def measure(model: Any, place: Path, sizes: argparse.Namespace) -> dict[str, Any]:
    """Returns the milliseconds of each way by batch size and speed; checks that they answer alike."""
    whole, nested = open_session(place / "model.onnx", sizes.threads), open_session(place / "if.onnx", sizes.threads)
    segments = SegmentedClassifier(place, 0.0, threads=sizes.threads)
    results: dict[str, Any] = {}
    for rows in (1, 32):
        source = np.random.default_rng(rows)
        feeds = [
            {"input_ids": source.integers(5, 2000, (rows, sizes.length)), "attention_mask": np.ones((rows, sizes.length), int)}
            for _ in range(32 // rows + 3)
        ]
        for speed in SPEEDS:
            segments.run.speed = speed
            threshold = {"speed": np.array(speed, np.float32)}
            layers = []
            for feed in feeds:
                expected = answer_early(model, {name: torch.as_tensor(value) for name, value in feed.items()}, speed)
                layers += expected.layers.tolist()
                for logits in (segments.logits(feed), nested.run(["logits"], {**feed, **threshold})[0]):
                    assert np.abs(logits - expected.logits.detach().numpy()).max() < 1e-3
            calls = {
                "whole": lambda: [whole.run(["logits"], feed) for feed in feeds],  # noqa: B023 - run before the next round
                "segments": lambda: [segments.logits(feed) for feed in feeds],  # noqa: B023
                "if": lambda: [nested.run(["logits"], {**feed, **threshold}) for feed in feeds],  # noqa: B023
            }
            seconds = in_turn(calls, rounds=sizes.rounds)
            times = {name: round(1000 * statistics.median(each) / len(feeds), 3) for name, each in seconds.items()}
            results[f"batch {rows}, speed {speed:g}"] = {"layers": round(float(np.mean(layers)), 2), **times}
    return results


def nest(folder: Path, target: Path) -> None:
    """Writes the segments as one graph; inputs: those of the first segment, and `speed`, a number."""
    facts = json.loads((folder / "exits.json").read_text(encoding="utf-8"))
    models = [onnx.load(folder / name) for name in facts["segments"]]
    parts = [compose.add_prefix(model, f"s{number}_") for number, model in enumerate(models)]
    nodes, initializers, result = _from(parts, 0, {name: name for name in INPUTS})
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in INPUTS]
    inputs.append(helper.make_tensor_value_info("speed", TensorProto.FLOAT, []))
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "classes"])
    nodes.append(helper.make_node("Identity", [result], ["logits"]))
    graph = helper.make_graph(nodes, "exits", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=models[0].opset_import, ir_version=models[0].ir_version)
    target.write_bytes(model.SerializeToString())


def _from(parts: list[Any], number: int, given: dict[str, str]) -> tuple[list[Any], list[Any], str]:
    """Returns nodes and initializers of a segment and of all behind it, and the name of their answer."""
    graph = parts[number].graph
    renamed = {f"s{number}_{name}": source for name, source in given.items()}
    nodes = [helper.make_node("Identity", [renamed[each.name]], [each.name]) for each in graph.input]
    nodes += list(graph.node)
    initializers, outputs = list(graph.initializer), [each.name for each in graph.output]
    if number == len(parts) - 1:
        return nodes, initializers, outputs[0]
    hidden, logits = outputs
    p = f"e{number}_"
    inner_nodes, inner_initializers, answer = _from(parts, number + 1, {"hidden": f"{p}hidden", "attention_mask": f"{p}mask"})
    then = helper.make_graph(inner_nodes, f"{p}then", [], [_rows(answer)], inner_initializers)
    empty = [helper.make_node("Compress", [logits, f"{p}unsure"], [f"{p}none"], axis=0)]
    otherwise = helper.make_graph(empty, f"{p}else", [], [_rows(f"{p}none")])
    axis = helper.make_tensor(f"{p}axis", TensorProto.INT64, [1], [-1])
    classes = helper.make_tensor(f"{p}classes", TensorProto.FLOAT, [], [float(np.log(2))])
    zero = helper.make_tensor(f"{p}zero", TensorProto.INT64, [1], [0])
    make = helper.make_node
    nodes += [
        make("LogSoftmax", [logits], [f"{p}log"], axis=-1),
        make("Exp", [f"{p}log"], [f"{p}p"]),
        make("Mul", [f"{p}p", f"{p}log"], [f"{p}terms"]),
        make("ReduceSum", [f"{p}terms", f"{p}axis"], [f"{p}sum"], keepdims=0),
        make("Neg", [f"{p}sum"], [f"{p}entropy"]),
        make("Div", [f"{p}entropy", f"{p}classes"], [f"{p}U"]),
        make("Greater", [f"{p}U", "speed"], [f"{p}unsure"]),
        make("Compress", [hidden, f"{p}unsure"], [f"{p}hidden"], axis=0),
        make("Compress", [given["attention_mask"], f"{p}unsure"], [f"{p}mask"], axis=0),
        make("Cast", [f"{p}unsure"], [f"{p}ones"], to=TensorProto.INT64),
        make("ReduceMax", [f"{p}ones", f"{p}zero"], [f"{p}most"], keepdims=0),
        make("Cast", [f"{p}most"], [f"{p}any"], to=TensorProto.BOOL),
        make("If", [f"{p}any"], [f"{p}answer"], then_branch=then, else_branch=otherwise),
        make("NonZero", [f"{p}unsure"], [f"{p}where"]),
        make("Transpose", [f"{p}where"], [f"{p}places"], perm=[1, 0]),
        make("ScatterND", [logits, f"{p}places", f"{p}answer"], [f"{p}logits"]),
    ]
    return nodes, [*initializers, axis, classes, zero], f"{p}logits"


def _rows(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(4)
    main()
