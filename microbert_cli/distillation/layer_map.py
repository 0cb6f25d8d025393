"""Layer maps: the teacher layer that each student layer learns from.

Layer 0 is the embedding output, layers 1..N are Transformer layers. A map g lists g(0), g(1), ..., g(M) with g(0) = 0.

    uniform   g(m) = m * N / M        (N must be a multiple of M; TinyBERT)
    first     g(m) = m                (the teacher's bottom layers)
    last      g(m) = m + N - M        (the teacher's top layers)
    [a, b..]  g(m) = the m-th number  (explicit; one teacher layer per student layer)
    top       g(M) = N                (only the student's top layer learns, whatever the depths; 0 fills the other places)
    n         g(M) = n                (the same with teacher layer n; MiniLMv2)

Sources: TinyBERT section 3 and its ablation table ("uniform", "top", "bottom"); MiniLM and MiniLMv2 for one pair.
"""

from collections.abc import Sequence

from microbert_cli.errors import MbertError

NAMES = ("uniform", "first", "last", "top")


def layer_map(rule: str | int | Sequence[int], *, teacher_layers: int, student_layers: int) -> list[int]:
    """Returns the list g(0)..g(M); raises M010 where the rule does not fit, M015 for a student deeper than its teacher."""
    N, M = teacher_layers, student_layers
    # One pair compares no other layers, so it is the only rule that allows a student deeper than its teacher.
    if rule == "top" or isinstance(rule, int):
        return _top_layer_map(N if isinstance(rule, str) else rule, N, M)
    if M > N:
        raise _too_deep(N, M)
    if not isinstance(rule, str):
        return _explicit(list(rule), N, M)
    if rule == "uniform":
        if N % M:
            raise _invalid_map(f"the uniform map needs a teacher depth that {M} divides, and {N} is not", N, M)
        return [m * N // M for m in range(M + 1)]
    if rule == "first":
        return list(range(M + 1))
    if rule == "last":
        return [0] + [m + N - M for m in range(1, M + 1)]
    raise _invalid_map(f'there is no layer map "{rule}"', N, M)


def _top_layer_map(layer: int, N: int, M: int) -> list[int]:
    if not 1 <= layer <= N:
        raise _invalid_map(f"layer_map = {layer} names no layer: the teacher has {N}", N, M)
    return [0] * M + [layer]


def _explicit(layers: list[int], N: int, M: int) -> list[int]:
    if len(layers) != M:
        raise _invalid_map(f"layer_map {layers} names {len(layers)} teacher layers for {M} student layers", N, M)
    if any(not 1 <= layer <= N for layer in layers) or layers != sorted(set(layers)):
        raise _invalid_map(f"layer_map {layers} must rise strictly within 1..{N}", N, M)
    return [0, *layers]


def _too_deep(N: int, M: int) -> MbertError:
    return MbertError(
        "M015",
        f"a student of {M} layers cannot be mapped onto a teacher of {N}",
        where="layer_map",
        allowed=f"A student of at most {N} layers.",
        fix="Choose a shallower student (see mbert list students), or a deeper teacher.",
    )


def _invalid_map(message: str, N: int, M: int) -> MbertError:
    divisors = [str(m) for m in range(1, N + 1) if N % m == 0]
    return MbertError(
        "M010",
        message,
        where="layer_map",
        allowed=f"uniform (student depths {', '.join(divisors)} fit {N} teacher layers), first, last, top, "
        f"or {M} rising teacher layers such as {list(range(max(1, N - M + 1), N + 1))}.",
        fix="Choose another student or map: --set layer_map=last",
    )
