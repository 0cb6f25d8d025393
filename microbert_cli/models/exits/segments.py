"""A model with exits as ONNX files, one from each exit to the next, and the code that runs them in turn.

    DIR/exits/segment-01.onnx   token ids -> hidden states behind the first exit, its logits
    DIR/exits/segment-02.onnx   hidden states, mask -> those behind the next exit, its logits
    ...                         the last one: hidden states, mask -> the classifier's own logits
    DIR/exits/exits.json        files, layers, speed, and the unit of a score
    DIR/exits/run.py            numpy and onnxruntime alone

A segment is the whole classifier, whose layers below hand on the hidden states that come in, and whose layers above are left
out; the exporter drops what is then not read. Between segments the batch shrinks, which one graph with an operator `If` cannot
do with less copying: measured in benchmarks/exit_graphs.py, docs/early-exit.md.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import input_names, model_shape
from microbert_cli.models.capture import removable_layers, replaced
from microbert_cli.models.graphs.first_token import first_token_on_top
from microbert_cli.models.onnx import not_exportable, require_onnx, resting, write_graph

FOLDER, FACTS, RUNNER = "exits", "exits.json", "run.py"
ROWS, LENGTH, TOKEN = 2, 7, 5  # of the example that is traced: sizes that the exporter must not take for constants


def write_segments(model: Any, directory: Path, *, inputs: Sequence[str] = (), speed: float = 0.0) -> float:
    """Writes the segments of a model with exits into DIRECTORY/exits, and the code that runs them; returns the seconds it took.

    inputs  of the first segment; by default all that the model takes
    Raises M510 (packages missing), M611 (the exporter cannot follow the architecture).
    """
    require_onnx("onnx", "onnxscript")
    started = time.perf_counter()
    folder = directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    ends = [*map(int, model.config.exit_layers), model_shape(model.config).layers]
    files = [f"segment-{number:02d}.onnx" for number in range(1, len(ends) + 1)]
    names = tuple(inputs) or input_names(model)
    try:
        with torch.no_grad(), resting(model, "eager"):
            for file, first, last in zip(files, [0, *ends[:-1]], ends, strict=True):
                _write_segment(model, folder / file, first, last, names)
    except Exception as error:
        raise not_exportable(model, f"segment to layer {last}: {type(error).__name__}: {error}") from error
    facts = {"segments": files, "layers": ends, "speed": speed, "spread": model.config.score_spread}
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("runner.py"), folder / RUNNER)
    return time.perf_counter() - started


def _write_segment(model: Any, path: Path, first: int, last: int, names: Sequence[str]) -> None:
    """Writes the layers from `first` to below `last`, numbered from 0, with the exit behind them."""
    layers, is_top = removable_layers(model.base_model), last == model_shape(model.config).layers
    held = _Held()
    width = model_shape(model.config).width
    ids_BT = torch.full((ROWS, LENGTH), TOKEN)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, LENGTH // 2 :] = 0
    tokens = {"input_ids": ids_BT, "attention_mask": mask_BT, "token_type_ids": torch.zeros_like(ids_BT)}
    example = {name: tokens[name] for name in names}
    if first:
        example = {"hidden": torch.randn(ROWS, LENGTH, width), "attention_mask": mask_BT}
    with first_token_on_top(model) if is_top else nullcontext():
        substitutes: dict[int, nn.Module] = {index: _Given(layers[index], held) for index in range(first)}
        if not is_top:
            substitutes[last - 1] = _Keeping(layers[last - 1], held)
            substitutes |= {index: _Given(layers[index], held) for index in range(last, len(layers))}
        with replaced(layers, substitutes):
            segment = _Segment(model, held, tuple(example), branch=None if is_top else model.branches[str(last)])
            write_graph(segment.eval(), path, example, outputs=("logits",) if is_top else ("hidden_states", "logits"))


class _Held:
    """The hidden states that a segment begins or ends with."""

    value: Any = None


class _Given(nn.Module):
    """Stands for a layer of another segment: hands on the hidden states that are held."""

    def __init__(self, layer: nn.Module, held: _Held):
        super().__init__()
        self.layer, self.held = layer, held

    def forward(self, hidden_BTd: Tensor, *_: Any, **__: Any) -> Tensor:
        held: Tensor = self.held.value
        return held


class _Keeping(nn.Module):
    """A segment's last layer, whose output is held."""

    def __init__(self, layer: nn.Module, held: _Held):
        super().__init__()
        self.layer, self.held = layer, held

    def forward(self, hidden_BTd: Tensor, *arguments: Any, **options: Any) -> Tensor:
        hidden: Tensor = self.layer(hidden_BTd, *arguments, **options)
        self.held.value = hidden
        return hidden


class _Segment(nn.Module):
    """Takes token ids, or hidden states, by position; returns hidden states and logits, the last segment logits alone."""

    def __init__(self, model: Any, held: _Held, names: tuple[str, ...], *, branch: nn.Module | None):
        super().__init__()
        self.backbone, self.branch = model.backbone, branch
        self.held, self.names = held, names
        shape = model_shape(model.config)
        self.embedding = shape.embedding

    def forward(self, *inputs: Tensor) -> Any:
        given = dict(zip(self.names, inputs, strict=True))
        if (hidden := given.pop("hidden", None)) is not None:
            self.held.value = hidden
            # Read by nothing, since the first layer's place hands on what is held.
            given["inputs_embeds"] = hidden.new_zeros(hidden.shape[0], hidden.shape[1], self.embedding)
        logits = self.backbone(**given).logits
        if self.branch is None:
            return logits
        return self.held.value, self.branch(self.held.value, given.get("attention_mask"))


class SegmentedClassifier:
    """An exported model with exits that answers segment by segment; `logits` as those of `onnx.OnnxClassifier`.

    Raises M234 where the export has no segments, M333 for a file that cannot be read.
    """

    def __init__(self, directory: Path, speed: float, *, threads: int | None = None):
        require_onnx("onnxruntime")
        from microbert_cli.models.exits.runner import EarlyExit

        if not (directory / FOLDER / FACTS).is_file():
            raise _no_segments(directory)
        try:
            self.run = EarlyExit(directory / FOLDER, speed, threads or torch.get_num_threads())
        except Exception as error:  # a damaged file fails in more ways than can be listed
            raise _unreadable(directory / FOLDER, error) from error
        self.names = {each.name for each in self.run.segments[0].get_inputs()}

    def answer(self, batch: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits [B, C] and layers [B]."""
        return self.run(**self._feed(batch))

    def logits(self, batch: Mapping[str, Any]) -> np.ndarray:
        """Returns the logits [B, C]."""
        return self.answer(batch)[0]

    def every_exit(self, batch: Mapping[str, Any]) -> np.ndarray:
        """Returns the logits of all exits [B, exits x C], as `answers.ExitLogits` does; no row leaves."""
        state, logits = self._feed(batch), []
        for session in self.run.segments:
            *hidden, z = session.run(None, {each.name: state[each.name] for each in session.get_inputs()})
            state |= {"hidden": hidden[0]} if hidden else {}
            logits.append(z)
        return np.concatenate(logits, axis=-1)

    def _feed(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        feed = {name: np.asarray(batch[name], dtype=np.int64) for name in self.names if name in batch}
        if "token_type_ids" in self.names:
            feed.setdefault("token_type_ids", np.zeros_like(feed["input_ids"]))
        return feed


def check_segments(precision: str, *, where: str) -> None:
    """Raises M158 for a file of an export that has no segments: they are written in fp32."""
    if precision != "fp32":
        raise MbertError(
            "M158",
            f"the {precision} file answers whole, and rows are to leave early",
            where=where,
            allowed="The export's directory, whose segments are fp32; any of its files without a speed.",
            fix="Name the export's directory in its place, or leave the speed out",
        )


def _no_segments(directory: Path) -> MbertError:
    return MbertError(
        "M234",
        "this export answers whole: it has no segments, between which rows could leave",
        where=f"{directory / FOLDER}",
        allowed="An export of a model with exits, which has the folder exits/; or its safetensors: evaluate.precision torch.",
        fix=f"Leave the speed out, or export the model with exits again: mbert export MODEL -o {directory} --force",
    )


def _unreadable(folder: Path, error: Exception) -> MbertError:
    return MbertError(
        "M333",
        f"ONNX Runtime cannot read these segments: {str(error).splitlines()[0]}",
        where=str(folder),
        allowed="Whole ONNX files and their exits.json; a copy that was cut short is the usual cause.",
        fix=f"Export it again: mbert export MODEL -o {folder.parent} --force",
    )
