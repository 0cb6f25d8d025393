"""A model with exits: hand numbers, the whole model to the bit, a batch that shrinks, and who learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_classifiers
import torch
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertForSequenceClassification, AutoModelForSequenceClassification

from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import input_names, model_shape, positions_of
from microbert_cli.models.capture import OutputRequest, forward_outputs, removable_layers, show_scores
from microbert_cli.models.exits.answers import ExitLogits, answer_early, chosen_speed, parse_speeds, uncertainty
from microbert_cli.models.exits.build import ExitSettings, add_exits
from microbert_cli.models.exits.flops import exit_flops, exit_summary
from microbert_cli.models.heads.layers import reorder_head
from microbert_cli.models.load import LoadedModel, load_model
from microbert_cli.models.save import save_model
from microbert_cli.models.size import forward_flops
from microbert_cli.recipe.registry import Catalog
from microbert_cli.training.freeze import frozen
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective

FAMILIES = ("bert", "roberta", "distilbert", "electra")
SPEEDS = (0.2, 0.5, 0.8, 0.95)
SPREAD = 2.0


def plain(family: str = "bert", layers: int = 4, **changes: Any) -> LoadedModel:
    depth = {"n_layers" if family == "distilbert" else "num_hidden_layers": layers}
    model = tiny_classifiers.tiny(family, **depth, **changes)
    show_scores(model)
    return LoadedModel(model, tiny_classifiers.tokenizer(), family, [])


def with_exits(family: str = "bert", *, branch: str = "attention", seed: int = 1, **changes: Any) -> Any:
    """A model whose branches are as sure of some rows as trained ones: the logits of each have a spread of about 1.5."""
    scores = changes.get("num_labels", tiny_classifiers.FAMILIES[family]["num_labels"]) == 1
    settings = ExitSettings(branch=branch)
    model = add_exits(plain(family, **changes), settings, seed=seed, spread=SPREAD if scores else None).model.eval()
    with torch.no_grad():
        for layer in model.branches.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(std=(1.5 if layer in model.output_layers else 1.0) * layer.in_features**-0.5)
                layer.bias.normal_(std=0.1)
    return model


def rows_of(model: Any, rows: int = 12, length: int = 20) -> dict[str, Tensor]:
    batch = tiny_classifiers.batch(rows, length, model.backbone.config)
    return {name: batch[name] for name in input_names(model)}


def alone(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row without its padding."""
    length = int(batch["attention_mask"][row].sum())
    return {name: value[row : row + 1, :length] for name, value in batch.items()}


@torch.no_grad()
def test_uncertainty_by_hand() -> None:
    logits = torch.tensor([[0.9, 0.1], [0.5, 0.5], [1.0, 1e-30]]).log()
    assert uncertainty(logits).tolist() == pytest.approx([0.4690, 1.0, 0.0], abs=5e-5)
    assert uncertainty(torch.zeros(2, 3)).tolist() == pytest.approx([1.0, 1.0]) and uncertainty(torch.zeros(1, 7)).max() <= 1
    # Equal but for rounding: at speed 1 such a row leaves too.
    assert (uncertainty(1e-4 * torch.randn(1000, 3)) <= 1).all()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("branch", ["attention", "linear"])
def test_without_speed_it_is_the_whole_model_to_the_bit(family: str, branch: str) -> None:
    loaded = plain(family)
    model = add_exits(loaded, ExitSettings(branch=branch), seed=1).model.eval()
    batch = rows_of(model)
    expected = forward_outputs(loaded.model.eval(), batch, OutputRequest(logits=True)).logits
    answers = answer_early(model, batch, 0.0)
    assert expected is not None and torch.equal(answers.logits, expected)
    assert answers.layers.tolist() == [4] * 12
    assert torch.equal(model(**batch).logits, loaded.model(**batch).logits)
    assert model_shape(model.config) == model_shape(loaded.model.config)
    assert positions_of(model.config) == positions_of(loaded.model.config)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("branch", ["attention", "linear"])
def test_a_batch_answers_as_its_rows_do_one_by_one(family: str, branch: str) -> None:
    model = with_exits(family, branch=branch)
    batch = rows_of(model)
    exits_EBC = forward_outputs(model, batch, OutputRequest(exits=True)).exits
    assert exits_EBC is not None and exits_EBC.shape[:2] == (4, 12)
    seen = set()
    for speed in SPEEDS:
        answers = answer_early(model, batch, speed)
        seen |= {*answers.layers.tolist()}
        for row in range(12):
            single = answer_early(model, alone(batch, row), speed)
            assert single.layers.item() == answers.layers[row]
            assert torch.allclose(single.logits[0], answers.logits[row], atol=1e-5)
            # What is answered is what the branch there says of the row.
            assert torch.allclose(exits_EBC[int(answers.layers[row]) - 1, row], answers.logits[row], atol=1e-5)
    assert len(seen) >= 2


@torch.no_grad()
def test_rows_leave_at_the_first_exit_that_is_sure() -> None:
    model = with_exits()
    batch = rows_of(model)
    exits_EBC = forward_outputs(model, batch, OutputRequest(exits=True)).exits
    assert exits_EBC is not None
    unsure_EB = torch.stack([uncertainty(logits) for logits in exits_EBC])
    for speed in SPEEDS:
        sure = [[*map(bool, column <= speed), True] for column in unsure_EB[:-1].T]
        assert answer_early(model, batch, speed).layers.tolist() == [row.index(True) + 1 for row in sure]
    assert answer_early(model, batch, 1.0).layers.tolist() == [1] * 12


@torch.no_grad()
def test_a_score_leaves_where_two_exits_agree() -> None:
    model = with_exits(num_labels=1)
    batch = rows_of(model)
    scores_EB = forward_outputs(model, batch, OutputRequest(exits=True)).exits[..., 0]  # type: ignore[index]
    steps_EB = (scores_EB[1:] - scores_EB[:-1]).abs()
    seen = set()
    for speed in (0.05, 0.3, 1.0):
        # Behind the first exit nobody leaves; the unit is the labels' spread.
        agrees = [[False, *map(bool, column <= SPREAD * speed), True] for column in steps_EB[:2].T]
        expected = [row.index(True) + 1 for row in agrees]
        seen |= {*expected}
        assert answer_early(model, batch, speed).layers.tolist() == expected
    assert {2, 4} <= seen


@torch.no_grad()
def test_the_batch_really_shrinks() -> None:
    model = with_exits()
    batch = rows_of(model)
    seen: dict[int, int] = {}
    for number, layer in enumerate(removable_layers(model.base_model), 1):
        inner: Any = layer.intermediate
        inner.register_forward_hook(lambda _, inputs, __, number=number: seen.__setitem__(number, len(inputs[0])))
    exits_EBC = forward_outputs(model, batch, OutputRequest(exits=True)).exits
    assert exits_EBC is not None
    # The surest that any exit is of a row; of one row it is less than the speed.
    surest_B = torch.stack([uncertainty(logits) for logits in exits_EBC[:-1]]).amin(0)
    seen.clear()
    layers = answer_early(model, batch, float(surest_B.max()) - 1e-3).layers
    assert seen == {number: count for number in range(1, 5) if (count := int((layers >= number).sum()))}
    assert seen[1] == 12 > seen[2] >= seen[3] >= seen[4] == 1
    seen.clear()
    answer_early(model, batch, 1.0)
    assert seen == {1: 12}  # nobody is left for the layers above


@torch.no_grad()
def test_some_layers_alone_have_exits() -> None:
    model = add_exits(plain(), ExitSettings(layers=[3, 1], width=6, heads=3), seed=1).model.eval()
    assert model.config.exit_layers == [1, 3] and [*model.branches] == ["1", "3"]
    assert {*answer_early(model, rows_of(model), 1.0).layers.tolist()} == {1}


@torch.no_grad()
def test_saved_and_loaded_it_answers_the_same(tmp_path: Path) -> None:
    model = with_exits("electra")
    save_model(model, tiny_classifiers.tokenizer(), tmp_path)
    loaded = load_model(str(tmp_path), "classifier", where="model")
    assert not loaded.new
    by_transformers = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    batch = rows_of(model)
    for other in (loaded.model.eval(), by_transformers):
        assert torch.allclose(answer_early(other, batch, 0.5).logits, answer_early(model, batch, 0.5).logits, atol=1e-6)
    logits = ExitLogits(loaded.model).logits(batch)
    assert logits.shape == (12, 4 * 2)


@torch.no_grad()
def test_outputs_change_places_in_every_exit() -> None:
    model = with_exits()
    batch = rows_of(model)
    before = forward_outputs(model, batch, OutputRequest(exits=True)).exits
    reorder_head(model, [2, 0, 1])
    after = forward_outputs(model, batch, OutputRequest(exits=True)).exits
    assert before is not None and after is not None and torch.allclose(after, before[..., [2, 0, 1]], atol=1e-5)


def test_branches_alone_learn_and_from_a_model_that_stands_still() -> None:
    loaded = plain(hidden_dropout_prob=0.3)
    model = add_exits(loaded, ExitSettings(), seed=1).model
    objective = Objective(make_terms({"self_distillation": (1.0, {})}, Catalog()), model)
    batch = rows_of(model)
    with frozen(model, ["backbone"]):
        model.train()
        assert model.branches.training and not any(module.training for module in model.backbone.modules())
        losses = [loss for _, loss, _ in objective.losses(batch)]
        losses[0].backward()
        with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if name.startswith("branches.")}
    model.train()
    assert model.backbone.training  # no longer frozen
    model.zero_grad()
    objective = Objective(make_terms({"self_distillation": (1.0, {}), "hard_label": (1.0, {})}, Catalog()), model)
    sum(loss for _, loss, _ in objective.losses({**batch, "labels": torch.zeros(12, dtype=torch.long)})).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_what_a_row_costs_by_hand() -> None:
    model = with_exits()  # 4 layers, d = 32, F = 64, C = 3, w = 128
    T, d, F, w, C = 10, 32, 64, 128, 3
    layer, branch = (
        8 * T * d * d + 4 * T * T * d + 4 * T * d * F,
        2 * T * d * w + 4 * T * w * w + 4 * T * w + 6 * w * w + 2 * w * C,
    )
    head = 2 * d * d + 2 * d * C
    assert exit_flops(model.config, T) == {
        1: layer + branch,
        2: 2 * (layer + branch),
        3: 3 * (layer + branch),
        4: 4 * layer + 3 * branch + head,
    }
    assert forward_flops(model.config, T) == forward_flops(model.backbone.config, T) == 4 * layer + head
    summary = exit_summary(model.config, {1: 3, 4: 1}, length=T, speed=0.5)
    assert summary["left"] == {"1": 0.75, "4": 0.25} and summary["layers"] == 7 / 4
    assert summary["flops"] == round((3 * (layer + branch) + 4 * layer + 3 * branch + head) / 4)
    assert exit_summary(model.config, {4: 4}, length=T, speed=0.0)["flops"] == 4 * layer + head
    linear = add_exits(plain(), ExitSettings(branch="linear"), seed=1).model
    assert exit_flops(linear.config, T)[2] == 2 * (layer + 2 * d * C)  # type: ignore[index]


def test_torch_counts_the_same() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = with_exits()
    hidden, by_layer = torch.randn(1, 10, 32), exit_flops(model.config, 10)
    assert by_layer is not None
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model.branches["1"](hidden)
    layer = (forward_flops(model.config, 10) or 0) - (2 * 32 * 32 + 2 * 32 * 3)
    assert by_layer[1] - layer // 4 == counter.get_total_flops()


@pytest.mark.parametrize(
    ("code", "settings"),
    [
        ("M036", {"layers": [4]}),
        ("M036", {"layers": [0]}),
        ("M036", {"layers": []}),
        ("M036", {"layers": [1, 9]}),
    ],
)
def test_an_exit_layer_that_is_not_there(code: str, settings: dict[str, Any]) -> None:
    with pytest.raises(MbertError) as caught:
        add_exits(plain(), ExitSettings(**settings), seed=1)
    assert caught.value.code == code and "early_exit.layers" in caught.value.where


def test_models_that_take_no_exits() -> None:
    with pytest.raises(MbertError) as caught:
        add_exits(plain(layers=1), ExitSettings(), seed=1)
    assert caught.value.code == "M036" and "branch=none" in caught.value.fix
    sizes = dict(
        hidden_size=16, embedding_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, vocab_size=200
    )
    albert = AlbertForSequenceClassification(AlbertConfig(**sizes))
    with pytest.raises(MbertError) as caught:  # all its layers are one
        add_exits(LoadedModel(albert, tiny_classifiers.tokenizer(), "albert", []), ExitSettings(), seed=1)
    assert caught.value.code == "M328" and "distilbert" in caught.value.allowed
    loaded = add_exits(plain(), ExitSettings(), seed=1)
    assert add_exits(loaded, ExitSettings(), seed=2) is loaded
    with pytest.raises(MbertError) as caught:
        add_exits(loaded, ExitSettings(branch="linear"), seed=1)
    assert caught.value.code == "M037"


@pytest.mark.parametrize("speed", [-0.1, 1.01, float("nan")])
def test_a_speed_outside_its_range(speed: float) -> None:
    model = with_exits()
    with pytest.raises(MbertError) as caught:
        chosen_speed(model.config, speed, where="model")
    assert caught.value.code == "M155"
    with pytest.raises(MbertError) as caught:
        parse_speeds(f"0.5,{speed}")
    assert caught.value.code == "M155"


def test_speeds_of_models() -> None:
    model = with_exits()
    assert chosen_speed(model.config, None, where="model") == 0.0
    model.config.speed = 0.3
    assert chosen_speed(model.config, None, where="model") == 0.3 and chosen_speed(model.config, 0.0, where="model") == 0.0
    assert chosen_speed(model.backbone.config, None, where="model") == chosen_speed(model.backbone.config, 0.0, where="m") == 0
    with pytest.raises(MbertError) as caught:
        chosen_speed(model.backbone.config, 0.5, where="model")
    assert caught.value.code == "M157" and "method=fastbert" in caught.value.fix
    assert parse_speeds("0, 0.5,1,0.5") == [0.0, 0.5, 1.0]
    with pytest.raises(MbertError) as caught:
        parse_speeds("0,fast")
    assert caught.value.code == "M156"


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_answers_as_the_model_does(family: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from microbert_cli.models.exits.graph import ExitSession, write_exits

    model, path = with_exits(family, layers=3), tmp_path / "model.exits.onnx"
    batches = [rows_of(model, rows, length) for rows, length in ((1, 8), (5, 23))]
    assert write_exits(model, path, batches=batches)[1] < 1e-4
    session = ExitSession(tmp_path, 0.5)
    seen = set()
    for batch in batches:
        for speed in (0.0, *SPEEDS, 1.0):
            session.speed = speed
            expected, (logits, layers) = answer_early(model, batch, speed), session.answer(batch)
            assert layers.tolist() == expected.layers.tolist()
            assert np.abs(logits - expected.logits.numpy()).max() < 1e-4
            seen |= {*layers.tolist()}
    assert {*seen} >= {2, 3} if family == "distilbert" else {1, 3}


def test_branch_modules_ignore_padding() -> None:
    model = with_exits()
    hidden, mask = torch.randn(2, 9, 32), torch.ones(2, 9, dtype=torch.long)
    mask[:, 6:] = 0
    branch: nn.Module = model.branches["1"]
    assert torch.allclose(branch(hidden, mask), branch(hidden[:, :6], mask[:, :6]), atol=1e-6)
