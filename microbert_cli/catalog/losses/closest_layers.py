"""Hidden-state distillation without a layer map: layers are matched by how close their states are, anew in every batch.

    E_mn = mean over real tokens t of  |W s_mt + b - h_nt|^2 / D          student layer m of M, teacher layer n of N

    each = "student"   L = sum over student layers m, from the lowest, of  E_m,c(m)
                       c(m) = the closest n above c(m-1), so low that every layer above m has one left:  n <= N - (M - m)
    each = "teacher"   L = sum over the chosen teacher layers n, from the highest, of  E_m(n),n
                       m(n) = the closest m that is not above the last match; `chosen` layers, evenly spaced, N among them

s_mt  student vector [d], h_nt teacher vector [D], W, b the map [d -> D] that the hidden-state losses share. Both matchings rise
with the layers; of equally close ones the lowest is taken. Gradients flow through the matched pairs alone.

Source: "teacher" is the free layer map of CoFi (Xia et al., ACL 2022), which matches four layers of twelve; "student" is this
toolkit's.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from microbert_cli import distributed
from microbert_cli.reduce import mean_by, squared_error

needs = {"layers", "mask"}
over = "batch"
projects = "hidden"
bounds = {"chosen": (1, 1e3)}


def closest_layers(
    student_layers_MBTd: Sequence[Tensor],
    teacher_layers_NBTD: Sequence[Tensor],
    mask_BT: Tensor,
    *,
    project: Callable[[Tensor], Tensor],
    each: Literal["student", "teacher"] = "student",
    chosen: int = 4,
    normalisation: str = "masked",
) -> Tensor:
    """Returns the batch's term; see the module's formulas."""
    mapped = [project(student_BTd) for student_BTd in student_layers_MBTd]

    def distance(m: int, n: int) -> Tensor:
        return mean_by(normalisation, squared_error(mapped[m], teacher_layers_NBTD[n]), mask_BT)

    depths = len(mapped), len(teacher_layers_NBTD)
    with torch.no_grad():
        numbers = {f"{m} {n}": float(distance(m, n)) for m in range(depths[0]) for n in range(depths[1])}
    # The processes of one run have other rows each, and must match alike.
    values = list(distributed.all_reduce_mean(numbers).values())
    distances_MN = [values[m * depths[1] : (m + 1) * depths[1]] for m in range(depths[0])]
    pairs = matched_by_student(distances_MN) if each == "student" else matched_by_teacher(distances_MN, chosen)
    return torch.stack([distance(m, n) for m, n in pairs]).sum()


def matched_by_student(distances_MN: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Returns (m, n) for every student layer, both from 0."""
    M, N = len(distances_MN), len(distances_MN[0])
    pairs: list[tuple[int, int]] = []
    for m, row in enumerate(distances_MN):
        lowest = pairs[-1][1] + 1 if pairs else 0
        pairs.append((m, min(range(lowest, N - (M - 1 - m)), key=row.__getitem__)))
    return pairs


def matched_by_teacher(distances_MN: Sequence[Sequence[float]], chosen: int) -> list[tuple[int, int]]:
    """Returns (m, n) for every chosen teacher layer, from the highest down, both from 0."""
    M, N = len(distances_MN), len(distances_MN[0])
    count = min(chosen, N)
    layers = [-(-N * number // count) - 1 for number in range(count, 0, -1)]
    pairs: list[tuple[int, int]] = []
    for n in layers:
        highest = pairs[-1][0] if pairs else M - 1
        pairs.append((min(range(highest + 1), key=lambda m: distances_MN[m][n]), n))
    return pairs
