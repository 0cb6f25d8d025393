"""DualTrain + SharedProj: projections by hand, weights pair by pair, the teacher's new rows, who is trained, and the sizes."""

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_bert
from torch import nn
from transformers import BertConfig

from microbert_cli.catalog.losses.shared_projection import Projections, shared_projection, trains
from microbert_cli.catalog.losses.teacher_masked_lm import teacher_masked_lm
from microbert_cli.data.corpus.joint_vocabulary import JointVocabulary
from microbert_cli.distillation.dual.teacher import DualTeacher, cut_vocabulary, extend_vocabulary
from microbert_cli.distillation.dual.weights import WeightPairs
from microbert_cli.errors import MbertError
from microbert_cli.models.capture import OutputRequest
from microbert_cli.models.factory import meta_model
from microbert_cli.models.load import LoadedModel, count_all_parameters, load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.training.loss_terms import DualModels, make_terms
from microbert_cli.training.objective import Objective
from microbert_cli.training.optimisers import make_optimiser, optimiser_of, set_rates
from microbert_cli.training.plan import TrainingPlan

I2 = torch.eye(2)[None]


def projections(left: list[list[float]], right: list[list[float]]) -> Projections:
    module = Projections(1, 1)
    module.left, module.right = nn.Parameter(torch.tensor(left)), nn.Parameter(torch.tensor(right))
    return module


# The loss


@pytest.mark.parametrize(("reduction", "expected"), [("sum", 1.0), ("mean", 0.25), ("relative", 0.5)])
def test_up_by_hand(reduction: str, expected: float) -> None:
    """T = I_2, S = 1, U = [1, 0]^T, V = [1, 0]: U S V = [[1, 0], [0, 0]], one element of four is off by 1, |T|^2 = 2."""
    module = projections([[1.0], [0.0]], [[1.0, 0.0]])
    pairs = [("both", "a", I2, torch.ones(1, 1, 1))]
    assert shared_projection(pairs, own=module, reduction=reduction).item() == expected


@pytest.mark.parametrize(("reduction", "expected"), [("sum", 4.0), ("mean", 4.0), ("relative", 4.0 / 9.0)])
def test_down_by_hand(reduction: str, expected: float) -> None:
    """U T V = [1, 0] I_2 [1, 0]^T = 1, S = 3: (3 - 1)^2."""
    module = projections([[1.0, 0.0]], [[1.0], [0.0]])
    pairs = [("both", "a", I2, torch.full((1, 1, 1), 3.0))]
    assert shared_projection(pairs, own=module, direction="down", reduction=reduction).item() == pytest.approx(expected)


def test_vectors_have_one_side_and_blocks_the_same_matrices() -> None:
    """U = [1, 2]^T maps a bias 3 to [3, 6]; V = [5, 7] maps a row 3 to [15, 21]; of two blocks the first is met."""
    module = projections([[1.0], [2.0]], [[5.0, 7.0]])
    bias = ("left", "a", torch.tensor([[3.0, 5.0]]), torch.tensor([[3.0]]))
    row = ("right", "b", torch.tensor([[15.0, 20.0], [0.0, 0.0]]), torch.tensor([[3.0], [0.0]]))
    blocks = ("both", "c", torch.stack([torch.tensor([[5.0, 7.0], [10.0, 14.0]]), torch.zeros(2, 2)]), torch.ones(2, 1, 1))
    values = [shared_projection([pair], own=module, reduction="sum").item() for pair in (bias, row, blocks)]
    assert values == [1.0, 1.0, 25.0 + 49.0 + 100.0 + 196.0]
    assert shared_projection([bias, row, blocks], own=module, reduction="sum").item() == sum(values)
    assert shared_projection([bias, row], own=module, reduction="mean").item() == pytest.approx(2.0 / 6.0)


def test_word_embeddings_alone() -> None:
    module = projections([[1.0], [0.0]], [[1.0, 0.0]])
    words = ("right", "embeddings.word_embeddings.weight", torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0]]))
    pairs = [("both", "a", 9 * I2, torch.ones(1, 1, 1)), words]
    assert shared_projection(pairs, own=module, reduction="sum", weights="embeddings").item() == 9.0


def test_matrices_are_of_the_direction_and_as_long_as_what_they_map() -> None:
    torch.manual_seed(0)
    up, down = (trains(student_width=48, teacher_width=768, direction=direction) for direction in ("up", "down"))
    assert (*up.left.shape, *up.right.shape) == (768, 48, 48, 768)
    assert (*down.left.shape, *down.right.shape) == (48, 768, 768, 48)
    small, large = torch.randn(1, 48, 48), torch.randn(1, 768, 768)
    assert up("both", small).std().item() == pytest.approx(1.0, rel=0.3)
    assert down("both", large).std().item() == pytest.approx(1.0, rel=0.3)


def test_the_teachers_masked_lm_by_hand() -> None:
    """Of four pieces two are forbidden: ln 2 where the others are equal."""
    logits = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf], [-torch.inf, -torch.inf, torch.log(torch.tensor(3.0)), 0.0]])
    value = teacher_masked_lm(logits, torch.tensor([0, 2]))
    expected = (torch.log(torch.tensor(2.0)) - torch.log(torch.tensor(0.75))) / 2
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    assert teacher_masked_lm(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)).item() == 0.0


# A pair of models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dual")
    tiny_bert(place / "teacher", kind="masked-lm", hidden=16, intermediate=64, dropout=0.0, vocab=("the", "baker", "boat"))
    tiny_bert(
        place / "student", kind="masked-lm", hidden=8, intermediate=32, dropout=0.0, vocab=("bakers", "sold", "boat"), seed=1
    )
    return place


def load(folder: Path, name: str) -> LoadedModel:
    return load_model(folder / name, "masked-lm", where=name)


def joined(folder: Path) -> tuple[LoadedModel, LoadedModel, JointVocabulary]:
    teacher, student = load(folder, "teacher"), load(folder, "student")
    joint = JointVocabulary(teacher.tokenizer, student.tokenizer, len(teacher.tokenizer))
    extend_vocabulary(teacher.model, joint)
    return teacher, student, joint


def test_new_rows_begin_as_the_mean_of_the_teachers_pieces_and_old_ones_stay(folder: Path) -> None:
    before = load(folder, "teacher").model
    teacher, _, joint = joined(folder)
    numbers = {piece: number for number, piece in joint.new_pieces.items()}
    assert {"bakers", "sold"} <= numbers.keys() and "boat" not in numbers
    table, old = teacher.model.get_input_embeddings().weight, before.get_input_embeddings().weight
    vocabulary = teacher.tokenizer.get_vocab()
    torch.testing.assert_close(table[numbers["bakers"]], (old[vocabulary["baker"]] + old[vocabulary["##s"]]) / 2)
    assert torch.equal(table[: len(old)], old)
    assert len(teacher.model.get_output_embeddings().bias) == len(table) == len(joint)
    assert teacher.model.get_output_embeddings().weight is table
    ids = torch.tensor([teacher.tokenizer("the baker [MASK]")["input_ids"]])
    with torch.no_grad():
        logits, expected = teacher.model.eval()(ids).logits, before.eval()(ids).logits
    torch.testing.assert_close(logits[..., : len(old)], expected)
    cut_vocabulary(teacher.model, joint)
    weights = before.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in teacher.model.state_dict().items())


def test_every_weight_of_the_student_has_its_like_but_the_bias_of_logits(folder: Path) -> None:
    teacher, student, joint = joined(folder)
    pairs = WeightPairs(teacher.model, student.model, torch.from_numpy(joint.student_ids))
    left_out = (
        {name for name, _ in student.model.named_parameters()} - {f"bert.{name}" for name in pairs.names} - set(pairs.names)
    )
    assert left_out == {"cls.predictions.bias"}
    shapes = {name: (side, tuple(big.shape), tuple(small.shape)) for side, name, big, small in pairs}
    layer = "encoder.layer.1."
    assert shapes[f"{layer}intermediate.dense.weight"] == ("both", (4, 16, 16), (4, 8, 8))
    assert shapes[f"{layer}output.dense.weight"] == ("both", (4, 16, 16), (4, 8, 8))
    assert shapes[f"{layer}intermediate.dense.bias"] == ("left", (4, 16), (4, 8))
    assert shapes[f"{layer}attention.self.query.weight"] == ("both", (1, 16, 16), (1, 8, 8))
    assert shapes["embeddings.word_embeddings.weight"][1:] == ((len(student.tokenizer), 16), (len(student.tokenizer), 8))
    words = next(big for _, name, big, _ in pairs if name == "embeddings.word_embeddings.weight")
    boat, of_teacher = student.tokenizer.get_vocab()["boat"], teacher.tokenizer.get_vocab()["boat"]
    assert torch.equal(words[boat], teacher.model.get_input_embeddings().weight[of_teacher])
    out = dict(teacher.model.named_parameters())[f"bert.{layer}output.dense.weight"]
    block = next(big for _, name, big, _ in pairs if name == f"{layer}output.dense.weight")
    assert torch.equal(block[2], out[:, 32:48])


@pytest.mark.parametrize("shape", [{"num_hidden_layers": 1}, {"num_attention_heads": 4}, {"intermediate_size": 24}])
def test_pairs_that_do_not_match(folder: Path, shape: dict[str, int]) -> None:
    teacher, _, joint = joined(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(joint.student_ids), max_position_embeddings=128, **{**sizes, **shape})
    with pytest.raises(MbertError) as raised:
        WeightPairs(teacher.model, meta_model(config, "masked-lm"), torch.from_numpy(joint.student_ids))
    assert raised.value.code == "M388" and "--student bert-2x8x32" in raised.value.fix


def test_a_hidden_piece_is_predicted_among_those_of_the_words_vocabulary(folder: Path) -> None:
    teacher, _, joint = joined(folder)
    ids = torch.tensor([[2, 40, 41, 3]])
    part = {"teacher_input_ids": ids, "teacher_attention_mask": torch.ones_like(ids), "teacher_token_type_ids": 0 * ids,
            "teacher_token_positions": torch.tensor([1, 2]), "teacher_from_student": torch.tensor([[0, 1, 0, 0]])}  # fmt: skip
    logits = DualTeacher(teacher.model, joint, trained=True).ask(part, OutputRequest(token_logits=True)).token_logits
    assert logits is not None
    finite = [set(row.isfinite().nonzero().flatten().tolist()) for row in logits]
    assert finite == [set(joint.student_ids.tolist()), set(range(joint.rows))]


def batch_of(joint: JointVocabulary) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[2, 40, 41, 42, 3], [2, 43, 44, 45, 3]])
    common = {"attention_mask": torch.ones_like(ids), "token_type_ids": 0 * ids, "token_positions": torch.tensor([1, 7])}
    student = {"input_ids": ids, "token_labels": torch.tensor([40, 45]), **common}
    label = torch.tensor([joint.student_ids[40], 45])
    marks = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    teacher = {"input_ids": ids, "token_labels": label, "from_student": marks, **common}
    return {**student, **{f"teacher_{name}": value for name, value in teacher.items()}}


LOSSES = {"masked_lm": 1.0, "teacher_masked_lm": 1.0, "shared_projection": 10.0}


def objective_of(
    folder: Path, losses: dict[str, float], rates: dict[str, float]
) -> tuple[Objective, LoadedModel, JointVocabulary]:
    teacher, student, joint = joined(folder)
    terms = make_terms({name: (weight, {}) for name, weight in losses.items()}, Catalog())
    asked = DualTeacher(teacher.model, joint, trained="teacher_masked_lm" in losses)
    pairs = WeightPairs(teacher.model, student.model, torch.from_numpy(joint.student_ids))
    torch.manual_seed(0)
    dual = DualModels(teacher.model if asked.trained else None, lambda: pairs, rates)
    objective = Objective(terms, student.model, ask_teacher=asked.ask, student_width=8, teacher_width=16, dual=dual)
    return objective, teacher, joint


def step(objective: Objective, batch: dict[str, torch.Tensor], rate: float = 1e-2) -> torch.optim.Optimizer:
    plan = TrainingPlan("general", 10, rate, schedule="constant", warmup=0.0, weight_decay=0.0)
    optimiser = optimiser_of(objective, plan)
    set_rates(optimiser, plan, 0, None)
    next(objective.losses(batch))[1].backward()
    optimiser.step()
    return optimiser


@pytest.mark.parametrize("name", [None, "masked_lm", "teacher_masked_lm", "shared_projection"])
def test_the_teacher_moves_in_dual_training_and_in_nothing_else(folder: Path, name: str | None) -> None:
    losses = {loss: weight for loss, weight in LOSSES.items() if loss != name}
    objective, teacher, joint = objective_of(folder, losses, {})
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    student = {key: value.clone() for key, value in objective.student.state_dict().items()}
    step(objective, batch_of(joint))
    moved = {key for key, value in teacher.model.state_dict().items() if not torch.equal(value, before[key])}
    if name == "teacher_masked_lm":
        assert not moved and not any(weight.requires_grad for weight in teacher.model.parameters())
        assert not [key for key in objective.state_dict() if key.startswith("trained_teacher.")]
    else:
        assert {"bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.attention.self.query.weight"} <= moved
    assert any(not torch.equal(value, student[key]) for key, value in objective.student.state_dict().items())


def test_the_teachers_own_loss_gives_the_student_no_gradient_and_the_projection_both(folder: Path) -> None:
    objective, teacher, joint = objective_of(folder, LOSSES, {})
    parts = next(objective.losses(batch_of(joint)))[2]
    student, of_teacher = objective.student.get_input_embeddings().weight, teacher.model.get_input_embeddings().weight
    for name, reaches in (
        ("masked_lm", (True, False)),
        ("teacher_masked_lm", (False, True)),
        ("shared_projection", (True, True)),
    ):
        gradients = torch.autograd.grad(parts[name], [student, of_teacher], retain_graph=True, allow_unused=True)
        assert tuple(gradient is not None for gradient in gradients) == reaches


def test_groups_have_their_own_rates(folder: Path) -> None:
    rates = {"trained_teacher.": 1e-3, "own.shared_projection.": 5e-2}
    objective, teacher, joint = objective_of(folder, LOSSES, rates)
    optimiser = step(objective, batch_of(joint), rate=1e-2)
    rate_of = {id(weight): group["lr"] for group in optimiser.param_groups for weight in group["params"]}
    assert {round(rate_of[id(weight)], 12) for weight in objective.student.parameters()} == {1e-2}
    assert {round(rate_of[id(weight)], 12) for weight in teacher.model.parameters()} == {1e-3}
    assert {round(rate_of[id(weight)], 12) for weight in objective.own.parameters()} == {5e-2}
    assert len(rate_of) == sum(1 for module in (objective.student, objective) for _ in module.parameters())


def test_without_rates_groups_are_as_ever() -> None:
    module = nn.Linear(2, 2)
    groups = make_optimiser("adamw", [module], learning_rate=1e-3, weight_decay=0.1, max_grad_norm=1.0).param_groups
    assert [len(group["params"]) for group in groups] == [1, 1] and "factor" not in groups[0]


# Methods and sizes


def test_the_methods_and_their_halves() -> None:
    losses = {}
    for method in ("dualtrain", "dualtrain-up", "dualtrain-down", "dualtrain-alone", "sharedproj"):
        recipe = resolve(catalog=Catalog(), flags={"method": method}).recipe
        losses[method] = {name: term.parameters for name, term in recipe.general.losses.items() if term.weight}
        assert (recipe.general.dual.vocabulary, recipe.initialise.by) == (4928, "random")
    assert losses["dualtrain"] == losses["dualtrain-up"]
    assert losses["dualtrain-up"]["shared_projection"]["direction"] == "up"
    assert losses["dualtrain-down"]["shared_projection"]["direction"] == "down"
    assert losses["dualtrain-alone"]["shared_projection"]["weights"] == "embeddings"
    assert losses["sharedproj"].keys() == {"masked_lm", "shared_projection"}


PARAMETERS = {192: 6_463_426, 96: 1_888_642, 48: 610_402}  # with the heads of pre-training, counted by hand from the shapes
PUBLISHED = {192: 5.74, 96: 19.41, 48: 61.94}


@pytest.mark.parametrize("width", PARAMETERS)
def test_published_factors_are_not_those_of_the_shapes(width: int) -> None:
    """BERT-base has 110,106,428 parameters with its heads; 12 layers of this width over 4,928 pieces have fewer.

    The published factors would be those of models of about 19.2, 5.67 and 1.78 million: about three times as many.
    """
    sizes = {"num_hidden_layers": 12, "num_attention_heads": 12}
    small = BertConfig(vocab_size=4928, hidden_size=width, intermediate_size=4 * width, **sizes)
    counts = [count_all_parameters(meta_model(config, "encoder")) + heads(config) for config in (BertConfig(**sizes), small)]
    assert counts == [110_106_428, PARAMETERS[width]]
    assert 2.9 < (counts[0] / counts[1]) / PUBLISHED[width] < 3.01


def heads(config: BertConfig) -> int:
    """The parameters of BERT's two heads of pre-training: words, with tied embeddings, and next sentences."""
    d, V = config.hidden_size, config.vocab_size
    return d * d + d + 2 * d + V + 2 * d + 2
