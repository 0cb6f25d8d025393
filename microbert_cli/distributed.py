"""Several processes that share one run: their ranks, their part of each batch, and what they exchange.

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
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from microbert_cli.errors import Exit, MbertError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


PATIENCE = timedelta(days=1)  # one process may tokenise a corpus or export a model while the others wait
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of <malloc.h>; values in bytes
Value = TypeVar("Value")


class ProcessLost(Exception):
    """Another process is gone; that process reports the reason."""

    exit_code = Exit.TERMINATED


class _MainAlone:
    """Whether the main process works alone for the moment, as if there were no others."""

    now = False


def keep_memory() -> None:
    """Keeps freed memory in this process, since the next step asks for as much again and fresh pages cost time (lab notes).

    A setting of glibc's allocator, for the rest of the process; elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


class _Held:
    """What this process needs: the most that it held after a first step, or after the first one since memory was given back.

    MORE, SLACK  above which share of it, and by how many bytes at least, memory is given back again
    """

    MORE, SLACK = 0.2, 2**28
    needed, is_fresh = 0, True


def release_memory() -> None:
    """Gives free memory back to the system where this process holds much more than at first; called between two steps.

    Batches of many shapes ask for tensors of many sizes, and small things that stay, such as prepared kernels, come to lie
    between them: free pieces are then too small for what comes next, and memory grows (lab notes). What is needed again has to
    be fetched again, so that this is done seldom. Of Linux with glibc; elsewhere nothing happens.
    """
    if not (held := _resident_bytes()):
        return
    if _Held.is_fresh:
        _Held.needed, _Held.is_fresh = max(_Held.needed, held), False
    elif held - _Held.needed > max(_Held.MORE * _Held.needed, _Held.SLACK) and (
        trim := getattr(ctypes.CDLL(None), "malloc_trim", None)
    ):
        trim(0)
        _Held.is_fresh = True


def _resident_bytes() -> int:
    """Returns the memory of this process that is no file's; 0 where the system does not say."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_bytes().split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def world_size() -> int:
    """Returns the number of processes, W."""
    return 1 if _MainAlone.now else int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Returns the number of this process, 0 to W - 1."""
    return int(os.environ.get("RANK") or 0) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes and reports."""
    return rank() == 0


def local_rank() -> int:
    """Returns the number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK") or 0) if world_size() > 1 else 0


def initialise(device: str) -> None:
    """Connects the processes; raises M118 where a GPU would have two of them."""
    if world_size() == 1:
        return
    import torch

    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if 0 < gpus <= local_rank():
        raise _too_few_gpus(gpus)
    with _process_loss_as_error():
        _partial_state(cpu=not gpus)


def shutdown() -> None:
    """Closes the process group, so that no library warns of an open one."""
    if world_size() > 1 and "accelerate" in sys.modules:
        _partial_state().destroy_process_group()


def require_single_process(command: str) -> None:
    """Raises M119 where several processes were started for a command that one process does."""
    if world_size() > 1:
        raise MbertError(
            "M119",
            f"this is done by one process, and {world_size()} were started",
            where=command,
            allowed="Several processes: run, pretrain, finetune, general-distill, augment, task-distill, evaluate.",
            fix=f"Without torchrun or accelerate launch: {command}",
        )


def rank_batch(make: "Callable[[np.ndarray], dict[str, Tensor]]", rows: "np.ndarray") -> "dict[str, Tensor]":
    """Calls `make` with this rank's rows of a batch.

    A batch of fewer rows than there are processes leaves some without: they get its first row, marked "idle", so that their
    models have something to run on; the objective counts nothing of it.
    """
    if world_size() == 1 or len(mine := rows[rank() :: world_size()]):
        return make(rows if world_size() == 1 else mine)
    import torch

    return {**make(rows[:1]), "idle": torch.ones(1)}


def rank_seed(*parts: object) -> int:
    """Returns a seed for this rank alone, by a hash of `parts` and the rank."""
    return int.from_bytes(hashlib.sha256(repr((*parts, rank())).encode()).digest()[:4])


def all_reduce_sum(value: "Tensor") -> "Tensor":
    """Returns the sum of a tensor over all processes."""
    return _all_reduce(value, "sum") if world_size() > 1 else value


def all_reduce_mean(numbers: dict[str, float]) -> dict[str, float]:
    """Returns the mean of each number over all processes, which all have the same names."""
    if world_size() == 1:
        return numbers
    import torch

    values = torch.tensor(list(numbers.values()), dtype=torch.float64, device=_partial_state().device)
    return dict(zip(numbers, _all_reduce(values, "mean").tolist(), strict=True))


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return flag if world_size() == 1 else all_reduce_mean({"flag": float(flag)})["flag"] > 0


def average_gradients(parameters: Iterable["Tensor"]) -> None:
    """Replaces every gradient by its mean over all processes, in one message of all gradients and a flag for each.

    Not DistributedDataParallel: that averages where one `forward` of one wrapped module made one loss; here losses are made
    of a student, a projection and whatever else an objective owns, in several passes a step. A gradient that no process has
    stays None, so that the optimiser passes the parameter over as it does in one process.
    """
    if world_size() == 1:
        return
    import torch

    parameters_to_average = [p for p in parameters if p.requires_grad]
    # Ranks may differ in which parameters have a gradient, but a reduction needs one shape everywhere.
    flags = torch.tensor([float(p.grad is not None) for p in parameters_to_average], device=parameters_to_average[0].device)
    gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters_to_average]
    flat = _all_reduce(torch.cat([*gradients, flags]), "mean")
    *means, flags = flat.split([*(p.numel() for p in parameters_to_average), len(parameters_to_average)])
    for parameter, gradient, has_gradient in zip(parameters_to_average, means, flags.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter) if has_gradient else None


def broadcast_tensors(tensors: Sequence["Tensor"]) -> None:
    """Copies the main process's values into the tensors of every process."""
    if world_size() == 1:
        return
    import torch
    from accelerate.utils import broadcast as broadcast_tensor

    with _process_loss_as_error(), torch.no_grad():
        _partial_state()
        for tensor in tensors:
            tensor.copy_(broadcast_tensor(tensor.detach().contiguous()))


def gather(items: list[Value]) -> list[Value]:
    """Returns the lists of all processes, concatenated by rank, in every process."""
    if world_size() == 1:
        return items
    from accelerate.utils import gather_object

    with _process_loss_as_error():
        _partial_state()
        gathered: list[Value] = gather_object(items)
        return gathered


def broadcast(value: Value) -> Value:
    """Returns the main process's value in every process."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    with _process_loss_as_error():
        _partial_state()
        shared: list[Value] = broadcast_object_list([value])
        return shared[0]


def barrier() -> None:
    """Waits for all processes."""
    if world_size() > 1:
        with _process_loss_as_error():
            _partial_state().wait_for_everyone()


def on_main_process(work: Callable[[], Value]) -> Value:
    """Runs `work` in the main process, as if it were alone, and returns its result in every process."""
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
    """Returns accelerate's state; the first call connects the processes."""
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
    """Turns the errors of gloo and NCCL about a closed connection into `ProcessLost`."""
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
