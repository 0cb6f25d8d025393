"""Machines on paper: published rates of `machines/NAME.toml`, and what a job takes on so many of them.

    seconds = max(FLOPs / (rate x utilisation x devices),  kernels x launch_us)

The rate is that of dense matrix products in the precision of training. Utilisation and launch_us are assumptions, and a
plan made with them says so. Devices share every batch; what the kernels' launches take is not shared.
"""

from dataclasses import dataclass
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import model_shape
from microbert_cli.plan.work import Job, Workload
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.toml import read_toml

KERNELS = 25  # a layer and forward pass; an assumption
OPTIMISER = 10  # a step, fused; an assumption


@dataclass(frozen=True)
class Hardware:
    """`devices` equal accelerators; rates in 10^12 operations a second, memory of one in 10^9 bytes."""

    name: str
    title: str
    source: str
    memory_gb: float
    bf16_tflops: float
    fp32_tflops: float
    utilisation: float
    launch_us: float
    devices: int = 1

    def seconds(self, job: Job, load: Workload, *, precision: str = "fp32") -> float | None:
        """What a job takes on this load; None for an architecture whose FLOPs are not counted."""
        flops = job.flops(load)
        if flops is None:
            return None
        passes = 3 if job.kind == "train" else 1
        kernels = KERNELS * passes * model_shape(job.config).layers + (OPTIMISER if job.kind == "train" else 0)
        return max(self.products(flops, precision=precision), load.batches * kernels * self.launch_us / 1e6)

    def products(self, flops: float, *, precision: str = "fp32") -> float:
        """What products of matrices take that no launch of a kernel slows down."""
        rate = {"fp32": self.fp32_tflops, "bf16": self.bf16_tflops}[precision] * 1e12
        return flops / (rate * self.utilisation * self.devices)

    def assumptions(self, precision: str) -> str:
        """What the seconds rest on, in one line."""
        rate = {"fp32": self.fp32_tflops, "bf16": self.bf16_tflops}[precision]
        return (
            f"{self.devices} x {self.title}: {rate:g} TFLOP/s {precision} ({self.source}); assumed: {self.utilisation:.0%} of "
            f"it in use, {self.launch_us:g} us a kernel, batches shared evenly, work on the host as on this machine"
        )


def find_hardware(text: str, catalog: Catalog) -> Hardware:
    """`h200:8` as a machine: a name of the catalogue, and how many; raises M005 (no such machine), M116 (no such number)."""
    name, colon, number = text.partition(":")
    if colon and not (number.isdecimal() and int(number)):
        raise MbertError(
            "M116",
            f'"{number}" is no number of machines',
            where=f"--on {text}",
            allowed="A name, or a name, a colon and a whole number above 0.",
            fix=f"For instance: --on {name}:8",
        )
    values: dict[str, Any] = read_toml(catalog.path("machines", name, where="--on"), "machines")
    return Hardware(name=name, devices=int(number or 1), **_checked(values, name))


def _checked(values: dict[str, Any], name: str) -> dict[str, Any]:
    wanted = set(Hardware.__dataclass_fields__) - {"name", "devices"}
    if wrong := sorted(wanted ^ values.keys()):
        raise MbertError(
            "M034",
            f"the keys {', '.join(wrong)} are missing, or are none of a machine's",
            where=f"machine {name}",
            allowed=f"All of {', '.join(sorted(wanted))}.",
            fix="Start from one that is right: mbert copy machines h200",
        )
    return values
