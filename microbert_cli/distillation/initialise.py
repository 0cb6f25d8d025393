"""What a new student begins as: layers of a trained model, slices of them, or its embeddings alone.

teacher-layers  layer m of the student is the teacher's layer g(m); embeddings, pooler and a fitting head come along; same width
teacher-slice   the same, narrower: the most important columns, neurons, heads and dimensions of heads (`slicing.py`)
teacher-ends    the teacher's embeddings, pooler and a fitting head, all that is not in a layer, where it has the same name;
                the layers are random. A NoNorm does not take a LayerNorm's weights, and begins as 1 and 0. Same widths
svd-embed       E ~ (E V) V^T, V [D, d] the d largest right singular vectors of the word embeddings E [rows, D]: each embedding
                table P becomes P V, all else stays random. Squared error: the sum of the squared singular values left out

The trained map from student to teacher width, where a method has one, begins as what undoes the cut: V, or the kept columns.

Sources: layers as DistilBERT (0 2 4 7 9 11 of 12) and PKD (the first ones) take them; ends as the released code of MobileBERT;
embeddings by SVD as XtremeDistil; slices are this toolkit's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.distillation.slice import axes_of, kept, sliced
from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import (
    LABEL_WEIGHTS,
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


@dataclass(frozen=True)
class InitialWeights:
    """How a new model's weights begin: called with the model, it changes them, and returns the start of the map to `width`.

    layers  a rule of `layer_map`, or the source's layers from 0, one for each of the model's
    labels  label c of the model is output labels[c] of the source; None = as they are
    """

    by: str
    layers: str | Sequence[int]
    source: LoadedModel
    width: int
    labels: Sequence[int] | None = None

    @torch.no_grad()
    def __call__(self, model: Any) -> dict[str, Tensor] | None:
        """Raises M044 (layers), M045 (shape), M046 and M099 (architecture)."""
        theirs, ours = self.source.model.config, model.config
        if self.by == "teacher-ends":
            self._ends(model)
            return None
        family = architecture_of(theirs).layer_weights
        if family is None or family != architecture_of(ours).layer_weights:
            raise _other_family(model_type_of(theirs), model_type_of(ours))
        for config in (theirs, ours):
            shape = model_shape(config)
            if shape.embedding != shape.width:
                raise _other_family(f"{model_type_of(config)} with embeddings of {shape.embedding}", model_type_of(ours))
        check_shapes(theirs, ours, self.by)
        back_Dd = self._embeddings(model) if self.by == "svd-embed" else self._layers(model)
        fits = model_shape(ours).width < model_shape(theirs).width == self.width
        return {"weight": back_Dd.float(), "bias": torch.zeros(self.width)} if fits else None

    @property
    def told(self) -> dict[str, Any]:
        """What is recorded of it."""
        found = {"by": self.by, "of": self.source.source}
        if self.by in ("svd-embed", "teacher-ends"):
            return found
        return {**found, "layers": self.layers if isinstance(self.layers, str) else list(self.layers)}

    def _layers(self, model: Any) -> Tensor:
        source, own = named(self.source.model), named(model)
        theirs, ours = model_shape(self.source.model.config), model_shape(model.config)
        taken = layers_of(self.layers, theirs.layers, ours.layers)
        keep = kept(source, taken, theirs, ours)
        for name, value in own.items():
            origin, layer = _origin(name, taken)
            if "token_type" in name and origin not in source:
                value.zero_()
            elif axes_of(name) and origin in source and origin not in self._untrained and not self._for_others(name, model):
                _put(value, sliced(name, self._in_order(name, source[origin]), layer, keep))
        return torch.eye(theirs.width)[:, keep["hidden", -1]]

    def _ends(self, model: Any) -> None:
        theirs, ours = self.source.model.config, model.config
        ends = architecture_of(theirs).end_weights
        same_ends = ends is not None and ends == architecture_of(ours).end_weights
        if model_type_of(theirs) != model_type_of(ours) and not same_ends:
            raise _other_ends(model_type_of(theirs), model_type_of(ours))
        source, own = named(self.source.model), named(model)
        other_norm = getattr(theirs, "normalization_type", None) != getattr(ours, "normalization_type", None)
        taken = {
            name: value for name, value in own.items()
            if name in source and layer_index(name) is None and name not in self._untrained
            and not self._for_others(name, model) and not (other_norm and name.startswith("embeddings.LayerNorm."))
        }  # fmt: skip
        wrong = {name: (tuple(source[name].shape), tuple(value.shape)) for name, value in taken.items()}
        wrong = {name: pair for name, pair in wrong.items() if pair[0][1:] != pair[1][1:] or pair[0][0] < pair[1][0]}
        if wrong:
            raise _other_shape(wrong)
        for name, value in taken.items():
            _put(value, self._in_order(name, source[name]))

    def _embeddings(self, model: Any) -> Tensor:
        source, own = named(self.source.model), named(model)
        back_Dd = right_vectors(source[f"embeddings.{TABLES[0]}.weight"], model_shape(model.config).width)
        for name in (f"embeddings.{table}.weight" for table in TABLES):
            if name in source and name in own:
                _put(own[name], (source[name].double() @ back_Dd).float())
        return back_Dd

    @property
    def _untrained(self) -> set[str]:
        """What of the source was made anew as it was loaded, such as the pooler of a masked-LM."""
        return {_plain(name, self.source.model) for name in self.source.new}

    def _for_others(self, name: str, model: Any) -> bool:
        """Whether a head's weight is for other labels than the model's."""
        theirs, ours = ((config.num_labels, model_type_of(config)) for config in (self.source.model.config, model.config))
        return name.startswith("classifier") and theirs != ours

    def _in_order(self, name: str, value: Tensor) -> Tensor:
        is_head = self.labels is not None and name.startswith("classifier") and axes_of(name)[0] == "rows"
        return value[list(self.labels or ())] if is_head else value


def initial_weights(by: str, layers: str | Sequence[int], teacher: LoadedModel, initial: str | None, *,
          labels: Sequence[int] | None = None, reporter: Reporter) -> InitialWeights | None:  # fmt: skip
    """What a new student of `teacher` begins as, from the teacher or the model `initial`; None = its own random weights."""
    if by == "random":
        return None
    source = teacher
    if initial is not None and initial != teacher.source:
        source = load_model(initial, "encoder", where="initialise.model", new_head=True)
        same_vocabulary(source.tokenizer, teacher.tokenizer, where=f"initialise.model {initial}", key="initialise")
    made = InitialWeights(by, layers, source, model_shape(teacher.model.config).width, labels if source is teacher else None)
    reporter.note(f"a new student begins as: {', '.join(f'{key} {value}' for key, value in made.told.items())}")
    return made


def layers_of(rule: str | Sequence[int], depth: int, wanted: int) -> list[int]:
    """The layers of `depth` that the `wanted` ones of a student are, from 0. Raises M044, and what `layer_map` raises."""
    if isinstance(rule, str):
        return [layer - 1 for layer in layer_map(rule, teacher_layers=depth, student_layers=wanted)[1:]]
    if len(rule) != wanted or any(not 0 <= layer < depth for layer in rule):
        raise MbertError(
            "M044",
            f"{list(rule)} are not the layers of a student of {wanted}, taken from {depth}",
            where="initialise.layers",
            allowed=f"{wanted} numbers from 0 to {depth - 1}; or uniform, first, last.",
            fix="--set initialise.layers=first",
        )
    return list(rule)


def check_shapes(theirs: Any, ours: Any, by: str) -> None:
    """Raises M045 where a student cannot be taken out of a model of that shape."""
    teacher, student = (_sizes(model_shape(config)) for config in (theirs, ours))
    widths = ["hidden_size"] if by == "svd-embed" else [name for name in teacher if name not in TABLE_ROWS]
    exact = widths if by == "teacher-layers" else []
    wrong = {
        name: (teacher[name], student[name]) for name in (*widths, *TABLE_ROWS)
        if student[name] > teacher[name] or name in exact and student[name] != teacher[name]
    }  # fmt: skip
    if wrong:
        raise _other_shape(wrong, fix="--set initialise=teacher-slice" if by == "teacher-layers" else "--set initialise=random")


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


@torch.no_grad()
def reorder_labels(model: Any, labels: Sequence[int] | None) -> None:
    """Makes output labels[c] of a classifier its output c, where there are any."""
    for name, value in model.named_parameters():
        if labels and re.search(LABEL_WEIGHTS, name):
            value.copy_(value[list(labels)])


def named(model: Any) -> dict[str, Tensor]:
    """The parameters of a model under BERT's names, without the name of its encoder before them."""
    return {_plain(name, model): value.detach().cpu() for name, value in model.named_parameters()}


def right_vectors(table_VD: Tensor, count: int) -> Tensor:
    """The `count` largest right singular vectors [D, count] of a table, in float64, each with its largest entry positive."""
    table_VD = table_VD.detach().double()
    vectors_DD = torch.linalg.eigh(table_VD.T @ table_VD).eigenvectors.flip(-1)[:, :count]
    largest = vectors_DD.abs().argmax(0)
    return vectors_DD * vectors_DD[largest, torch.arange(count)].sign()


def _plain(name: str, model: Any) -> str:
    return bert_name(name.removeprefix(f"{model.base_model_prefix}."), model.config)


def _origin(name: str, taken: Sequence[int]) -> tuple[str, int]:
    """The name in the source of a student's tensor, and the layer there."""
    found = re.match(r"encoder\.layer\.(\d+)\.", name)
    if found is None:
        return name, -1
    layer = taken[int(found[1])]
    return f"encoder.layer.{layer}.{name[found.end() :]}", layer


def _put(own: Tensor, value: Tensor) -> None:
    """Over a tensor; of a longer table the first rows."""
    own.copy_(value[: len(own)])


def _other_shape(wrong: Mapping[str, tuple[Any, Any]], fix: str = "--set initialise=random") -> MbertError:
    told = "; ".join(f"{name} {pair[0]} and {pair[1]}" for name, pair in list(wrong.items())[:6])
    return MbertError(
        "M045",
        f"the student's weights cannot be taken from this model, whose shape does not fit (model and student: {told})",
        where="initialise, student",
        allowed="teacher-layers: the same widths and heads; teacher-slice: none larger; svd-embed: no larger hidden_size; "
        "teacher-ends: the same widths outside the layers.",
        fix=fix,
    )


def _other_ends(theirs: str, ours: str) -> MbertError:
    return MbertError(
        "M099",
        f'the embeddings and heads of "{theirs}" are not those of a student of "{ours}"',
        where="initialise, student",
        allowed="A teacher and a student of one architecture, such as ib-bert and mobilebert.",
        fix="--set initialise=random, or another student: mbert list students",
    )


def _other_family(theirs: str, ours: str) -> MbertError:
    return MbertError(
        "M046",
        f'weights of "{theirs}" have no place in a student of "{ours}"',
        where="initialise, student",
        allowed=f"Within one of {'; '.join(', '.join(family) for family in families('layer_weights').values())}.",
        fix="--set initialise=random",
    )
