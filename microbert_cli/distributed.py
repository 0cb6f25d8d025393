"""Several processes, one run: who this one is, and what they have to tell each other.

`torchrun` and `accelerate launch` start the same command W times and say so in the environment; what is then agreed on goes
through accelerate, and all of it is here. A process alone imports nothing for it and computes what it always did.

    rank r of W   0 is the main process: it alone writes and speaks, the others read what it wrote (one file system for all)
    rows          a batch is drawn for all; rank r computes its rows r, r + W, r + 2W ... (of like length, so of like work)
    losses        sum over this rank's rows / (count over all ranks / W): the mean over ranks is the loss of the whole batch,
                  and the mean of the ranks' gradients is its gradient (reduce.py)
"""

import ctypes
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from microbert_cli.errors import Exit, MbertError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


PATIENCE = timedelta(days=1)  # one process may tokenise a corpus or export a model while the others wait
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of <malloc.h>; values in bytes
Value = TypeVar("Value")


class ProcessLost(Exception):
    """Another process is gone; whatever made it go says so itself."""

    exit_code = Exit.TERMINATED


class _MainAlone:
    """Whether the main process works by itself for the moment, as if there were no others."""

    now = False


def keep_memory() -> None:
    """What is freed stays with this process, for the next step asks for as much again: fresh pages cost time (lab notes).

    A setting of glibc's allocator, for the rest of the process; elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def world_size() -> int:
    """How many processes share the work, W."""
    return 1 if _MainAlone.now else int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Which of them this is, 0 to W - 1."""
    return int(os.environ.get("RANK") or 0) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def local_rank() -> int:
    """Which of the processes on this machine this is: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK") or 0) if world_size() > 1 else 0


def initialise(device: str) -> None:
    """Meets the other processes, before the first thing said to them; raises M118 where a GPU would have two processes."""
    if world_size() == 1:
        return
    import torch

    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if 0 < gpus <= local_rank():
        raise _too_few_gpus(gpus)
    with _process_loss_as_error():
        _partial_state(cpu=not gpus)


def shutdown() -> None:
    """Says good-bye, so that no library warns that nobody did."""
    if world_size() > 1 and "accelerate" in sys.modules:
        _partial_state().destroy_process_group()


def require_single_process(command: str) -> None:
    """Raises M119 for a command that several processes would only do several times."""
    if world_size() > 1:
        raise MbertError(
            "M119",
            f"this is done by one process, and {world_size()} were started",
            where=command,
            allowed="Several processes: run, pretrain, finetune, general-distill, augment, task-distill, evaluate.",
            fix=f"Without torchrun or accelerate launch: {command}",
        )


def rank_batch(make: "Callable[[np.ndarray], dict[str, Tensor]]", rows: "np.ndarray") -> "dict[str, Tensor]":
    """`make` of this rank's part of a batch's rows.

    A batch of fewer rows than there are processes leaves some without: they get its first row, marked "idle", so that their
    models have something to run on; the objective counts nothing of it.
    """
    if world_size() == 1 or len(mine := rows[rank() :: world_size()]):
        return make(rows if world_size() == 1 else mine)
    import torch

    return {**make(rows[:1]), "idle": torch.ones(1)}


def rank_seed(*parts: object) -> int:
    """A seed for this rank alone, by a hash of `parts` and the rank."""
    return int.from_bytes(hashlib.sha256(repr((*parts, rank())).encode()).digest()[:4])


def all_reduce_sum(value: "Tensor") -> "Tensor":
    """The sum of a tensor over all processes."""
    return _all_reduce(value, "sum") if world_size() > 1 else value


def all_reduce_mean(numbers: dict[str, float]) -> dict[str, float]:
    """The mean of each number over all processes; all have the same names."""
    if world_size() == 1:
        return numbers
    import torch

    values = torch.tensor(list(numbers.values()), dtype=torch.float64, device=_partial_state().device)
    return dict(zip(numbers, _all_reduce(values, "mean").tolist(), strict=True))


def any_process(flag: bool) -> bool:
    """Whether the flag is up in any process."""
    return flag if world_size() == 1 else all_reduce_mean({"flag": float(flag)})["flag"] > 0


def average_gradients(parameters: Iterable["Tensor"]) -> None:
    """Every gradient becomes its mean over all processes, in one message of all of them and a flag for each.

    Not DistributedDataParallel: that averages where one `forward` of one wrapped module made one loss; here losses are made
    of a student, a projection and whatever else an objective owns, in several passes a step. A gradient that no process has
    stays None, so that the optimiser passes the parameter over as it does in one process.
    """
    if world_size() == 1:
        return
    import torch

    chosen = [p for p in parameters if p.requires_grad]
    flags = torch.tensor([float(p.grad is not None) for p in chosen], device=chosen[0].device)
    own = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in chosen]
    flat = _all_reduce(torch.cat([*own, flags]), "mean")
    *found, flags = flat.split([*(p.numel() for p in chosen), len(chosen)])
    for parameter, gradient, there in zip(chosen, found, flags.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter) if there else None


def broadcast_tensors(tensors: Sequence["Tensor"]) -> None:
    """Gives every process the main one's values, in place."""
    if world_size() == 1:
        return
    import torch
    from accelerate.utils import broadcast as broadcast_tensor

    with _process_loss_as_error(), torch.no_grad():
        _partial_state()
        for tensor in tensors:
            tensor.copy_(broadcast_tensor(tensor.detach().contiguous()))


def gather(found: list[Value]) -> list[Value]:
    """The lists of all processes, one after another; everywhere."""
    if world_size() == 1:
        return found
    from accelerate.utils import gather_object

    with _process_loss_as_error():
        _partial_state()
        gathered: list[Value] = gather_object(found)
        return gathered


def broadcast(value: Value) -> Value:
    """The main process's value, everywhere."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    with _process_loss_as_error():
        _partial_state()
        shared: list[Value] = broadcast_object_list([value])
        return shared[0]


def barrier() -> None:
    """Until all processes are here."""
    if world_size() > 1:
        with _process_loss_as_error():
            _partial_state().wait_for_everyone()


def on_main_process(work: Callable[[], Value]) -> Value:
    """What `work()` returns in the main process, which meanwhile is as if alone; the others wait for it."""
    if world_size() == 1:
        return work()
    result: Any = None
    if is_main():
        _MainAlone.now = True
        try:
            result = work()
        finally:
            _MainAlone.now = False
    return broadcast(result)


def _partial_state(cpu: bool | None = None) -> Any:
    """accelerate's knowledge of the processes; they meet at the first call."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available() if cpu is None else cpu, timeout=PATIENCE)


def _all_reduce(value: "Tensor", how: str) -> "Tensor":
    from accelerate.utils import reduce

    with _process_loss_as_error():
        _partial_state()
        reduced: Tensor = reduce(value.detach(), how)
        return reduced


@contextmanager
def _process_loss_as_error() -> Iterator[None]:
    """What gloo and NCCL say when a connection ends becomes `Lost`."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(f"the end of another process ({str(error).splitlines()[0][:120]})") from error


def _too_few_gpus(gpus: int) -> MbertError:
    return MbertError(
        "M118",
        f"there are more processes than GPUs on this machine: {gpus} GPUs, and this is process {local_rank()}, counted from 0",
        where="torchrun --nproc-per-node, accelerate launch --num_processes",
        allowed="One process a GPU; on CPUs as many as there are memory and cores for.",
        fix=f"torchrun --nproc-per-node {gpus} ..., or leave the GPUs alone: --device cpu",
    )
