"""Chooses the device and the number format that models run in.

Weights, gradients, optimiser and losses are float32 always; forward passes need not be.

    precision  fp32   everything in float32
               bf16   matrix products of student and teacher in bfloat16 (autocast): 8 bits of mantissa, the range of float32
               auto   bf16 on a GPU that computes in it, fp32 elsewhere
    tf32       lets a GPU round the inputs of float32 products to 10 bits of mantissa; never unless asked
    compile    torch.compile of the encoders, for any batch shape: minutes at the start, worth it on long runs on a GPU

Dev scores of a task, evaluation and export run in float32, as the kept model does; held-out losses of general distillation run
as its training does.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from microbert_cli import distributed
from microbert_cli.errors import MbertError


@dataclass(frozen=True)
class Precision:
    """How forward passes of a training run are computed; `precision` is fp32 or bf16."""

    precision: str = "fp32"
    compile: bool = False
    device: str = "cpu"

    def forward(self) -> AbstractContextManager[Any]:
        """Returns the context of a forward pass: autocast, or nothing."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)

    def place(self, model: Any) -> Any:
        """Moves the model to its device; compiles its encoder if so wished, and no head, which sees few positions."""
        model.to(self.device)
        if self.compile:
            getattr(model, "base_model", model).compile(dynamic=True)
        return model


PLAIN = Precision()


def choose_precision(device: str, *, precision: str = "auto", tf32: bool = False, compile: bool = False) -> Precision:
    """Returns the precision that a recipe's keys mean on this device; sets TF32 for the whole process."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    if precision == "auto":
        is_gpu = torch.device(device).type == "cuda"
        precision = "bf16" if is_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return Precision(precision, compile, device)


def pick_device(name: str) -> str:
    """Returns the device of a name, for `auto` each process's GPU where there is one. Raises M109 for an absent device."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{distributed.local_rank()}" if distributed.world_size() > 1 else "cuda"
    if name == "auto":
        return "cpu"
    try:
        # Only an allocation tells whether a device is there, and not merely of a known kind.
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise MbertError(
            "M109",
            f'there is no device "{name}" here: {str(error).splitlines()[0][:160]}',
            where="--device, MBERT_DEVICE or the key device",
            allowed=f"auto, cpu{', cuda' if torch.cuda.is_available() else ''}.",
            fix="Leave it out: auto takes a GPU where there is one.",
        ) from None
    return name


def move_to_device(answers: Any, name: str) -> None:
    """Moves a predictor's model to the device of that name; ONNX Runtime stays where it is."""
    if isinstance(getattr(answers, "model", None), torch.nn.Module):
        answers.model.to(pick_device(name))
