"""Libraries without coverage's tracer, which measures nothing in them and makes each of their Python steps half as slow again.

Imports take seconds, and `torch.onnx.export` runs seconds of Python inside torch: both happen with the tracer set aside. Lines
of ours that the exporter calls count where tests call them.
"""

import functools
import gc
import sys
from collections.abc import Callable
from typing import Any


def without_tracer(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run without the tracer of this thread."""

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*given, **named)
        finally:
            sys.settrace(tracer)

    return call


@without_tracer
def load_libraries() -> None:
    """Imports what most tests need, and has the slowest calls of these libraries run without the tracer."""
    import datasets  # noqa: F401
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForMaskedLM  # noqa: F401

    torch.onnx.export = without_tracer(torch.onnx.export)
    gc.freeze()  # half a million objects of libraries, which no collection needs to look at again
