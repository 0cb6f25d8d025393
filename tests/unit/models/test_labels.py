"""Outputs of a checkpoint matched to a task's labels: one-to-one by name or number, or not at all."""

import re
from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_bert

from microbert_cli.errors import MbertError
from microbert_cli.models.labels import check_names_differ, check_one_score, match_labels, match_names, names_settle_order
from microbert_cli.models.load import load_model
from microbert_cli.recipe.task import load_task
from microbert_cli.recipe.task_kinds import kind_of_head

DEFAULT = [f"LABEL_{i}" for i in range(12)]


def config(names, problem=None):
    """A classifier's configuration as far as its outputs go."""
    return SimpleNamespace(num_labels=len(names), id2label=dict(enumerate(names)), problem_type=problem)


def task(names):
    """A task with these labels."""
    values = {"name": "mine", "files": {"train": "my data.csv"}, "text": ["text"], "label": {"column": "label", "names": names}}
    return load_task(values)


@pytest.mark.parametrize(
    ("labels", "outputs", "columns"),
    [
        (["a", "b"], ["b", "a"], [1, 0]),
        (["CO", "Co"], ["Co", "CO"], [1, 0]),
        (["not-entailment", "x y"], ["X_Y", "Not entailment"], [1, 0]),
        (["CO", "Co", "other"], ["Other", "Co", "CO"], [2, 1, 0]),
        (["A-b", "a_b"], ["a_b", "A-b"], [1, 0]),
        (["A-b", "a_b"], ["A b", "a b"], None),
        (["CO", "co"], ["Co", "cO"], None),
        (["a", "b"], ["a", "a"], None),
        (["a", "b"], ["A", "a"], None),
        (["caf\u00e9", "b"], ["b", "cafe\u0301"], [1, 0]),
        (["a", "b"], ["a", "c"], None),
        ([f"class {i}" for i in range(12)], sorted(DEFAULT), [sorted(DEFAULT).index(f"LABEL_{i}") for i in range(12)]),
        (["1", "2", "3"], ["1 star", "2 stars", "3 stars"], [0, 1, 2]),
        (["3", "1", "2"], ["1 star", "2 stars", "3 stars"], [2, 0, 1]),
        (["-1", "0", "1"], ["1.0", "0.0", "-1.0"], [2, 1, 0]),
        (["1", "2", "3"], ["LABEL_0", "LABEL_1", "LABEL_2"], None),
        (["1", "2"], ["good 1", "bad 2"], None),
        (["1", "2"], ["class 01", "class 1"], None),
        (["h1n1", "h2n2"], ["1", "2"], None),
    ],
)
def test_names_are_matched_one_to_one(labels, outputs, columns):
    assert match_names(labels, outputs) == columns


def test_label_k_of_a_task_are_names_like_others():
    shuffled = [DEFAULT[i] for i in (3, 0, 1, 2)]
    assert match_labels(config(shuffled), task(DEFAULT[:4]), where="m", source="m") == [1, 2, 3, 0]
    assert names_settle_order(config(shuffled), task(DEFAULT[:4]))
    assert not names_settle_order(config(DEFAULT[:4]), task(["class 0", "class 1", "class 2", "class 3"]))
    assert not names_settle_order(config(["x", "y"]), task(["a", "b"]), ["a", "b"]), "a user's order is asked of the rows"


def test_what_cannot_be_matched_is_refused_with_a_command():
    with pytest.raises(MbertError, match="one-to-one") as caught:
        match_labels(config(["schlecht", "gut"]), task(["bad", "it's good"]), where="teacher.model", source="t")
    assert caught.value.code == "M321" and r"""--set 'teacher.label_order=["bad", "it'"'"'s good"]'""" in caught.value.fix
    for order in (["a", "a"], ["a", "b", "c"], ["a", "c"]):
        with pytest.raises(MbertError, match=re.escape(", ".join(order))):
            match_labels(config(["a", "b"]), task(["a", "b"]), where="teacher.model", source="t", order=order)
    with pytest.raises(MbertError) as caught:
        match_labels(config(DEFAULT), task(["a", "b"]), where="teacher.model", source="a model")
    options = "--train-file 'my data.csv' --text text --label label --set 'data.kind=\"classes\"'"
    assert caught.value.code == "M320" and f"mbert finetune --model 'a model' {options}" in caught.value.fix


def test_several_scores_a_row_are_refused():
    with pytest.raises(MbertError) as caught:
        check_one_score(config(["a", "b"], "regression"), where="model m")
    assert caught.value.code == "M379" and caught.value.exit_code == 5


def test_several_labels_a_row_answer_for_tasks_of_several_alone():
    several = load_task(
        {"name": "x", "files": {"train": "a.csv"}, "text": ["text"], "label": {"kind": "labels", "names": ["a", "b"]}}
    )
    model = config(["b", "a"], "multi_label_classification")
    assert match_labels(model, several, where="teacher.model", source="t") == [1, 0] and names_settle_order(model, several)
    one_label = [config(["a", "b"], problem) for problem in ("single_label_classification", None)]
    for other, wanted in ((model, task(["a", "b"])), *((other, several) for other in one_label)):
        with pytest.raises(MbertError) as caught:
            match_labels(other, wanted, where="teacher.model", source="t")
        assert caught.value.code == "M379" and "mbert finetune --model t" in caught.value.fix
    assert "problem_type" in caught.value.fix, "who knows that it has sigmoids can say so"


def test_two_outputs_of_one_name_are_refused():
    check_names_differ(config(["a", "A"]), where="model m")
    with pytest.raises(MbertError) as caught:
        check_names_differ(config(["a", "b", "a"]), where="model m")
    assert caught.value.code == "M323" and '"a"' in caught.value.what


@pytest.mark.parametrize(
    ("problem", "names"), [(None, ["a", "b"]), ("regression", ["a"]), ("single_label_classification", ["a", "b"])]
)
def test_one_label_or_score_a_row_is_fine(problem, names):
    check_one_score(config(names, problem), where="model m")


def test_training_goes_on_from_a_head_in_the_order_of_the_task(tmp_path):
    """A head that is kept answers for the same labels as before, whatever their order in the task."""
    directory = tiny_bert(tmp_path / "m", labels=["b", "c", "a"])
    before = load_model(directory, "classifier", where="m").model
    wanted = kind_of_head(3, names=["a", "b", "c"])
    after = load_model(directory, "classifier", where="m", new_head=True, head=wanted).model
    assert after.config.id2label == {0: "a", 1: "b", 2: "c"}
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        assert torch.equal(after.eval()(ids).logits, before.eval()(ids).logits[:, [2, 0, 1]])
    foreign = kind_of_head(3, names=["x", "y", "z"])
    as_it_was = load_model(directory, "classifier", where="m", new_head=True, head=foreign).model
    assert torch.equal(as_it_was.classifier.weight, before.classifier.weight)
