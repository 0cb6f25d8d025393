"""The weights of a teacher and a student of equal depth, tensor by tensor, in the forms that one projection maps.

    side "both"    [k, D, D] and [k, d, d]   a matrix of layers; of the feed-forward axis, k times as wide, k blocks
    side "right"   [n, D] and [n, d]         tables of embeddings: a row for each piece, position and segment
    side "left"    [k, D] and [k, d]         biases and norms, one vector of the width; of a feed-forward bias k

Rows of the word table are those of the student's pieces, in the teacher's table by their joint ids. What has no axis of the
width, such as the bias of the vocabulary's logits, is left out.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from microbert_cli.distillation.start.slice import axes_of
from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import ModelShape, architecture_of, bert_name, families, model_shape, model_type_of
from microbert_cli.training.loss_terms import WeightPair

WORDS = "embeddings.word_embeddings.weight"


class WeightPairs:
    """The weights of two models, pair by pair; each pass yields their values of the moment, with gradients.

    student_ids  the row of the teacher's table of every piece of the student [V]
    Raises M388 where the weights of one have no place in the other.
    """

    def __init__(self, teacher: Any, student: Any, student_ids: Tensor):
        check_shapes(teacher.config, student.config)
        self.teacher, self.student = _named(teacher), _named(student)
        self.widths = tuple(model_shape(model.config).width for model in (teacher, student))
        self.student_ids = student_ids
        self.names = [name for name in self.student if name in self.teacher and _side(name, self.student[name]) is not None]

    def __iter__(self) -> Iterator[WeightPair]:
        for name in self.names:
            of_teacher, of_student = self.teacher[name], self.student[name]
            side = _side(name, of_student)
            if name == WORDS:
                of_teacher = of_teacher[self.student_ids.to(of_teacher.device)]
            elif side == "right":
                of_teacher = of_teacher[: len(of_student)]
            teacher, width = self.widths
            yield str(side), name, _in_blocks(name, of_teacher, teacher), _in_blocks(name, of_student, width)


def check_shapes(teacher: Any, student: Any) -> None:
    """Checks that every weight of a student has one of the teacher beside it: raises M388."""
    family = architecture_of(teacher).layer_weights
    shapes = model_shape(teacher), model_shape(student)
    fitting = _fitting(*shapes)
    if family is None or family != architecture_of(student).layer_weights or any(s.embedding != s.width for s in shapes):
        raise _no_pair(
            f'those of "{model_type_of(student)}" have no place in "{model_type_of(teacher)}"',
            f"Within one of {'; '.join(', '.join(names) for names in families('layer_weights').values())}.",
            fitting,
        )
    sizes = [_sizes(shape) for shape in shapes]
    if different := [name for name in sizes[0] if sizes[0][name] != sizes[1][name]]:
        text = ", ".join(f"{name} {sizes[0][name]:g} and {sizes[1][name]:g}" for name in different)
        raise _no_pair(
            f"teacher and student differ in {text}",
            "The teacher's depth and heads, and as many times its width in the feed-forward network; any width.",
            fitting,
        )
    if (shapes[1].position_rows or 0) > (shapes[0].position_rows or 0):
        raise _no_pair("the student has more positions than its teacher", "At most the teacher's positions.", fitting)


def _fitting(teacher: ModelShape, student: ModelShape) -> str:
    """Returns the name of a student of about the same width whose weights have places in the teacher's."""
    heads = teacher.heads or 1
    width = heads * -(-student.width // heads)
    return f"bert-{teacher.layers}x{width}x{round(width * (teacher.inner or 4 * teacher.width) / teacher.width)}"


def _sizes(shape: ModelShape) -> dict[str, float]:
    inner = shape.inner or 4 * shape.width
    return {"layers": shape.layers, "heads": shape.heads or 0, "feed-forward width / width": inner / shape.width}


def _named(model: Any) -> Mapping[str, Tensor]:
    """Returns the parameters of a model by BERT's names, without the prefix of its encoder; tied ones once."""
    prefix = f"{model.base_model_prefix}."
    return {bert_name(name.removeprefix(prefix), model.config): weight for name, weight in model.named_parameters()}


def _side(name: str, weight: Tensor) -> str | None:
    axes = axes_of(name)[: weight.dim()]
    if not axes or axes == ("rows",):
        return None
    if len(axes) == 1:
        return "left"
    return "right" if axes[0] == "rows" else "both"


def _in_blocks(name: str, weight: Tensor, width: int) -> Tensor:
    """Returns a weight with its feed-forward axis as blocks of the width."""
    axes = axes_of(name)[: weight.dim()]
    if axes[0] == "rows":
        return weight
    if len(axes) == 1:
        return weight.view(-1, width)
    if axes[1] == "inner":
        return weight.view(width, -1, width).transpose(0, 1)
    return weight.view(-1, width, width)


def _no_pair(what: str, allowed: str, fitting: str) -> MbertError:
    return MbertError(
        "M388",
        f"the weights of teacher and student cannot be compared pair by pair: {what}",
        where="general.losses.shared_projection, student",
        allowed=allowed,
        fix=f"--student {fitting}, or leave the loss out: --set general.losses.shared_projection=0",
    )
