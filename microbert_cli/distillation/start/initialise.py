"""Initialises a new student: with layers of a trained model, slices of them, or its embeddings alone.

teacher-layers  layer m of the student is the teacher's layer g(m); embeddings, pooler and a fitting head come along; same width
teacher-slice   the same, narrower: the most important columns, neurons, heads and dimensions of heads (`slice.py`)
teacher-ends    the teacher's embeddings, pooler and a fitting head, all that is not in a layer, where it has the same name;
                the layers are random. A NoNorm does not take a LayerNorm's weights, and starts with 1 and 0. Same widths
auto            teacher-layers where the shapes are equal, teacher-slice where the student's is smaller, else random
svd-embed       E ~ (E V) V^T, V [D, d] the d largest right singular vectors of the word embeddings E [rows, D]: each embedding
                table P becomes P V, all else stays random. Squared error: the sum of the squared singular values left out

A recurrent student has word embeddings alone that can be its teacher's, of any type: teacher-ends takes them as they are,
svd-embed narrower, auto whichever fits; or those of a file of word vectors (word-vectors, `words.py`).

The trained map from student to teacher width, where a method has one, starts as what undoes the cut: V, or the kept columns.

Sources: layers as DistilBERT (0 2 4 7 9 11 of 12) and PKD (the first ones) take them; ends as the released code of MobileBERT;
embeddings by SVD as XtremeDistil; slices are this toolkit's.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.distillation.start.slice import axes_of, kept_indices, sliced
from microbert_cli.distillation.start.words import WORD_VECTORS, no_recurrent_student
from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import (
    ModelShape,
    architecture_of,
    bert_name,
    families,
    layer_index,
    model_shape,
    model_type_of,
)
from microbert_cli.models.load import LoadedModel, load_model
from microbert_cli.models.tokenizers import same_vocabulary
from microbert_cli.reporter import Reporter

TABLE_ROWS = ("vocab_size", "max_position_embeddings")  # a student may have fewer of them, whatever is copied
TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")
NeuronImportance = Callable[
    [Sequence[int]], Mapping[int, Tensor]
]  # layers, from 1, -> the importance [F] of each one's neurons


@dataclass(frozen=True)
class InitialWeights:
    """Gives a new student its weights: called with the model, it changes them and returns the initial map to `width`.

    layers  a rule of `layer_map`, or the source's layers from 0, one for each of the student's
    labels  label c of the student is output labels[c] of the source; None = the same order
    measure the importance [F] of the neurons in these layers of the source, from 1; None = by their weights
    """

    by: str
    layers: str | Sequence[int]
    source: LoadedModel
    width: int
    labels: Sequence[int] | None = None
    measure: NeuronImportance | None = None

    @torch.no_grad()
    def __call__(self, student: Any) -> dict[str, Tensor] | None:
        """Raises M044 (layers), M045 (shape), M046 and M099 (architecture)."""
        if architecture_of(student.config).recurrent:
            self._copy_words(student)
            return None
        if self.by == "teacher-ends":
            self._copy_ends(student)
            return None
        check_families(self.source.model.config, student.config)
        check_shapes(self.source.model.config, student.config, self.by)
        map_Dd = self._project_embeddings(student) if self.by == "svd-embed" else self._copy_layers(student)
        source_width, student_width = self._shape.width, model_shape(student.config).width
        # There is a map to learn only where the student is narrower, and this one fits only the model that it was cut from.
        needs_map = student_width < source_width == self.width
        return {"weight": map_Dd.float(), "bias": torch.zeros(self.width)} if needs_map else None

    @property
    def record(self) -> dict[str, Any]:
        """What metrics.json says of it."""
        record = {"by": self.by, "of": self.source.source}
        if self.by in ("svd-embed", "teacher-ends"):
            return record
        neurons = {"neurons": "sensitivity"} if self.measure and self.by == "teacher-slice" else {}
        return {**record, "layers": self.layers if isinstance(self.layers, str) else list(self.layers), **neurons}

    @property
    def _shape(self) -> ModelShape:
        return model_shape(self.source.model.config)

    def _copy_layers(self, student: Any) -> Tensor:
        source, target = bert_parameters(self.source.model), bert_parameters(student)
        shape = model_shape(student.config)
        source_layers = layers_of(self.layers, self._shape.layers, shape.layers)
        indices = kept_indices(source, source_layers, self._shape, shape, self._measured(source_layers, shape))
        for name, tensor in target.items():
            source_name, layer = _source_name(name, source_layers)
            if "token_type" in name and source_name not in source:
                tensor.zero_()  # DistilBERT has no segments; zeros make the student start as it
            elif axes_of(name) and source_name in source and self._is_copied(source_name, name, student):
                _copy_rows(tensor, sliced(name, self._in_label_order(name, source[source_name]), layer, indices))
        return torch.eye(self._shape.width)[:, indices["hidden", -1]]

    def _measured(self, source_layers: Sequence[int], student: ModelShape) -> dict[int, Tensor] | None:
        """Returns the importance of the neurons of the source's layers, from 0, where some are to be left out by it."""
        if self.measure is None or student.inner == self._shape.inner:
            return None
        # Sensitivities are gradients, and a student's weights are copied without.
        with torch.enable_grad():
            return {layer - 1: values for layer, values in self.measure(tuple(layer + 1 for layer in source_layers)).items()}

    def _copy_ends(self, student: Any) -> None:
        source_config, config = self.source.model.config, student.config
        check_ends(source_config, config)
        source, target = bert_parameters(self.source.model), bert_parameters(student)
        # A NoNorm scales by its weights and does not normalise, so a LayerNorm's mean nothing there.
        other_norm = getattr(source_config, "normalization_type", None) != getattr(config, "normalization_type", None)
        copied = {
            name: tensor for name, tensor in target.items()
            if name in source and layer_index(name) is None and self._is_copied(name, name, student)
            and not (other_norm and name.startswith("embeddings.LayerNorm."))
        }  # fmt: skip
        shapes = {name: (tuple(source[name].shape), tuple(tensor.shape)) for name, tensor in copied.items()}
        # The source may have more rows, as of a larger vocabulary; all other axes have to be equal.
        mismatches = {name: pair for name, pair in shapes.items() if pair[0][1:] != pair[1][1:] or pair[0][0] < pair[1][0]}
        if mismatches:
            raise _other_shape(mismatches)
        for name, tensor in copied.items():
            _copy_rows(tensor, self._in_label_order(name, source[name]))

    def _copy_words(self, student: Any) -> None:
        """Gives every table of a recurrent student the source's word embeddings, with fewer columns where it is narrower."""
        check_words(self.source.model.config, student.config, self.by)
        table_VD = self.source.model.get_input_embeddings().weight.detach().cpu()
        if self.by == "svd-embed":
            table_VD = (table_VD.double() @ right_vectors(table_VD, model_shape(student.config).embedding)).float()
        for table in student.base_model.embeddings.tables:
            _copy_rows(table.weight, table_VD)

    def _project_embeddings(self, student: Any) -> Tensor:
        source, target = bert_parameters(self.source.model), bert_parameters(student)
        map_Dd = right_vectors(source[f"embeddings.{TABLES[0]}.weight"], model_shape(student.config).width)
        for name in (f"embeddings.{table}.weight" for table in TABLES):
            if name in source and name in target:
                _copy_rows(target[name], (source[name].double() @ map_Dd).float())
        return map_Dd

    def _is_copied(self, source_name: str, name: str, student: Any) -> bool:
        """Whether the source's tensor was trained, and is not a head for other labels than the student's."""
        new = {_bert_name(new_name, self.source.model) for new_name in self.source.new}
        configs = (self.source.model.config, student.config)
        source_head, head = ((config.num_labels, model_type_of(config)) for config in configs)
        # The head of a score answers in the units that its model was trained in, which need not be the student's.
        is_other_head = source_head != head or head[0] == 1
        return source_name not in new and not (name.startswith("classifier") and is_other_head)

    def _in_label_order(self, name: str, tensor: Tensor) -> Tensor:
        is_head = self.labels is not None and name.startswith("classifier") and axes_of(name)[0] == "rows"
        return tensor[list(self.labels or ())] if is_head else tensor


def initial_weights(by: str, layers: str | Sequence[int], teacher: LoadedModel, initial: str | None, *,
          student: Callable[[], Any], labels: Sequence[int] | None = None,
          measure: NeuronImportance | None = None, reporter: Reporter) -> InitialWeights | None:  # fmt: skip
    """Returns the initial weights of a new student, from its teacher or the model `initial`; None = random ones.

    student  returns its configuration, which "auto" alone looks at
    measure  the importance of the teacher's neurons; a model that is not the teacher has no trained head to measure it by
    """
    if by == "random":
        return None
    if by == WORD_VECTORS:
        raise no_recurrent_student(model_type_of(student()))
    source = teacher
    if initial is not None and initial != teacher.source:
        source = load_model(initial, "encoder", where="initialise.model", new_head=True)
        same_vocabulary(
            source.tokenizer, teacher.tokenizer, where=f"initialise.model {initial}", keys=["initialise"], without="random"
        )
    if by == "auto" and (by := choose_start(source.model.config, student())) == "random":
        reporter.note("a new student begins with random weights: those of its teacher do not fit its shape")
        return None
    initial_values = InitialWeights(
        by, layers, source, model_shape(teacher.model.config).width, *((labels, measure) if source is teacher else ())
    )
    reporter.note(f"a new student begins as: {', '.join(f'{key} {value}' for key, value in initial_values.record.items())}")
    return initial_values


def choose_start(source: Any, student: Any) -> str:
    """Returns how `auto` starts a student of one configuration from a model of another."""
    recurrent = architecture_of(student).recurrent
    for by in ("teacher-ends", "svd-embed") if recurrent else ("teacher-layers", "teacher-slice"):
        try:
            if recurrent:
                check_words(source, student, by)
                return by
            check_families(source, student)
            check_shapes(source, student, by)
        except MbertError:
            continue
        return by
    return "random"


def layers_of(rule: str | Sequence[int], depth: int, count: int) -> list[int]:
    """Returns which of `depth` layers, from 0, a student's `count` layers are. Raises M044, and what `layer_map` raises."""
    if isinstance(rule, str):
        return [layer - 1 for layer in layer_map(rule, teacher_layers=depth, student_layers=count)[1:]]
    if len(rule) != count or any(not 0 <= layer < depth for layer in rule):
        raise MbertError(
            "M044",
            f"{list(rule)} are not the layers of a student of {count}, taken from {depth}",
            where="initialise.layers",
            allowed=f"{count} numbers from 0 to {depth - 1}; or uniform, first, last.",
            fix="--set initialise.layers=first",
        )
    return list(rule)


def check_families(source: Any, student: Any) -> None:
    """Checks that weights of one configuration's model have a place in the other's; raises M046."""
    family = architecture_of(source).layer_weights
    if family is None or family != architecture_of(student).layer_weights:
        raise _other_family(model_type_of(source), model_type_of(student))
    for config in (source, student):
        shape = model_shape(config)
        if shape.embedding != shape.width:
            raise _other_family(f"{model_type_of(config)} with embeddings of {shape.embedding}", model_type_of(student))


def check_ends(source: Any, student: Any) -> None:
    """Checks that embeddings and heads have the same names in both configurations' models; raises M099."""
    ends = architecture_of(source).end_weights
    same_ends = ends is not None and ends == architecture_of(student).end_weights
    if model_type_of(source) != model_type_of(student) and not same_ends:
        raise _other_ends(model_type_of(source), model_type_of(student))


def check_words(source: Any, student: Any, by: str) -> None:
    """Checks that a recurrent student can take the word embeddings of a model of the source's shape; raises M045 and M046."""
    if by not in ("teacher-ends", "svd-embed"):
        raise _other_family(model_type_of(source), model_type_of(student))
    pairs = [(shape.embedding, shape.vocabulary) for shape in map(model_shape, (source, student))]
    (width, rows), (student_width, student_rows) = pairs
    if student_rows > rows or student_width > width or (by == "teacher-ends" and student_width < width):
        sizes = {"embedding_size": (width, student_width), "vocab_size": (rows, student_rows)}
        is_narrower = student_rows <= rows and student_width < width
        raise _other_shape(sizes, fix=f"--set initialise={'svd-embed' if is_narrower else 'random'}")


def check_shapes(source: Any, student: Any, by: str) -> None:
    """Checks that a student's weights can be taken from a model of the source's shape; raises M045."""
    source_sizes, student_sizes = (_sizes(model_shape(config)) for config in (source, student))
    widths = ["hidden_size"] if by == "svd-embed" else [name for name in source_sizes if name not in TABLE_ROWS]
    exact = widths if by == "teacher-layers" else []
    mismatches = {
        name: (source_sizes[name], student_sizes[name])
        for name in (*widths, *TABLE_ROWS)
        if student_sizes[name] > source_sizes[name] or (name in exact and student_sizes[name] != source_sizes[name])
    }
    if mismatches:
        is_smaller = by == "teacher-layers" and all(student <= source for source, student in mismatches.values())
        raise _other_shape(mismatches, fix=f"--set initialise={'teacher-slice' if is_smaller else 'random'}")


def _sizes(shape: ModelShape) -> dict[str, int]:
    """Returns the sizes that a copy depends on, under transformers' names for them."""
    return {
        "hidden_size": shape.width,
        "intermediate_size": shape.inner or 0,
        "num_attention_heads": shape.heads or 0,
        "width of a head": shape.head_width,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.position_rows or 0,
    }


def bert_parameters(model: Any) -> dict[str, Tensor]:
    """Returns the parameters of a model under BERT's names, without the prefix of its encoder."""
    return {_bert_name(name, model): parameter.detach().cpu() for name, parameter in model.named_parameters()}


def right_vectors(table_VD: Tensor, count: int) -> Tensor:
    """Returns the `count` largest right singular vectors [D, count] of a table, in float64."""
    table_VD = table_VD.detach().double()
    vectors_DD = torch.linalg.eigh(table_VD.T @ table_VD).eigenvectors.flip(-1)[:, :count]
    # A singular vector's sign is arbitrary, and differs between LAPACK builds: the largest entry is made positive.
    largest = vectors_DD.abs().argmax(0)
    return vectors_DD * vectors_DD[largest, torch.arange(count)].sign()


def _bert_name(name: str, model: Any) -> str:
    return bert_name(name.removeprefix(f"{model.base_model_prefix}."), model.config)


def _source_name(name: str, source_layers: Sequence[int]) -> tuple[str, int]:
    """Returns the source's name for a student's tensor, and the source's layer, -1 outside of layers."""
    match = re.match(r"encoder\.layer\.(\d+)\.", name)
    if match is None:
        return name, -1
    layer = source_layers[int(match[1])]
    return f"encoder.layer.{layer}.{name[match.end() :]}", layer


def _copy_rows(target: Tensor, source: Tensor) -> None:
    """Copies a tensor, of a longer table the first rows."""
    target.copy_(source[: len(target)])


def _other_shape(mismatches: Mapping[str, tuple[Any, Any]], fix: str = "--set initialise=random") -> MbertError:
    differences = "; ".join(f"{name} {pair[0]} and {pair[1]}" for name, pair in list(mismatches.items())[:6])
    return MbertError(
        "M045",
        f"the student's weights cannot be taken from this model, whose shape does not fit (model and student: {differences})",
        where="initialise, student",
        allowed="teacher-layers: the same widths and heads; teacher-slice: none larger; svd-embed: no larger hidden_size; "
        "teacher-ends: the same widths outside the layers.",
        fix=fix,
    )


def _other_ends(source: str, student: str) -> MbertError:
    return MbertError(
        "M099",
        f'the embeddings and heads of "{source}" are not those of a student of "{student}"',
        where="initialise, student",
        allowed="A teacher and a student of one architecture, such as ib-bert and mobilebert.",
        fix="--set initialise=random, or another student: mbert list students",
    )


def _other_family(source: str, student: str) -> MbertError:
    return MbertError(
        "M046",
        f'weights of "{source}" have no place in a student of "{student}"',
        where="initialise, student",
        allowed=f"Within one of {'; '.join(', '.join(family) for family in families('layer_weights').values())}.",
        fix="--set initialise=random",
    )
