"""Next sentences: the loss by hand, whose labels they are, what learns, and where there are no pairs."""

from math import log

import pytest
import torch
from tiny_models import tiny_bert
from torch import nn

from microbert_cli import api
from microbert_cli.catalog.losses.next_sentence import next_sentence, trains
from microbert_cli.errors import MbertError
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.training.loss_terms import CLASSIFICATION_INPUTS, make_terms
from microbert_cli.training.objective import Objective

CATALOG = Catalog()


def test_by_hand():
    """A map that gives (ln 3, 0): 3/4 for "goes on"; the mean of - ln 3/4 and - ln 1/4. Single segments do not count."""
    head = nn.Linear(2, 2)
    nn.init.zeros_(head.bias)
    head.weight.data = torch.tensor([[log(3), 0.0], [0.0, 0.0]])
    hidden = torch.tensor([[[1.0, 5.0], [7.0, 7.0]], [[1.0, -5.0], [9.0, 9.0]]])
    assert next_sentence(hidden[:1], torch.tensor([0]), own=head).item() == pytest.approx(0.28768, abs=1e-5)
    both = next_sentence(hidden, torch.tensor([0, 1]), own=head)
    assert both.item() == pytest.approx((0.28768 + 1.38629) / 2, abs=1e-5)
    alone = next_sentence(hidden, torch.tensor([0, -100]), own=head)
    assert alone.item() == pytest.approx(0.28768, abs=1e-5)
    assert next_sentence(hidden, torch.tensor([-100, -100]), own=head).item() == 0
    hidden[:, 1] = 0
    assert next_sentence(hidden, torch.tensor([0, 1]), own=head).item() == both.item()


def test_the_map_begins_as_berts_layers_do():
    torch.manual_seed(0)
    head = trains(student_width=4096)
    assert head.weight.shape == (2, 4096) and head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not head.bias.any()


def test_student_and_map_learn_and_nobody_is_asked(tmp_path):
    loaded = load_model(tiny_bert(tmp_path / "student", layers=2, hidden=16), "encoder", where="student")
    objective = Objective(
        make_terms({"next_sentence": (1.0, {})}, CATALOG),
        loaded.model,
        map_layers=[0, 1, 2],
        student_width=16,
        teacher_width=24,
    )
    ids = torch.randint(5, 20, (8, 6), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    batch["unrelated"] = (ids[:, 1] > 12).long()
    learning = [*objective.parameters(), *loaded.model.parameters()]
    assert [tuple(parameter.shape) for parameter in objective.parameters()] == [(2, 16), (2,)]
    optimiser, values = torch.optim.Adam(learning, lr=1e-2), []
    for _ in range(30):
        optimiser.zero_grad()
        loss = objective(batch)
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    assert values[0] == pytest.approx(log(2), abs=0.05) and values[-1] < 0.1
    assert loaded.model.embeddings.word_embeddings.weight.grad.any() and objective.own["next_sentence"].weight.grad.any()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(
        "\n\n".join(["the film was good .\nit was not long .\nit was fine ."] * 60), encoding="utf-8"
    )
    tiny_bert(tmp_path / "teacher", layers=2, hidden=16, kind="masked-lm", seed=1)


def stage_one(**keys):
    return api.general_distill(
        teacher="teacher", student="bert-1x16", corpus="text.txt", out="out", method="mobilebert", initialise="random",
        corpus__max_length=16, general__steps=3, general__batch_size=4, **keys,
    )  # fmt: skip


def test_stage_one_of_mobilebert_has_it_and_its_student_does_not(place):
    result = stage_one()
    held = result.metrics["heldout"]
    assert held["loss"] == pytest.approx(held["token_mixed_target"] + held["next_sentence"], rel=1e-5)
    assert held["next_sentence"] == pytest.approx(log(2), abs=0.1)
    loaded = load_model(result.out, "masked-lm", where="out")
    assert loaded.model.config.architectures == ["BertForMaskedLM"]
    assert not [name for name, _ in loaded.model.named_parameters() if "next" in name or "seq_relationship" in name]


def test_without_pairs_it_is_refused_before_any_work(place):
    with pytest.raises(MbertError) as caught:
        stage_one(corpus__format="packed")
    assert caught.value.code == "M092" and caught.value.where.endswith("general.losses.next_sentence")
    stage_one(corpus__format="packed", ablate=["next"])


def test_rows_of_a_task_have_no_next_sentence():
    with pytest.raises(MbertError) as caught:
        make_terms(
            {"next_sentence": (1.0, {})},
            CATALOG,
            available=CLASSIFICATION_INPUTS | {"teacher"},
            where="phases.prediction.losses",
        )
    assert caught.value.code == "M008" and "unrelated" in caught.value.what
