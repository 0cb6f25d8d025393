"""PKD, knowledge distillation, PD and DistilBERT: numbers that can be checked by hand, and what is asked of whom."""

from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_bert
from transformers import AutoConfig, AutoModel, BertConfig, DistilBertConfig

from microbert_cli import api
from microbert_cli.catalog.losses.cosine import cosine
from microbert_cli.catalog.losses.patience import patience
from microbert_cli.catalog.losses.token_soft_target import token_soft_target
from microbert_cli.data.corpus.masking import mask_batch, token_weights
from microbert_cli.distillation.general import general_terms, make_student, required_heads
from microbert_cli.distillation.layer_map import layer_map
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.errors import MbertError
from microbert_cli.models import factory as places_module
from microbert_cli.models.capture import OutputRequest
from microbert_cli.models.load import count_all_parameters, load_model
from microbert_cli.plan.expected_inputs import ModelInfo
from microbert_cli.plan.phases import distil_jobs
from microbert_cli.plan.rehearsal import rehearse
from microbert_cli.plan.work import answering_load
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import overlay, resolve
from microbert_cli.recipe.student_shapes import read_student
from microbert_cli.recipe.task_kinds import kind_of_head
from microbert_cli.runs.stage_inputs import steps
from microbert_cli.training.loss_terms import check_depth, make_terms
from microbert_cli.training.objective import Objective

TWO_CLASSES = kind_of_head(2, names=["LABEL_0", "LABEL_1"])

CATALOG = Catalog()


def tensor(*values):
    return torch.tensor(values, dtype=torch.float32)


def same(vectors):
    return vectors


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    tiny_bert(folder / "teacher", layers=6, hidden=16, kind="masked-lm", seed=1)
    tiny_bert(folder / "student", layers=3, hidden=8, kind="masked-lm", seed=2)
    tiny_bert(folder / "wide", layers=3, hidden=16, kind="masked-lm", seed=3)
    return folder


@pytest.fixture(scope="module")
def batch():
    ids = torch.randint(5, 100, (4, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:], mask[2, 3:] = 0, 0
    positions = torch.tensor([1, 5, 13, 25, 40])
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
        "labels": torch.tensor([0, 1, 1, 0]),
        "token_positions": positions,
        "token_labels": torch.tensor([7, 9, 11, 13, 15]),
    }


class Asked:
    """A teacher that remembers what it was asked."""

    def __init__(self, loaded):
        self.teacher, self.wants = Teacher(loaded), []

    def __call__(self, batch, want):
        self.wants.append(want)
        return self.teacher.ask(batch, want)


def make(places, terms, *, student="student", rule="uniform", kind="classifier"):
    taught, pupil = (
        load_model(places / name, kind, where=name, new_head=True, head=TWO_CLASSES if kind == "classifier" else None)
        for name in ("teacher", student)
    )
    of_teacher, of_student = taught.model.config, pupil.model.config
    asked = Asked(taught)
    torch.manual_seed(3)
    objective = Objective(
        make_terms(terms, CATALOG),
        pupil.model.eval(),
        ask_teacher=asked,
        map_layers=layer_map(rule, teacher_layers=of_teacher.num_hidden_layers, student_layers=of_student.num_hidden_layers),
        student_width=of_student.hidden_size,
        teacher_width=of_teacher.hidden_size,
    )
    return objective, asked


def reached(model):
    return {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.abs().max() > 0}


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"reduction": "sum"}, 0.40),
        ({"reduction": "mean"}, 0.20 / 5),
        ({"reduction": "mean", "normalise": False}, (9 + 1) / 2 / 5),
        ({"reduction": "sum", "normalise": False}, 10.0),
    ],
)
def test_patience_by_hand(keywords, expected):
    """(3, 4) against (0, 5): only the first token's vectors count, over as many inner layers as there are."""
    student, teacher = tensor([[3.0, 4.0], [70.0, 8.0]]), tensor([[0.0, 5.0], [-3.0, 1.0]])
    assert patience(student, teacher, project=same, mapped_layers=5, **keywords).item() == pytest.approx(expected, abs=1e-6)
    both = patience(torch.cat([student] * 3), torch.cat([teacher] * 3), project=same, mapped_layers=5, **keywords)
    assert both.item() == pytest.approx(expected, abs=1e-6)  # a mean over rows


def test_the_published_maps_are_rules_that_there_are():
    """Skip is `uniform`, last is `last`, both without the student's top layer; also of a large teacher."""
    published = {
        ("uniform", 12, 6): [2, 4, 6, 8, 10],
        ("uniform", 12, 3): [4, 8],
        ("last", 12, 6): [7, 8, 9, 10, 11],
        ("last", 12, 3): [10, 11],
        ("uniform", 24, 6): [4, 8, 12, 16, 20],
    }
    for (rule, N, M), inner in published.items():
        assert layer_map(rule, teacher_layers=N, student_layers=M)[1:-1] == inner


def test_patience_is_about_inner_layers_alone(places, batch):
    objective, asked = make(places, {"patience": (1.0, {})}, student="wide")
    objective(batch).backward()
    assert asked.wants == [OutputRequest(hidden=frozenset({2, 4}))] and objective.student_request == OutputRequest(
        hidden=frozenset({1, 2})
    )
    touched = reached(objective.student)
    assert any("layer.1." in name for name in touched)
    assert not any("layer.2." in name or "classifier" in name or "pooler" in name for name in touched)
    assert objective.projection is None


def test_patience_maps_another_width_and_trains_the_map(places, batch):
    objective, _ = make(places, {"patience": (1.0, {})})
    objective(batch).backward()
    assert objective.projection.weight.grad.abs().max() > 0


def test_an_equal_student_has_learned_its_patience(places, batch):
    for reduction in ("sum", "mean"):
        objective, _ = make(places, {"patience": (500.0, {"reduction": reduction})}, student="teacher")
        assert objective(batch).item() == 0


def test_a_student_of_one_layer_has_no_inner_ones():
    (term,) = make_terms({"patience": (1.0, {})}, CATALOG)
    check_depth({"phases.x.losses.patience": term}, 2)
    with pytest.raises(MbertError) as caught:
        check_depth({"phases.x.losses.patience": term}, 1)
    assert (caught.value.code, caught.value.where) == ("M090", "phases.x.losses.patience")


def weights_of(method, phase, **flags):
    losses = resolve(catalog=CATALOG, flags={"method": method, **flags}).recipe.phases[phase].losses
    return {name: (term.weight, term.parameters) for name, term in losses.items()}


def test_pkd_is_worth_what_its_page_says():
    """One row, two classes, T = 10: (1 - 0.7) CE + 0.7 x 100 KL / 2, the mean over classes being the released code's."""
    losses = weights_of("pkd", "distillation")
    assert losses["patience"] == (500.0, {"normalise": True, "reduction": "mean"})
    terms = {term.name: term for term in make_terms({k: v for k, v in losses.items() if k != "patience"}, CATALOG)}
    student, teacher = tensor([0.0, 0.0]), tensor([10 * log(3.0), 0.0])
    soft, hard = terms["soft_target"], terms["hard_label"]
    assert soft.weight * soft.function(student, teacher, **soft.parameters).item() == pytest.approx(
        0.7 * 100 * 0.06541, abs=1e-3
    )
    assert hard.weight * hard.function(student, torch.tensor([1])).item() == pytest.approx(0.3 * log(2), abs=1e-5)
    alone = weights_of("pkd", "distillation", ablate=["patience"])
    assert alone["patience"][0] == 0 and alone["soft_target"] == losses["soft_target"]
    assert weights_of("pkd", "distillation", task="sst2")["patience"][0] == 100.0


def test_kd_is_half_soft_and_half_hard():
    losses = weights_of("kd", "distillation")
    terms = {term.name: term for term in make_terms(losses, CATALOG)}
    value = terms["soft_target"].function(tensor([0.0, 0.0]), tensor([2 * log(3.0), 0.0]), **losses["soft_target"][1])
    assert (losses["soft_target"][0], losses["hard_label"][0]) == (0.5, 0.5)
    assert value.item() == pytest.approx(0.52325, abs=1e-5)


def test_pd_asks_for_answers_and_ends_with_labels_only_if_told(places, batch):
    phases = resolve(catalog=CATALOG, flags={"method": "pd"}).recipe
    assert list(phases.phases) == ["transfer", "labels"] and list(phases.run_phases) == ["transfer"]
    objective, asked = make(places, weights_of("pd", "transfer"))
    unlabelled = {name: value for name, value in batch.items() if name != "labels"}
    objective(unlabelled).backward()
    assert asked.wants == [OutputRequest(logits=True)] and "classifier.weight" in reached(objective.student)


def test_cosine_by_hand():
    """(1, 1) against (1, 0): 1 - 1 / sqrt 2; a padded token of another direction does not count, except under reference."""
    student, teacher = tensor([[1.0, 1.0], [3.0, 0.0]]), tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert cosine(student, teacher, torch.tensor([[1, 0]])).item() == pytest.approx(0.29289, abs=1e-5)
    padded = cosine(student, teacher, torch.tensor([[1, 0]]), normalisation="reference")
    assert padded.item() == pytest.approx((0.29289 + 2) / 2, abs=1e-5)
    assert cosine(7 * teacher, teacher, torch.tensor([[1, 1]])).item() == pytest.approx(0.0, abs=1e-6)


def told_words(student, teacher, mask, **keywords):
    """The heads are the vectors themselves: two words."""
    return token_soft_target(student, teacher, same, same, mask, **keywords)


def test_soft_targets_for_words_by_hand():
    """T = 2: 4 KL((.75, .25) || (.5, .5)) = 4 x 0.13081, over real tokens alone, or over those that were hidden."""
    teacher, student = tensor([[2 * log(3.0), 0.0], [0.0, 0.0], [9.0, 1.0]]), torch.zeros(1, 3, 2)
    mask = torch.tensor([[1, 1, 0]])
    assert told_words(student, teacher, mask).item() == pytest.approx(0.52325 / 2, abs=1e-5)
    assert told_words(student, teacher, mask, squared_temperature=False).item() == pytest.approx(0.13081 / 2, abs=1e-5)
    hidden = told_words(student, teacher, mask, positions="masked", token_positions_P=torch.tensor([0]))
    assert hidden.item() == pytest.approx(0.52325, abs=1e-5)
    none = told_words(student, teacher, mask, positions="masked", token_positions_P=torch.zeros(0, dtype=torch.long))
    assert none.item() == 0
    wider = token_soft_target(student, teacher, same, lambda z: torch.nn.functional.pad(z, (0, 1)), mask)
    assert wider.item() == pytest.approx(0.52325 / 2, abs=1e-5)  # a row of the teacher's embedding that no token has


DISTILBERT = {"token_soft_target": (5.0, {}), "masked_lm": (2.0, {}), "cosine": (1.0, {})}


def test_words_in_pieces_are_the_same_words(places, batch, monkeypatch):
    """Loss and gradients of a few positions at a time are those of all at once."""
    results = []
    for at_once in (512, 5):
        monkeypatch.setattr("microbert_cli.catalog.losses.token_soft_target.CHUNK_POSITIONS", at_once)
        objective, _ = make(places, DISTILBERT, rule="last", kind="masked-lm")
        loss = objective(batch)
        loss.backward()
        results.append((loss.item(), {name: weight.grad for name, weight in objective.student.named_parameters()}))
    (whole, gradients), (in_pieces, same_gradients) = results
    assert in_pieces == pytest.approx(whole, rel=1e-6)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, same_gradients[name], rtol=1e-4, atol=1e-7), name


def test_distilbert_asks_for_the_top_and_trains_all_of_the_student(places, batch):
    objective, asked = make(places, DISTILBERT, student="wide", rule="last", kind="masked-lm")
    objective(batch).backward()
    assert asked.wants == [OutputRequest(hidden=frozenset({6}), token_head=True)]
    assert objective.student_request == OutputRequest(hidden=frozenset({3}), token_head=True, token_logits=True)
    weights = {name for name, weight in objective.student.named_parameters() if weight.requires_grad}
    assert {name for name in weights - reached(objective.student) if "key.bias" not in name} == set()
    assert all(weight.grad is None for weight in asked.teacher.model.parameters())


def test_an_equal_student_has_learned_words_and_directions(places, batch):
    terms = {name: value for name, value in DISTILBERT.items() if name != "masked_lm"}
    objective, _ = make(places, terms, student="teacher", rule="last", kind="masked-lm")
    assert objective(batch).item() == pytest.approx(0.0, abs=1e-5)


def test_a_distilbert_has_the_published_size_and_learns_from_a_bert(places, batch):
    fields = {**read_student("distilbert-6x768", CATALOG), "num_attention_heads": 12, "vocab_size": 30522}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    assert count_all_parameters(model) == 66_362_880
    assert not [name for name, _ in model.named_parameters() if "token_type" in name or "pooler" in name]
    taught = load_model(places / "teacher", "masked-lm", where="teacher")
    pupil = places_module.encoder("distilbert-3x16", CATALOG, seed=0, teacher=taught, where="student", head="masked-lm")
    objective = Objective(
        make_terms(DISTILBERT, CATALOG), pupil.model, ask_teacher=Teacher(taught).ask, map_layers=[0, 4, 5, 6],
        student_width=16, teacher_width=16,
    )  # fmt: skip
    objective(batch).backward()
    weights = {name for name, _ in pupil.model.named_parameters() if "k_lin.bias" not in name}
    assert weights - reached(pupil.model) == set()


def test_rare_words_are_hidden_oftener():
    """Chances count^-0.7: of words seen 10,000 times and never, the second is hidden about 631 times as often."""
    corpus = np.array([7] * 10_000 + [8] * 100, dtype=np.uint16)
    weights = token_weights(corpus, 12, 0.7)
    assert weights[7].item() == pytest.approx(10_000**-0.7, rel=1e-5) and weights[9] == weights[11] == 1.0
    assert weights[8].item() == pytest.approx(100**-0.7, rel=1e-5)


class Words:
    """As much of a tokenizer as masking asks for."""

    all_special_ids, mask_token_id = (0, 1, 2, 3, 4), 4

    def __len__(self):
        return 40


def test_so_many_words_are_hidden_as_the_share_says():
    """ceil(0.15 x real tokens), special ones counted but never hidden; rare ones first; from seed and number alone."""
    ids = torch.full((4, 12), 7)
    ids[:, 0], ids[:, 9:] = 1, 0
    ids[0, 3], ids[2, 5] = 9, 9
    rows = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    rare = torch.ones(40).index_fill(0, torch.tensor([7]), 1e-7)
    how = {"share": 0.15, "seed": 1, "chances_V": rare}
    masked = mask_batch(rows, Words(), number=0, **how)
    assert len(masked["token_positions"]) == 6  # ceil(0.15 x 36)
    assert {3, 29} <= set(masked["token_positions"].tolist())
    assert not (ids.flatten()[masked["token_positions"]] < 5).any()
    assert torch.equal(masked["token_labels"], ids.flatten()[masked["token_positions"]])
    again, other = mask_batch(rows, Words(), number=0, **how), mask_batch(rows, Words(), number=1, **how)
    assert torch.equal(masked["input_ids"], again["input_ids"])
    assert not torch.equal(masked["token_positions"], other["token_positions"])
    bare = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2)}
    assert len(mask_batch(bare, Words(), number=0, **how)["token_positions"]) == 0


def test_words_must_be_hidden_for_a_loss_on_hidden_words():
    general = {"method": "distilbert", "general.masked": 0.0}
    with pytest.raises(MbertError) as caught:
        general_terms(resolve(catalog=CATALOG, flags=general).recipe, CATALOG)
    assert (caught.value.code, caught.value.where) == ("M091", "general.losses.masked_lm")
    recipe = resolve(catalog=CATALOG, flags={"method": "distilbert"}).recipe
    assert required_heads(recipe, CATALOG) == ("masked-lm", "masked-lm")
    assert required_heads(resolve(catalog=CATALOG, flags={"method": "tinybert"}).recipe, CATALOG) == ("encoder", "encoder")


def test_what_hides_no_words_is_what_it_was():
    """Keys of masking do not change the identity of runs that hide none, or hide them evenly."""
    plain = resolve(catalog=CATALOG, flags={"method": "tinybert"}).recipe.identity("general", "pretrain")
    assert not {"masked", "smoothing"} & plain["general"].keys() and "smoothing" not in plain["pretrain"]
    assert plain["pretrain"]["masked"] == 0.15
    identity = resolve(catalog=CATALOG, flags={"method": "distilbert"}).recipe.identity("general")
    assert (identity["general"]["masked"], identity["general"]["smoothing"]) == (0.15, 0.7)


def test_stage_one_of_distilbert(tmp_path, monkeypatch):
    """It begins as layers and head of a BERT, and ends as transformers' own masked-LM, from which a classifier is made."""
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("\n\n".join(["the film was good .\nit was not long ."] * 30), encoding="utf-8")
    initialise = {"by": "teacher-layers", "layers": [0, 2, 5]}
    tiny_bert(tmp_path / "teacher", layers=6, hidden=16, intermediate=64, kind="masked-lm", seed=1)
    flags = {"method": "distilbert", "initialise": initialise}
    taught = load_model(tmp_path / "teacher", "masked-lm", where="teacher")
    pupil = make_student(resolve(catalog=CATALOG, flags=flags).recipe, CATALOG, taught, "distilbert-3x16").model
    head = taught.model.cls.predictions
    assert torch.equal(pupil.vocab_transform.weight, head.transform.dense.weight)
    assert torch.equal(pupil.vocab_projector.bias, head.bias)
    third = taught.model.bert.encoder.layer[5]
    assert torch.equal(pupil.distilbert.transformer.layer[2].ffn.lin1.weight, third.intermediate.dense.weight)
    result = api.general_distill(
        teacher=str(tmp_path / "teacher"), student="distilbert-3x16", corpus=str(tmp_path / "text.txt"), out=tmp_path / "out",
        corpus__max_length=16, general__steps=3, general__batch_size=4, method="distilbert", initialise=initialise,
    )  # fmt: skip
    held = result.metrics["heldout"]
    assert held["loss"] == pytest.approx(5 * held["token_soft_target"] + 2 * held["masked_lm"] + held["cosine"], rel=1e-5)
    assert load_model(result.out, "masked-lm", where="out").model.config.architectures == ["DistilBertForMaskedLM"]
    classifier = load_model(result.out, "classifier", where="out", new_head=True, head=TWO_CLASSES)
    assert classifier.head_is_new and classifier.model.config.model_type == "distilbert"


@pytest.mark.parametrize("method", ["kd", "pkd", "distilbert", "pd"])
def test_each_method_has_a_recipe_that_runs_here_and_one_for_a_teacher_of_the_hub(method):
    """Static: every stage finds its inputs; the small one names no model, the other one a Hub id and GLUE's SST-2."""
    small, large = (resolve(recipe=f"{method}-{kind}", catalog=CATALOG) for kind in ("quickstart", "sst2"))
    assert (small.recipe.method, large.recipe.method) == (method, method)
    assert (small.recipe.task, large.recipe.task) == ("python-docs", "sst2")
    assert small.recipe.base is None and large.recipe.base == "google-bert/bert-base-uncased"
    reference = resolve(recipe="microbert-quickstart", catalog=CATALOG).recipe
    assert small.recipe.keys("pretrain", "finetune", "corpus", "data") == reference.keys(
        "pretrain", "finetune", "corpus", "data"
    )
    for resolved in (small, large):
        named = {step.name: step for step in steps(resolved, Path("runs"), CATALOG)}
        assert list(named) == resolved.recipe.stages
        student = named["task-distill"].inputs["student"]
        stage_one = {"distilbert": "general-distill", "pd": "student"}.get(method)
        assert student == (str(Path("runs", stage_one)) if stage_one else resolved.recipe.student)
        assert ("initial" in named["task-distill"].inputs) == (method == "pkd")


def test_the_search_of_pkd_tries_alpha_without_patience_and_beta_with_it():
    search = resolve(recipe="pkd-search", catalog=CATALOG)
    losses = {
        step.name: step.resolved.recipe.phases["distillation"].losses for step in steps(search, Path("runs"), CATALOG)[1:]
    }
    alphas = {name: (terms["hard_label"].weight, terms["soft_target"].weight) for name, terms in losses.items()}
    assert alphas == {"alpha-0.2": (0.8, 0.2), "alpha-0.5": (0.5, 0.5), "alpha-0.7": (0.3, 0.7)}
    assert {terms["patience"].weight for terms in losses.values()} == {0.0}
    (_, beta) = steps(overlay(search, {"stages": ["finetune", "beta"]}, "test", CATALOG), Path("runs"), CATALOG)
    assert beta.resolved.recipe.phases["distillation"].losses["patience"].weight == 500.0


def test_a_plan_rehearses_heads_over_all_tokens():
    """A step of DistilBERT's stage one with random weights, the teacher's head among them; its products are counted."""
    bert = BertConfig(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, vocab_size=200)
    distilbert = DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=200)
    recipe = resolve(catalog=CATALOG, flags={"method": "distilbert"}).recipe
    job, ask = distil_jobs(recipe, recipe.general, CATALOG, ModelInfo(bert, None), ModelInfo(distilbert, None), "encoder")
    assert ask.want == OutputRequest(hidden=frozenset({4}), token_head=True)
    job = replace(job, head="masked-lm", logits=True, predicted=0.15, heads=2.0)
    load = answering_load(np.array([16] * 4), batch_size=4)
    without = replace(job, heads=0.0).flops(load)
    assert job.flops(load) - without == 3 * 2 * 64 * (2 * 16 * 16 + 2 * 16 * 200)
    (seconds,) = rehearse(job, [(4, 16)], catalog=CATALOG, device="cpu", budget=0.01).values()
    assert seconds > 0
