"""Statistics of feature maps: mean and variance of every mapped layer's token vectors approach the teacher's.

    L = 1/M sum over mapped layers m  mean over real tokens t of  beta (E s_mt - E h_g(m)t)^2 + gamma |V s_mt - V h_g(m)t|

E, V  mean and variance of the features of one token's vector [D], V by D;  beta `means` 5000, gamma `variances` 5
normalisation = "reference" averages over every position, padding included, as the released code does.

A layer is compared with its own teacher layer. The released code compares each with the statistics of ALL teacher layers at
once: its teacher's mean is taken over a stack of them, the embedding's output among them, and the difference is broadcast.

Source: MobileBERT (Sun et al., ACL 2020), which splits feature maps into normalised maps and statistics; the factors are those
of the released code's README (beta_distill_factor, gamma_distill_factor).
"""

from torch import Tensor

from microbert_cli.reduce import mean_by, squared_error

needs = {"hidden", "mask"}
over = "layers"
bounds = {"means": (0, 1e6), "variances": (0, 1e6)}


def feature_statistics(
    student_BTD: Tensor,
    teacher_BTD: Tensor,
    mask_BT: Tensor,
    *,
    mapped_layers: int,
    means: float = 5000.0,
    variances: float = 5.0,
    normalisation: str = "masked",
) -> Tensor:
    """Returns one layer's term; see the module's formula."""
    (s_mean_BT, s_var_BT), (t_mean_BT, t_var_BT) = (_statistics(x_BTD) for x_BTD in (student_BTD, teacher_BTD))
    value_BT = means * squared_error(s_mean_BT, t_mean_BT) + variances * (s_var_BT - t_var_BT).abs()
    return mean_by(normalisation, value_BT[..., None], mask_BT) / mapped_layers


def _statistics(vectors_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and variance of every vector, [B, T] each."""
    vectors_BTD = vectors_BTD.float()
    return vectors_BTD.mean(-1), vectors_BTD.var(-1, correction=0)
