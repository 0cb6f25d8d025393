"""Chooses the device and the number format that models run in.

Weights, gradients, optimiser and losses are float32 always; forward passes need not be.

    precision  fp32   everything in float32
               bf16   matrix products of student and teacher in bfloat16 (autocast): 8 bits of mantissa, the range of float32
               auto   bf16 on a GPU or a processor that multiplies in it, fp32 elsewhere
    tf32       lets a GPU round the inputs of float32 products to 10 bits of mantissa; never unless asked
    compile    torch.compile of the encoders, for any batch shape: minutes at the start, worth it on long runs on a GPU

Dev scores of a task, evaluation and export run in float32, as the kept model does; held-out losses of general distillation run
as its training does.

What `auto` is depends on the machine, so it is settled once for an output: work that is resumed goes on as it was begun, and
what was finished elsewhere stays up to date.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from microbert_cli import distributed
from microbert_cli.errors import MbertError
from microbert_cli.recipe.schema import Recipe
from microbert_cli.reporter import Reporter
from microbert_cli.runs.output_dir import OutputDirectory

TITLES = {"fp32": "float32", "bf16": "bfloat16"}
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # of oneDNN, which multiplies bfloat16 on processors
WITH_BFLOAT16 = ("BF16", "FP16", "AMX", "AVX10", "DEFAULT", "ALL")  # what names of instruction sets with such products contain


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
    return Precision(auto_precision(device) if precision == "auto" else precision, compile, device)


def auto_precision(device: str) -> str:
    """Returns what `auto` is on a device: bf16 where that is faster; scores are level (docs/lab-notes.md)."""
    return "bf16" if bfloat16_by(device) else "fp32"


def bfloat16_by(device: str) -> str:
    """Returns what multiplies matrices in bfloat16 on a device, empty where nothing does but slowly, by float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return "this GPU" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    instructions = _processor_instructions() if kind == "cpu" else ""
    return instructions and f"this processor ({instructions})"


def _processor_instructions() -> str:
    limit = next((os.environ[name].upper() for name in LIMITS if os.environ.get(name)), "")
    if not torch.backends.mkldnn.is_available() or (limit and not any(name in limit for name in WITH_BFLOAT16)):
        return ""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512 BF16" if torch.cpu._is_avx512_bf16_supported() else ""


def settle_precision(recipe: Recipe, work: OutputDirectory, reporter: Reporter) -> Recipe:
    """Returns the recipe that a stage trains by, in which `precision` is no longer auto, and says and records which it is.

    Work that goes on keeps what it was begun with, also on a machine where auto is something else.
    """

    def settle() -> tuple[str, str]:
        device = pick_device(recipe.device)
        here = choose_precision(device, **recipe.numerics()).precision
        if work.begun is None:  # by a version in which auto was fp32 on every processor
            before = here if recipe.precision != "auto" or device != "cpu" else "fp32"
        else:
            before = work.begun.get("precision", here)
        work.remember(precision=before)
        if before != here:
            return before, f"as this was begun, where a new run would take {TITLES[here]}"
        if recipe.precision != "auto":
            return here, "as the recipe says"
        if here == "bf16":
            return here, f"which {bfloat16_by(device)} multiplies in"
        return here, "since nothing here multiplies in bfloat16"

    precision, why = distributed.on_main_process(settle)
    reporter.note(f"precision: {TITLES[precision]}, {why}")
    return recipe.model_copy(update={"precision": precision})


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
