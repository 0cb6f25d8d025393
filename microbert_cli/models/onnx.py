"""A sequence classifier as an ONNX file: written, and quantised to int8. What the files are called and how they answer is in
`exported/`, which needs no torch.

ONNX Runtime quantises; it comes with `pip install "microbert-cli[onnx]"`.
"""

import contextlib
import io
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import input_names
from microbert_cli.models.exported.files import ONNX_FILES as ONNX_FILES
from microbert_cli.models.exported.files import require_onnx as require_onnx
from microbert_cli.models.exported.session import Batch as Batch
from microbert_cli.models.exported.session import OnnxClassifier as OnnxClassifier
from microbert_cli.models.exported.session import open_session as open_session
from microbert_cli.models.graphs.embeddings import Format, quantise_tables
from microbert_cli.models.graphs.first_token import first_token_on_top
from microbert_cli.models.graphs.layer_norm import separate_sums
from microbert_cli.models.graphs.products import Row, prepare_products
from microbert_cli.models.graphs.recurrent import fold_lstm_weights
from microbert_cli.models.size import count_parameters

BLOCK_OF_4_BITS = 32
LEVELS = 64  # the largest of ONNX Runtime's int8 with a reduced range
MOST_BYTES = 2**31 - 2**25  # one ONNX file is one protocol buffer, and those end at 2 GiB

LogitsFunction = Callable[[Batch], np.ndarray]


def torch_logits(model: Any) -> LogitsFunction:
    """A function from a batch to the logits [B, C] of a transformers classifier, as `OnnxClassifier.logits` is one."""
    names = input_names(model)
    model.eval()

    def logits(batch: Batch) -> np.ndarray:
        inputs = {name: torch.as_tensor(batch[name]).to(model.device) for name in names if name in batch}
        with torch.inference_mode():
            answer: np.ndarray = model(**inputs).logits.float().cpu().numpy()
        return answer

    return logits


def inputs_of_export(model: Any, tokenizer: Any) -> tuple[str, ...]:
    """Returns the inputs of an exported graph: those that the model takes, segments only where its tokenizer gives them.

    Segments that no tokenizer gives are zeros within the graph. The exported tokenizer gives exactly these.
    """
    names = input_names(model)
    return tuple(name for name in names if name != "token_type_ids" or name in tokenizer.model_input_names)


def write_onnx(model: Any, path: Path, *, attention: str = "eager", inputs: Sequence[str] = ()) -> float:
    """Writes a transformers classifier to ONNX in float32, batch size and length free; returns the seconds it took.

    The model comes back as it was. The same weights give the same bytes: traces of where the code lay are left out.
    `attention` is transformers' name for the way it is computed; eager gives the plainest graph of standard operators.
    `inputs` are the graph's; by default all that the model takes.
    Raises M510 (packages missing), M611 (too large for one file, or the exporter cannot follow the architecture).
    """
    start = time.perf_counter()
    names = tuple(inputs) or input_names(model)
    with first_token_on_top(model):
        write_outputs(_OnlyLogits(model, names), model, path, names, outputs=("logits",), attention=attention)
    return time.perf_counter() - start


def write_outputs(
    module: nn.Module, model: Any, path: Path, inputs: Sequence[str], *, outputs: Sequence[str], attention: str = "eager"
) -> None:
    """Writes outputs of a transformers model, which `module` computes of inputs by position, to ONNX as `write_onnx` does."""
    require_onnx("onnx", "onnxscript")
    _refuse_too_large(model)
    pad = getattr(model.config, "pad_token_id", None) or 0
    # Two rows of seven tokens, one padded: sizes that the exporter must not take for constants.
    ids_BT = torch.full((2, 7), 5 if pad != 5 else 6)
    ids_BT[1, 4:] = pad
    example = {
        "input_ids": ids_BT,
        "attention_mask": (ids_BT != pad).long(),
        "token_type_ids": torch.zeros_like(ids_BT),
    }
    try:
        with resting(model, attention):
            write_graph(module.eval(), path, {name: example[name] for name in inputs}, outputs=outputs)
    except Exception as error:
        raise not_exportable(model, _reason(error)) from error


def write_graph(module: nn.Module, path: Path, example: Mapping[str, Tensor], *, outputs: Sequence[str]) -> None:
    """Writes a module of positional inputs [B, T, ...] as an ONNX file, batch size and length free."""
    free = {0: "batch", 1: "length"}
    with silence():
        program = torch.onnx.export(
            module,
            tuple(example.values()),
            input_names=list(example),
            output_names=list(outputs),
            dynamic_shapes=(tuple(free for _ in example),),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # None only without dynamo
    fold_lstm_weights(program)
    graph = program.model_proto
    _forget_where_it_was_made(graph)
    separate_sums(graph)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def quantise(source: Path, target: Path, *, embeddings: Format = "int8", rows: Sequence[Row] = ()) -> float:
    """Writes the ONNX file `source` as dynamic int8 to `target`; returns the seconds it took.

    embeddings  the format of tables of embeddings, see graphs/embeddings.py
    rows        real rows, not padded, without labels; with any, outliers of activations are scaled down and weights rounded
                by what they do on these rows, see graphs/products.py: less than half the error

    Per column, and with 7 of the 8 bits: processors without VNNI add two 8-bit products in 16 bits and clip, so with
    all 8 bits a model would answer differently there. The price, on a random 4 x 312 model with logits of +-0.6: a
    largest difference to fp32 of 0.10 instead of 0.07; with one scale per matrix it would be 0.19.
    """
    require_onnx("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    start = time.perf_counter()
    graph = onnx.load(source)
    del graph.graph.value_info[:]  # the shapes that torch noted contradict those of the quantised graph
    if rows:
        prepare_products(graph, rows, levels=LEVELS)
    tables = quantise_tables(graph, embeddings)
    with silence():
        quantize_dynamic(
            graph,
            target,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=tables,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    return time.perf_counter() - start


def quantise_to_4_bits(source: Path, target: Path, *, embeddings: Format = "int8") -> float:
    """Writes the ONNX file `source` with the weights of its products in blocks of 4 bits; returns the seconds it took.

    A scale for every BLOCK_OF_4_BITS weights of a column, levels -8 to 7: com.microsoft.MatMulNBits, which ONNX Runtime and
    its build for browsers know. Activations are computed with 8 bits (accuracy_level 4). `embeddings` as for `quantise`.
    """
    require_onnx("onnx", "onnxruntime")
    import onnx

    start = time.perf_counter()
    graph = onnx.load(source)
    del graph.graph.value_info[:]
    with silence():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # sets up logging when it is loaded
        from onnxruntime.quantization.onnx_model import ONNXModel

        ONNXModel(graph).replace_gemm_with_matmul()  # the quantiser passes products by that have their bias with them
        tables = quantise_tables(graph, embeddings)
        quantiser = MatMulNBitsQuantizer(
            graph,
            bits=4,
            block_size=BLOCK_OF_4_BITS,
            is_symmetric=True,
            accuracy_level=4,
            nodes_to_exclude=list(tables),
        )
        quantiser.process()
    target.write_bytes(quantiser.model.model.SerializeToString(deterministic=True))
    return time.perf_counter() - start


class _OnlyLogits(nn.Module):
    """Takes its inputs by position and returns the logits alone."""

    def __init__(self, model: Any, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


def _refuse_too_large(model: Any) -> None:
    size = 4 * count_parameters(model).total
    if size > MOST_BYTES:
        raise not_exportable(model, f"its weights take {size / 2**30:.1f} GiB; one ONNX file holds less than 2")


def _reason(error: BaseException) -> str:
    """Returns the first line of what made the exporter fail, without colours: its own message names steps, no reason."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else repr(error)


def not_exportable(model: Any, why: str) -> MbertError:
    """Returns the error for a model that cannot be written as ONNX."""
    return MbertError(
        "M611",
        f"{type(model).__name__} cannot be written as ONNX: {why}",
        where="export",
        allowed="Encoders that take the same steps for every input can: BERT, DistilBERT, RoBERTa, ELECTRA.",
        fix="Leave ONNX out and use the safetensors directory: mbert export ... --set export.onnx=false",
    )


@contextlib.contextmanager
def resting(model: Any, attention: str) -> Iterator[None]:
    """Sets eval mode and that attention for a while; eager gives a plainer graph than sdpa, without NaN guards."""
    before, training = model.config._attn_implementation, model.training
    model.eval()
    model.set_attn_implementation(attention)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        model.train(training)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps exporter and quantiser quiet: they print, warn and log, and hang a handler on the root logger."""
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)


def _forget_where_it_was_made(model: Any) -> None:
    """Removes from every node the stack traces (with paths of this machine) that the exporter leaves there."""
    for node in [*model.graph.node, *(node for function in model.functions for node in function.node)]:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]:
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
