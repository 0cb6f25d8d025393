"""Self-attention relations: similarities of queries, keys and values between tokens of the top layer, with any number of heads.

    L = sum over X in {Q, K, V}  w_X  mean over relation heads r and real queries q of
            KL( softmax_k(x^T_rq . x^T_rk / sqrt(D / R)) || softmax_k(x^S_rq . x^S_rk / sqrt(d / R)) )

x     queries, keys or values of the top mapped layer: the attention heads' vectors side by side, d (student) and D (teacher)
      wide, cut into R = `heads` relation heads, whatever the numbers of attention heads; R divides d and D
w_X   `queries`, `keys`, `values`: 1 each

Keys are real tokens only, and padded queries do not enter the mean.

Source: MiniLMv2 (Wang et al., Findings of ACL 2021, arXiv 2012.15828): 48 relation heads for teachers of width 768, 64 for
1024. Leaving padding out is this toolkit's.
"""

from torch import Tensor

from microbert_cli.reduce import divergence_of_attention

Vectors = tuple[Tensor, Tensor, Tensor]  # queries, keys, values

needs = {"qkv", "mask"}
over = "top"
bounds = {"queries": (0, 1e6), "keys": (0, 1e6), "values": (0, 1e6)}
divides = "heads"


def relations(
    student_qkv_BATh: Vectors,
    teacher_qkv_BATH: Vectors,
    mask_BT: Tensor,
    *,
    heads: int = 48,
    queries: float = 1.0,
    keys: float = 1.0,
    values: float = 1.0,
) -> Tensor:
    """Returns the term; see the module's formula."""
    pairs = zip((queries, keys, values), student_qkv_BATh, teacher_qkv_BATH, strict=True)
    terms = [
        weight * divergence_of_attention(relation_scores(student_BATh, heads), relation_scores(teacher_BATH, heads), mask_BT)
        for weight, student_BATh, teacher_BATH in pairs
        if weight
    ]
    return sum(terms, student_qkv_BATh[0].new_zeros(()))


def relation_scores(vectors_BATh: Tensor, heads: int) -> Tensor:
    """Returns X X^T / sqrt(d / R) for R relation heads, [B, R, T, T]."""
    vectors_BRTh = vectors_BATh.float().transpose(1, 2).flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2)
    return vectors_BRTh @ vectors_BRTh.transpose(-1, -2) * vectors_BRTh.shape[-1] ** -0.5
