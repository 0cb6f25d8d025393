"""Computes the weights of LSTM nodes when a graph is written: a stack of both directions, gates in ONNX's order."""

from typing import Any


def fold_lstm_weights(program: Any) -> None:
    """Makes constants of what an exported program's LSTM nodes compute of its weights; one without such nodes stays as it is.

    ONNX Runtime quantises an LSTM only where its weights are stored as they are read. The exporter folds small tensors alone.
    """
    from onnxscript import optimizer

    if any(node.op_type == "LSTM" for node in program.model.graph):
        optimizer.fold_constants(program.model, input_size_limit=2**40, output_size_limit=2**40)
        optimizer.remove_unused_nodes(program.model)
