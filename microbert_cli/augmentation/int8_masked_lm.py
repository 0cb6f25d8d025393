"""A masked language model whose encoder answers in int8: its ONNX graph, written once and kept in the cache.

Activations are quantised with one scale for all that the graph is given at once, so it is given one query at a time, without
padding: what it answers depends on that query alone. Short queries lose little by it, since int8 weights are read fast. The
head is the model's own, in float32, of many queries at once.

The candidates are not those of float32: see the lab notes for how many are the same.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from microbert_cli.data.examples import Examples
from microbert_cli.data.tokenized import tokenize_examples
from microbert_cli.models.architectures import positions_of
from microbert_cli.models.capture import ModelOutputs, OutputRequest, vocabulary_logits
from microbert_cli.models.exported.session import feed, open_session, thread_count
from microbert_cli.models.graphs.products import evenly
from microbert_cli.models.onnx import inputs_of_export, quantise, require_onnx, write_outputs
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import cache
from microbert_cli.runs.atomic import digest

FORMAT = 1  # of the file in the cache
KIND = "int8-masked-lm"
STATES = "states"


class Int8MaskedLm:
    """The model, whose encoder answers in int8; see `look`. All else is the model's own.

    weights  identifies the model's weights in the cache
    rows     texts it will be asked about, some of which set the scales of activations; no labels
    Raises M510 (ONNX packages missing), M611 (no ONNX for this architecture).
    """

    def __init__(self, model: Any, tokenizer: Any, *, weights: str, rows: Examples, reporter: Reporter = SILENT):
        require_onnx("onnx", "onnxscript", "onnxruntime")
        self._model, self._names = model, inputs_of_export(model, tokenizer)
        length = min(positions_of(model.config) or 512, tokenizer.model_max_length)
        encoded = tokenize_examples(rows.take(evenly(len(rows))), tokenizer, int(length))
        calibrating = [encoded.row(index) for index in range(len(encoded))]
        key = digest({"weights": weights, "torch": torch.__version__, "rows": calibrating, "format": FORMAT})
        with cache.entry(KIND, key, reporter=reporter) as (directory, ready):
            path = directory / "encoder.int8.onnx"
            if not ready:
                reporter.note(f"augment: an int8 copy of the masked language model is written to {directory}")
                plain = directory / "encoder.onnx"
                write_outputs(_OnlyStates(model.base_model, self._names), model, plain, self._names, outputs=(STATES,))
                quantise(plain, path, rows=calibrating)
                plain.unlink()
            self._session = open_session(path, thread_count())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def look(self, batch: Mapping[str, Tensor], request: OutputRequest) -> ModelOutputs:
        """Returns the vocabulary's logits [P, V] at `token_positions`; they are all that augmentation asks for."""
        assert request == OutputRequest(token_logits=True)
        width = batch["input_ids"].shape[1]
        states: list[Tensor] = []
        for position in batch["token_positions"].tolist():
            row, column = divmod(position, width)
            real = int(batch["attention_mask"][row].sum())
            alone = {name: values[row : row + 1, :real] for name, values in batch.items() if values.dim() == 2}
            states.append(torch.from_numpy(self._session.run([STATES], feed(alone, self._names))[0][0, column]))
        return ModelOutputs(token_logits=vocabulary_logits(self._model, torch.stack(states)))


class _OnlyStates(nn.Module):
    """Takes its inputs by position and returns the encoder's last hidden states alone."""

    def __init__(self, encoder: Any, names: tuple[str, ...]):
        super().__init__()
        self.encoder, self.names = encoder, names

    def forward(self, *inputs: Tensor) -> Tensor:
        states: Tensor = self.encoder(**dict(zip(self.names, inputs, strict=True))).last_hidden_state
        return states
