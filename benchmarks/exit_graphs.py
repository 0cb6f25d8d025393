"""A model with exits in ONNX Runtime: a segment from exit to exit, one graph with nested `If`, the whole model without exits.

    python benchmarks/exit_graphs.py [--layers 6] [--width 256] [--length 32] [--rounds 30]

The graph with `If` is the one that `mbert export` writes, made of the same segments (models/exits/graph.py). A random model
answers random rows; its branches are drawn wide, so that rows leave at all exits. All three answer in turn, in batches of 1 and
of 32; medians. Prints a JSON object.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import BertConfig, BertForSequenceClassification

from microbert_cli.evaluation.benchmark import in_turn
from microbert_cli.models.capture import show_scores
from microbert_cli.models.exits.answers import answer_early
from microbert_cli.models.exits.build import ExitSettings, add_exits, exit_ends
from microbert_cli.models.exits.graph import EXITS_FILE, ExitSession, write_exits
from microbert_cli.models.exits.segments import write_segments
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
        write_exits(model, place / EXITS_FILE, inputs=INPUTS)
        segments = Segments(write_segments(model, place, inputs=INPUTS), exit_ends(model.config), sizes.threads)
        print(json.dumps({"sizes": vars(sizes), "milliseconds": measure(model, place, segments, sizes)}, indent=2))


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


def measure(model: Any, place: Path, segments: "Segments", sizes: argparse.Namespace) -> dict[str, Any]:
    """Returns the milliseconds of each way by batch size and speed; checks that they answer alike."""
    whole, nested = open_session(place / "model.onnx", sizes.threads), ExitSession(place, 0.0, threads=sizes.threads)
    results: dict[str, Any] = {}
    for rows in (1, 32):
        source = np.random.default_rng(rows)
        feeds = [
            {"input_ids": source.integers(5, 2000, (rows, sizes.length)), "attention_mask": np.ones((rows, sizes.length), int)}
            for _ in range(32 // rows + 3)
        ]
        for speed in SPEEDS:
            segments.speed = nested.speed = speed
            layers = []
            for feed in feeds:
                expected = answer_early(model, {name: torch.as_tensor(value) for name, value in feed.items()}, speed)
                layers += expected.layers.tolist()
                for logits in (segments.logits(feed), nested.logits(feed)):
                    assert np.abs(logits - expected.logits.detach().numpy()).max() < 1e-3
            calls = {
                "whole": lambda: [whole.run(["logits"], feed) for feed in feeds],  # noqa: B023 - run before the next round
                "segments": lambda: [segments.logits(feed) for feed in feeds],  # noqa: B023
                "if": lambda: [nested.logits(feed) for feed in feeds],  # noqa: B023
            }
            seconds = in_turn(calls, rounds=sizes.rounds)
            times = {name: round(1000 * statistics.median(each) / len(feeds), 3) for name, each in seconds.items()}
            results[f"batch {rows}, speed {speed:g}"] = {"layers": round(float(np.mean(layers)), 2), **times}
    return results


class Segments:
    """The segments, run one by one; between them the batch shrinks."""

    def __init__(self, files: list[Path], ends: list[int], threads: int):
        self.sessions = [open_session(file, threads) for file in files]
        self.names = [[each.name for each in session.get_inputs()] for session in self.sessions]
        self.ends, self.speed = ends, 0.0

    def logits(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        """Returns the logits [B, C]."""
        state, rows, answers = dict(feed), np.arange(len(feed["input_ids"])), np.empty((0, 0), np.float32)
        for session, names in zip(self.sessions, self.names, strict=True):
            *hidden, z = session.run(None, {name: state[name] for name in names})
            answers = answers if answers.size else np.empty_like(z)
            stays = self.unsure(z) if hidden else np.zeros(len(z), bool)
            answers[rows[~stays]] = z[~stays]
            rows = rows[stays]
            if not len(rows):
                break
            state = {"hidden": hidden[0][stays], "attention_mask": state["attention_mask"][stays]}
        return answers

    def unsure(self, z: np.ndarray) -> np.ndarray:
        """Returns which rows stay."""
        log_p = z - z.max(-1, keepdims=True)
        log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
        unsure: np.ndarray = -(np.exp(log_p) * log_p).sum(-1) / np.log(z.shape[-1]) > self.speed
        return unsure


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(4)
    main()
