"""Means shared by the losses: padding never enters numerator or denominator, and a count is one over ALL processes.

    mean = sum here / denominator,   denominator = count everywhere / number of processes

The mean of that over the processes is the mean over the whole batch, however its rows were dealt out: a mean of the
processes' own means would give a token in a sparse share more weight than one in a full share. Every loss takes its
denominators from here, one of your own too. A process alone divides by its own count.
"""

from typing import TYPE_CHECKING

from microbert_cli import distributed

if TYPE_CHECKING:
    from torch import Tensor


UNSEEN = -1e9  # its exponential is 0, and unlike with -inf the difference of two is a number


def squared_error(student: "Tensor", teacher: "Tensor") -> "Tensor":
    """(student - teacher)^2 of every element, in float32; one pass each way over what may be the largest tensors of a step."""
    from torch.nn.functional import mse_loss

    return mse_loss(student.float(), teacher.float(), reduction="none")


def mean_over_tokens(values_BTD: "Tensor", mask_BT: "Tensor") -> "Tensor":
    """sum over real tokens of mean_D(values) / number of real tokens.

    values_BTD  any per-token quantity; mask_BT  1 = real token, 0 = padding.
    """
    mask_BT = mask_BT.to(values_BTD.dtype)
    return (values_BTD.mean(-1) * mask_BT).sum() / denominator(mask_BT.sum())


def mean_over_pairs(values_BAQK: "Tensor", mask_BT: "Tensor") -> "Tensor":
    """sum over heads and real query-key pairs of values / (heads x number of real pairs).

    values_BAQK  any quantity per head A, query Q and key K; mask_BT  1 = real token.
    """
    mask_BT = mask_BT.to(values_BAQK.dtype)
    pairs_BQK = mask_BT[:, :, None] * mask_BT[:, None, :]
    return (values_BAQK.mean(1) * pairs_BQK).sum() / denominator(pairs_BQK.sum())


def divergence_of_attention(
    student_BAQK: "Tensor", teacher_BAQK: "Tensor", mask_BT: "Tensor", *, entropy: bool = False
) -> "Tensor":
    """KL of the teacher's attention from the student's, over real tokens alone.

        mean over heads a and real queries q of  sum_k p_aqk log(p_aqk / s_aqk),     p, s = softmax over the real keys

    student_BAQK, teacher_BAQK  scores before softmax, of whatever is attended to whatever;  mask_BT  1 = real token.
    entropy  the cross-entropy - sum_k p_aqk log s_aqk instead: the teacher's entropy more
    Padded keys get no probability, padded queries are not counted.
    """
    from torch.nn.functional import kl_div

    unseen_B11K = (mask_BT == 0)[:, None, None, :]
    log_s, log_p = (scores.float().masked_fill(unseen_B11K, UNSEEN).log_softmax(-1) for scores in (student_BAQK, teacher_BAQK))
    terms_BAQK = -log_p.exp() * log_s if entropy else kl_div(log_s, log_p, reduction="none", log_target=True)
    return mean_over_tokens(terms_BAQK.sum(-1).transpose(1, 2), mask_BT)


def mean_over_rows(values_B: "Tensor", counted_B: "Tensor | None" = None) -> "Tensor":
    """sum over rows of values / number of rows; with `counted_B` [B] bool over those rows alone, 0 where there are none."""
    if counted_B is None:
        return mean_over_elements(values_B)
    weights_B = counted_B.to(values_B.dtype)
    return (values_B * weights_B).sum() / denominator(weights_B.sum(), at_least=1.0)


def mean_over_elements(values: "Tensor") -> "Tensor":
    """sum of all elements / their number, padding included: exact where every process pads to the same width."""
    return values.sum() / denominator(values.new_tensor(values.numel()))


def mean_by(normalisation: str, values_BTD: "Tensor", mask_BT: "Tensor") -> "Tensor":
    """`mean_over_tokens`; with "reference" `mean_over_elements`, as released code that averages over padding has it."""
    return mean_over_elements(values_BTD) if normalisation == "reference" else mean_over_tokens(values_BTD, mask_BT)


def denominator(count: "Tensor", *, at_least: float = 0.0) -> "Tensor":
    """What a sum of this process is divided by: max(count over all processes, at_least) / number of processes.

    count  of tokens, pairs, rows, masked positions or elements here, a scalar tensor
    """
    count = distributed.all_reduce_sum(count)
    if at_least:
        count = count.clamp(min=at_least)
    return count / distributed.world_size() if distributed.world_size() > 1 else count
