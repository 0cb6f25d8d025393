"""A phase that trains only the word vectors that occur ends with the same weights as one that walks through the whole table."""

import os
import signal
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny_bert

from microbert_cli.data.batching import endless_batches
from microbert_cli.data.multitask_batching import MultitaskExamples
from microbert_cli.data.tokenized import TokenizedExamples
from microbert_cli.distillation.teacher import Teacher
from microbert_cli.models.load import load_model
from microbert_cli.recipe.registry import Catalog
from microbert_cli.training import checkpoint
from microbert_cli.training.loop import Interrupted, train
from microbert_cli.training.loss_terms import make_terms
from microbert_cli.training.objective import Objective
from microbert_cli.training.plan import TrainingPlan
from microbert_cli.training.word_rows import WordRows

ROWS, LENGTH = 64, 10
IDS = torch.randint(5, 100, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
LABELS = (IDS[:, 1] % 2).long()
OCCUR = np.union1d(IDS.numpy(), [0])
TABLE = "bert.embeddings.word_embeddings.weight"
WORDS = [f"word{number}" for number in range(400)]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A teacher, and a student with a vocabulary of which little occurs."""
    folder = tmp_path_factory.mktemp("models")
    tiny_bert(folder / "teacher", layers=2, hidden=16, seed=1)
    tiny_bert(folder / "wide", layers=1, hidden=8, seed=2, vocab=WORDS)
    return folder


def batches(skip, *, stop_at=None):
    for number, rows in enumerate(endless_batches([LENGTH] * ROWS, batch_size=8, seed=7, skip=skip), skip):
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        ids = IDS[rows]
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": LABELS[rows]}


def objective_of(places, student):
    teacher, loaded = (load_model(places / name, "classifier", where=name) for name in ("teacher", student))
    terms = make_terms({"soft_target": (1.0, {}), "hard_label": (1.0, {})}, Catalog())
    return Objective(terms, loaded.model, ask_teacher=Teacher(teacher).ask, student_width=8, teacher_width=16)


def plan_of(**changed):
    return TrainingPlan(**{"name": "phase", "steps": 12, "learning_rate": 1e-3, "evaluate_every": 4, **changed})


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def run(places, directory, *, ids=OCCUR, source=batches, score=None, **plan):
    directory.mkdir(exist_ok=True)
    objective = objective_of(places, "wide")
    trained = train(
        objective, source, plan_of(**plan), directory=directory, seed=11, token_ids=ids, score=score, primary="accuracy"
    )
    return trained, {**objective.student.state_dict(), **objective.state_dict()}, objective


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-distilbert", "bertadam"])
def test_the_same_weights_as_by_the_whole_table(places, tmp_path, optimizer):
    """To the bit where no norm over all weights scales the gradients; the others decay as they would have."""
    calm = {"max_grad_norm": 1e9} if optimizer != "bertadam" else {}
    whole, expected, _ = run(places, tmp_path / "whole", ids=None, optimizer=optimizer, **calm)
    rows, weights, objective = run(places, tmp_path / "rows", optimizer=optimizer, **calm)
    assert equal({n: w for n, w in weights.items() if n != TABLE}, {n: w for n, w in expected.items() if n != TABLE})
    assert rows == whole
    others = np.setdiff1d(np.arange(len(expected[TABLE])), OCCUR)
    assert len(others) > len(OCCUR), "or else this shows nothing"
    assert torch.equal(weights[TABLE][OCCUR], expected[TABLE][OCCUR])
    start = objective_of(places, "wide").student.state_dict()[TABLE]
    assert not torch.equal(expected[TABLE][others], start[others]), "they decay"
    torch.testing.assert_close(weights[TABLE][others], expected[TABLE][others], rtol=1e-6, atol=0)
    table = objective.student.get_input_embeddings()
    assert table.weight.shape == expected[TABLE].shape and not table._forward_pre_hooks and table.padding_idx == 0


def test_a_table_that_the_losses_do_not_reach_does_not_decay(places, tmp_path):
    objective = objective_of(places, "wide")
    table = objective.student.get_input_embeddings()
    before = table.weight.detach().clone()
    table.register_forward_hook(lambda *inputs: inputs[-1].detach())
    train(objective, batches, plan_of(), directory=tmp_path, seed=1, token_ids=OCCUR)
    assert torch.equal(table.weight, before)


def test_a_clipped_step_differs_by_the_order_of_a_sum_alone(places, tmp_path):
    _, expected, _ = run(places, tmp_path / "whole", ids=None)
    _, weights, _ = run(places, tmp_path / "rows")
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stopped", [0, 5, 11])
def test_resumed_is_uninterrupted_bit_by_bit(places, tmp_path, stopped):
    _, expected, _ = run(places, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(places, tmp_path / "parts", source=partial(batches, stop_at=stopped))
    assert equal(run(places, tmp_path / "parts")[1], expected)


def test_a_state_of_the_whole_table_is_gone_on_with_as_it_was(places, tmp_path):
    _, expected, _ = run(places, tmp_path / "whole", ids=None)
    with pytest.raises(Interrupted):
        run(places, tmp_path / "parts", ids=None, source=partial(batches, stop_at=5))
    (path,) = (tmp_path / "parts").rglob("step-*.pt")
    state = checkpoint.load_state(path.parent)
    assert state is not None and state.pop("word_rows") == 0
    checkpoint.save_state(state, path.parent)  # as before there was such a number
    assert equal(run(places, tmp_path / "parts")[1], expected)


def test_dev_is_answered_with_the_whole_table_and_the_best_weights_are_whole(places, tmp_path):
    objective, shapes = objective_of(places, "wide"), []

    def score():
        table = objective.student.get_input_embeddings()
        shapes.append(tuple(table.weight.shape))
        table(torch.tensor([len(table.weight) - 1]))  # a word that no training row has
        return {"accuracy": -len(shapes)}

    trained = train(objective, batches, plan_of(), directory=tmp_path, seed=1, token_ids=OCCUR, score=score, primary="accuracy")
    assert len(shapes) == 3 and set(shapes) == {tuple(objective.student.get_input_embeddings().weight.shape)}
    assert trained.best_step == 4


def test_a_word_that_was_said_not_to_occur_is_no_other_word(places, tmp_path):
    with pytest.raises(IndexError):
        run(places, tmp_path, ids=OCCUR[:-1])


def test_the_whole_table_is_trained_where_the_rest_is_no_decay(places):
    objective = objective_of(places, "wide")
    assert WordRows.of(objective, "adamw", OCCUR).count == len(OCCUR)
    for optimizer in ("lamb", "adamax", "adadelta"):
        assert WordRows.of(objective, optimizer, OCCUR).count == 0
    assert WordRows.of(objective, "adamw", None).count == 0
    assert WordRows.of(objective, "adamw", np.arange(500)).count == 0, "most of them occur"
    objective.student.get_input_embeddings().weight.requires_grad_(False)
    assert WordRows.of(objective, "adamw", OCCUR).count == 0, "nothing of it is trained"


def test_a_table_that_a_head_shares_is_left_alone(tmp_path):
    tiny_bert(tmp_path / "lm", layers=1, hidden=8, kind="masked-lm", vocab=WORDS)
    student = load_model(tmp_path / "lm", "masked-lm", where="lm").model
    student.cls.predictions.decoder.weight = student.get_input_embeddings().weight
    assert WordRows.of(SimpleNamespace(student=student, pruner=None), "adamw", OCCUR).count == 0


def test_ids_of_rows_of_one_task_and_of_several():
    parts = [
        TokenizedExamples(ids=np.array(ids, dtype=np.int32), types=None, offsets=np.array([0, len(ids)]))
        for ids in ([7, 3, 7], [9, 3])
    ]
    assert parts[0].distinct_ids(1).tolist() == [1, 3, 7] and parts[0].distinct_ids(None).tolist() == [3, 7]
    assert MultitaskExamples(tuple(parts), (0.5, 0.5)).distinct_ids(0).tolist() == [0, 3, 7, 9]
