"""Pruning while distilling: schedule and sensitivities by hand, what is cut answers as what is masked, every stop is exact."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from stopping import stopped_everywhere
from tiny_models import WORDS, tiny_bert, tiny_glue, tiny_tokenizer
from torch import nn

from microbert_cli import api
from microbert_cli.distillation.pruning.cut import layers_of_model
from microbert_cli.distillation.pruning.gates import LayerGates
from microbert_cli.distillation.pruning.importance import Tensors, sensitivities, update
from microbert_cli.distillation.pruning.pruner import Pruner, progress
from microbert_cli.distillation.pruning.shape import Sizes, plain_name, pruned_config, size_at
from microbert_cli.errors import MbertError
from microbert_cli.models.capture import OutputRequest, forward_outputs, show_scores
from microbert_cli.models.size import forward_flops
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.values import Prune
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective

LABELS = ("negative", "positive")
CONFIGS: dict[str, Any] = {
    "bert": transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=4, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=20,
    ),
    "roberta": transformers.RobertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=4, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=20, type_vocab_size=1, pad_token_id=1,
    ),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=50, dim=16, n_layers=4, n_heads=4, hidden_dim=24, max_position_embeddings=20
    ),
}  # fmt: skip
FIRST = Sizes(layers=4, width=16, inner=24, heads=4, head_width=4)
TARGETS = {
    "layers and neurons": Sizes(layers=2, width=16, inner=10, heads=4, head_width=4),
    "dimensions of heads": Sizes(layers=3, width=12, inner=20, heads=4, head_width=3),
    "whole heads": Sizes(layers=4, width=8, inner=24, heads=2, head_width=4),
    "everything": Sizes(layers=2, width=6, inner=5, heads=2, head_width=3),
}


def model_of(name: str) -> Any:
    """A classifier with weights large enough for every structure to matter."""
    torch.manual_seed(3)
    model = transformers.AutoModelForSequenceClassification.from_config(copy.deepcopy(CONFIGS[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.dim() == 1) * 0.2)
    show_scores(model)
    return model


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    ids = torch.randint(5, 50, (6, 9))
    mask = torch.ones_like(ids)
    mask[1:3, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 1, 0, 1, 0])}


def objective_of(model: Any) -> Objective:
    return Objective(make_terms({"hard_label": (1.0, {})}, Catalog()), model, classes=2)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return forward_outputs(model.eval(), batch(), OutputRequest(logits=True)).logits  # type: ignore[return-value]


def in_stages(model: Any, target: Sizes) -> Pruner:
    """Cuts a model in four stages; its weights change by nothing else."""
    objective = objective_of(model)
    pruner = Pruner(objective, target, Prune(start=0.0, end=1.0, every=1))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train()
    for step in (1, 2, 3, 4):
        objective(batch()).backward()
        pruner.observe()
        model.zero_grad(set_to_none=True)
        pruner.cut(step, 4)
    return pruner


class MaskedNorm(nn.Module):
    """A LayerNorm over the kept columns alone, which gives 0 in all others."""

    def __init__(self, norm: nn.LayerNorm, kept: torch.Tensor):
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x[..., self.kept]
        normal = (kept - kept.mean(-1, keepdim=True)) / (kept.var(-1, unbiased=False, keepdim=True) + self.norm.eps).sqrt()
        out = torch.zeros_like(x)
        out[..., self.kept] = normal * self.norm.weight[self.kept] + self.norm.bias[self.kept]
        return out


@torch.no_grad()
def masked(model: Any, pruner: Pruner) -> Any:
    """The model of the first sizes with everything masked that the pruner did not keep."""
    kept = pruner.kept
    for name, parameter in model.named_parameters():
        plain = plain_name(name, model)
        parts = plain.split(".")
        layer = int(parts[2]) if parts[0] == "encoder" else -1
        module = ".".join(parts[3:-1]) if layer >= 0 else ".".join(parts[:-1])
        rows = {"intermediate.dense": "inner", "attention.self.query": "scores", "attention.self.key": "scores",
                "attention.self.value": "values"}.get(module)  # fmt: skip
        columns = {"output.dense": "inner", "attention.output.dense": "values"}.get(module)
        if rows:
            parameter[_lost(kept[f"{rows}.{layer}"], len(parameter))] = 0
        if columns and parameter.dim() == 2:
            parameter[:, _lost(kept[f"{columns}.{layer}"], parameter.shape[1])] = 0
        if module in ("classifier", "classifier.out_proj") and parameter.dim() == 2:
            parameter[:, _lost(kept["pooled"], parameter.shape[1])] = 0
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if isinstance(module, nn.LayerNorm):
                setattr(parent, child, MaskedNorm(module, kept["hidden"]))
    layers = layers_of_model(model)
    for number in sorted(set(range(len(layers))) - set(pruner.layers), reverse=True):
        del layers[number]
    return model


def _lost(kept: torch.Tensor, count: int) -> torch.Tensor:
    lost = torch.ones(count, dtype=torch.bool)
    lost[kept] = False
    return lost


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_what_is_cut_answers_as_what_is_masked(model_type: str, target: str, tmp_path: Path) -> None:
    whole = model_of(model_type)
    cut = copy.deepcopy(whole)
    pruner = in_stages(cut, TARGETS[target])
    expected = logits(masked(copy.deepcopy(whole), pruner))
    assert pruner.finished
    assert (logits(cut) - expected).abs().max() < 1e-6  # a dropped layer is still in its place
    pruner.finish()
    assert (logits(cut) - expected).abs().max() < 1e-6
    assert (expected - logits(whole)).abs().max() > 1e-2  # what was cut did matter

    cut.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert Sizes.of(loaded.config) == TARGETS[target]
    inputs = {name: value for name, value in batch().items() if name != "labels"}
    with torch.no_grad():
        assert (loaded(**inputs).logits - expected).abs().max() < 1e-6
    assert {name: value.shape for name, value in loaded.state_dict().items()} == {
        name: value.shape for name, value in cut.state_dict().items()
    }
    assert forward_flops(cut.config, 12) == forward_flops(loaded.config, 12) < forward_flops(whole.config, 12)  # type: ignore[operator]


def test_the_schedule_by_hand() -> None:
    # 1 - (1 - t)^3 at 0, 1/4, 1/2, 3/4, 1 is 0, 37/64, 7/8, 63/64, 1
    assert [size_at(100, 36, t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)] == [100, 63, 44, 37, 36]
    # 3 (1 - (1 - t)^3) passes 1/2, 3/2, 5/2 at t = 0.059, 0.206, 0.450
    assert [size_at(6, 3, t) for t in (0.0, 0.05, 0.06, 0.2, 0.21, 0.44, 0.46, 1.0)] == [6, 6, 5, 5, 4, 4, 3, 3]
    assert size_at(7, 7, 0.4) == 7
    assert [progress(share, 0.2, 0.6) for share in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])


class TwoNeurons(nn.Module):
    """W1 [2, 2], b1 [2] and W2 [2, 2] under BERT's names."""

    base_model_prefix = "bert"
    config = CONFIGS["bert"]

    def __init__(self) -> None:
        super().__init__()
        layer = nn.ModuleDict(
            {"intermediate": nn.ModuleDict({"dense": nn.Linear(2, 2)}), "output": nn.ModuleDict({"dense": nn.Linear(2, 2)})}
        )
        self.bert = nn.ModuleDict({"encoder": nn.ModuleDict({"layer": nn.ModuleList([layer])})})


def test_sensitivities_by_hand() -> None:
    model = TwoNeurons()
    layer = model.bert["encoder"]["layer"][0]  # type: ignore[index]
    first, last = layer["intermediate"]["dense"], layer["output"]["dense"]
    values = {
        first.weight: ([[1.0, -2.0], [3.0, 0.5]], [[0.5, 1.0], [-1.0, 2.0]]),
        first.bias: ([2.0, 1.0], [-1.0, 0.0]),
        last.weight: ([[1.0, 4.0], [-1.0, 2.0]], [[2.0, 0.25], [3.0, -1.0]]),
        last.bias: ([5.0, -5.0], [1.0, 0.1]),
    }
    for parameter, (weights, gradients) in values.items():
        parameter.data, parameter.grad = torch.tensor(weights), torch.tensor(gradients)
    sums = sensitivities(Tensors(model), {"inner.0", "hidden"})
    # neuron 0: 0.5 + 2 of its row, 2 of its bias, 2 + 3 of its column;  neuron 1: 3 + 1, 0, 1 + 2
    assert sums["inner.0"].tolist() == [9.5, 7.0]
    # column 0: 0.5 + 3 of W1, 2 + 1 of W2's row, 5 of b2;  column 1: 2 + 1, 3 + 2, 0.5
    assert sums["hidden"].tolist() == [11.5, 8.5]
    means: dict[str, torch.Tensor] = {}
    update(means, sums, 0.75)
    assert means["inner.0"].tolist() == [2.375, 1.75]
    update(means, {"inner.0": torch.tensor([1.0, 9.0])}, 0.75)
    assert means["inner.0"].tolist() == [2.03125, 3.5625]


class Doubling(nn.Module):
    """A layer of one weight: w x."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x


def test_sensitivities_of_layers_by_hand() -> None:
    # x = (1, 2) of 3 and 0.5: y = (3, 6), then (1.5, 3). L = the square of the first less the second: dL/dy = (3, -1)
    layers = [Doubling(3.0), Doubling(0.5)]
    gates = LayerGates(layers)

    def step(x: torch.Tensor) -> None:
        y = layers[1](layers[0](x))
        (y[0].square() - y[1]).backward()

    step(torch.tensor([1.0, 2.0]))
    # second: (3, -1) . ((1.5, 3) - (3, 6)) = -1.5;  first: 0.5 (3, -1) . ((3, 6) - (1, 2)) = 1
    assert {number: value.item() for number, value in gates.sums.items()} == {0: 1.0, 1: -1.5}
    step(torch.tensor([1.0, 2.0]))  # a second batch of the same step
    assert {number: value.item() for number, value in gates.take().items()} == {0: 2.0, 1: 3.0} and not gates.sums
    layers[1].eval()
    step(torch.tensor([1.0, 2.0]))
    gates.forget()
    assert gates.take() == {}


@pytest.mark.parametrize("alone", [True, False], ids=["logits alone", "with hidden states"])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_gate_of_a_layer_is_its_derivative(model_type: str, alone: bool) -> None:
    """Against a difference of losses; of BERT's top layer with the first token alone, too."""
    model = model_of(model_type).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    layers = layers_of_model(model)
    shift = {"z": 1.0}
    request = OutputRequest(logits=True, hidden=frozenset() if alone else frozenset({1}))

    def loss() -> torch.Tensor:
        answers = forward_outputs(model, batch(), request).logits
        assert answers is not None
        return nn.functional.cross_entropy(answers, batch()["labels"])

    gates = LayerGates(layers)
    loss().backward()  # type: ignore[no-untyped-call]
    slopes = {number: value.item() for number, value in gates.sums.items()}
    for number, layer in enumerate(layers):
        handle = layer.register_forward_hook(lambda module, args, output: args[0] + shift["z"] * (output - args[0]))
        values = []
        for shift["z"] in (0.99, 1.01):
            full = OutputRequest(logits=True, hidden=frozenset({1}))
            with torch.no_grad():
                answers = forward_outputs(model, batch(), full).logits
                values.append(nn.functional.cross_entropy(answers.double(), batch()["labels"]).item())  # type: ignore[union-attr]
        handle.remove()
        assert slopes[number] == pytest.approx((values[1] - values[0]) / 0.02, rel=2e-2, abs=1e-4)


def test_the_least_important_go_first() -> None:
    model = model_of("bert")
    pruner = Pruner(objective_of(model), Sizes(2, 16, 3, 4, 4), Prune(end=1.0, every=1))
    neurons = torch.arange(24.0)
    pruner.means = {f"inner.{layer}": neurons.roll(layer) for layer in range(4)}
    pruner.means |= {f"layer.{layer}": torch.tensor(value) for layer, value in enumerate((5.0, 1.0, 7.0, 2.0))}
    pruner.cut(4, 4)
    assert pruner.layers == [0, 2] and pruner.record["layers"] == [1, 3]
    assert pruner.kept["inner.0"].tolist() == [21, 22, 23] and pruner.kept["inner.2"].tolist() == [0, 1, 23]


def test_optimiser_states_are_cut_with_their_parameters() -> None:
    model = model_of("bert")
    objective = objective_of(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = Pruner(objective, TARGETS["everything"], Prune(end=1.0, every=1))
    before = {}
    for step in (1, 2):
        objective(batch()).backward()
        pruner.observe()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        before = {name: optimiser.state[p]["exp_avg"].clone() for name, p in model.named_parameters() if p in optimiser.state}
        pruner.cut(step, 2, [optimiser])
    words = model.bert.embeddings.word_embeddings.weight
    assert all(optimiser.state[p]["exp_avg"].shape == p.shape for p in model.parameters() if p in optimiser.state)
    kept_of_step_1 = before["bert.embeddings.word_embeddings.weight"].shape[1]
    assert words.shape[1] == 6 and kept_of_step_1 > 6
    objective(batch()).backward()  # and it goes on
    optimiser.step()


def test_a_larger_target_and_another_type_are_refused() -> None:
    teacher = CONFIGS["bert"]

    def config(**sizes: int) -> Any:
        return transformers.BertConfig(**{**dict(hidden_size=16, num_attention_heads=4, num_hidden_layers=4,
                                                 intermediate_size=24), **sizes})  # fmt: skip

    wrong = [
        (config(num_hidden_layers=5), "num_hidden_layers 4 and 5"),
        (config(intermediate_size=25), "intermediate_size 24 and 25"),
        (config(hidden_size=20), "hidden_size 16 and 20"),
        (config(num_attention_heads=2), "width of a head 4 and 8"),  # fewer heads of the same hidden size are wider ones
    ]
    for target, what in wrong:
        with pytest.raises(MbertError) as error:
            pruned_config(teacher, target, where="student")
        assert error.value.code == "M421" and what in error.value.what
    with pytest.raises(MbertError) as error:
        pruned_config(teacher, CONFIGS["distilbert"], where="student")
    assert error.value.code == "M420"


TASK = {"task": "sst2", "data__folder": "glue", "data__max_length": 24, "teacher__allow_weak": True}
PHASE = {"batch_size": 8, "steps": 12, "evaluations": 2, "prune__every": 2, "prune__end": 0.8, "learning_rate": 1e-3}


def pruning(**more: Any) -> dict[str, Any]:
    phase = {f"phases__distillation__{key}": value for key, value in PHASE.items()}
    return {"method": "kd", "init": "teacher", "student": "bert-2x8x12", "teacher": "teacher", **TASK, **phase, **more}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of 4 x 16, 2 heads of 8, 32 neurons, and rows."""
    folder = tmp_path_factory.mktemp("pruning")
    tiny_bert(folder / "teacher", layers=4, labels=LABELS)
    tiny_glue(folder / "glue", ["sst2"], rows=48)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("optimizer", ["adamw", "bertadam"])
@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_by_bit(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    """Stopped at the first, a middle and the last step, with vectors that are mapped between widths."""
    more = {"phases__distillation__losses__hidden_states": 1.0, "phases__distillation__optimizer": optimizer}
    more["phases__distillation__checkpoint_steps"] = 1

    def make(out: Path, reporter: Any) -> Any:
        return api.distill(out=out, reporter=reporter, **pruning(**more))

    assert stopped_everywhere(make, tmp_path / "out", fresh_cache=monkeypatch) >= 3
    config = json.loads((tmp_path / "out" / "parts" / "config.json").read_text(encoding="utf-8"))
    assert [config[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size")] == [2, 8, 12]


def test_a_second_phase_trains_the_smaller_model(here: Path, tmp_path: Path) -> None:
    """Its layers learn by the recipe's map; what the first phase learnt of the map between widths goes on."""
    second = {"batch_size": 8, "steps": 3, "learning_rates": [1e-3, 1e-4]}
    more = {f"phases__later__{key}": value for key, value in second.items()}
    more |= {
        "phases__later__losses": {"hidden_states": 1.0, "soft_target": 1.0},
        "phases__distillation__losses__hidden_states": 1.0,
    }
    result = api.distill(out=tmp_path / "out", **pruning(**more))
    phases = result.metrics["phases"]
    assert phases["distillation"]["pruned"]["to"]["hidden_size"] == 8 and len(phases["distillation"]["pruned"]["layers"]) == 2
    assert "tried" in phases["later"] and "pruned" not in phases["later"]
    assert result.metrics["start"] == {"by": "pruning", "of": "teacher"}


def test_weights_before_the_last_cut_are_not_the_best(here: Path, tmp_path: Path) -> None:
    result = api.distill(out=tmp_path / "out", **pruning(phases__distillation__evaluations=12))
    assert result.metrics["phases"]["distillation"]["best_step"] >= 8  # then less than half a neuron is left to cut


@pytest.mark.parametrize(
    ("code", "more"),
    [
        ("M425", {"init": "auto"}),
        ("M425", {"student": "teacher"}),
        ("M421", {"student": "bert-5x16"}),
        ("M420", {"student": "distilbert-2x16"}),
        ("M423", {"phases__distillation__losses": {"soft_target": 0.0, "hard_label": 0.0, "hidden_states": 1.0}}),
        ("M424", {"phases__distillation__losses__relations": {"weight": 1.0, "heads": 4}}),
        ("M426", {"phases__distillation__learning_rates": [1e-3, 1e-4]}),
        ("M426", {"phases__distillation__freeze": ["layer.1"]}),
        ("M426", {"compile": True}),
        ("M426", {"moe__side": "student"}),
        ("M003", {"phases__distillation__prune__start": 0.9}),
        ("M002", {"phases__distillation__prune__evry": 2}),
    ],
)
def test_what_cannot_be_pruned_is_refused(here: Path, tmp_path: Path, code: str, more: dict[str, Any]) -> None:
    with pytest.raises(MbertError) as error:
        api.distill(out=tmp_path / "out", **pruning(**more))
    assert error.value.code == code


def test_embeddings_may_be_frozen(here: Path, tmp_path: Path) -> None:
    api.distill(out=tmp_path / "out", **pruning(student="bert-2x16x12", phases__distillation__freeze=["embeddings"]))
    name = "bert.embeddings.word_embeddings.weight"
    weights = [
        transformers.AutoModelForSequenceClassification.from_pretrained(path).state_dict()[name]
        for path in (tmp_path / "out", "teacher")
    ]
    assert torch.equal(*weights)


@pytest.mark.parametrize("model_type", ["roberta", "distilbert"])
def test_students_of_other_types(here: Path, tmp_path: Path, model_type: str) -> None:
    """A teacher of the type, and its shape as a TOML file."""
    config = copy.deepcopy(CONFIGS[model_type])
    tokenizer = tiny_tokenizer(tmp_path / "teacher", vocab=WORDS, max_length=32)
    config.update({"vocab_size": len(tokenizer), "max_position_embeddings": 40, "pad_token_id": tokenizer.pad_token_id,
                   "id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}})  # fmt: skip
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path / "teacher")
    inner = "hidden_dim" if model_type == "distilbert" else "intermediate_size"
    shape = f'title = "Small"\nmodel_type = "{model_type}"\nnum_hidden_layers = 2\nhidden_size = 8\n{inner} = 10\n'
    (tmp_path / "small.toml").write_text(shape + 'num_attention_heads = "teacher"\n', encoding="utf-8")
    student = {"teacher": str(tmp_path / "teacher"), "student": str(tmp_path / "small.toml")}
    api.distill(out=tmp_path / "out", **pruning(**student))
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert Sizes.of(loaded.config) == Sizes(layers=2, width=8, inner=10, heads=4, head_width=2)
