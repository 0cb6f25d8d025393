"""Which directory feeds which stage: names of stages, of students, and of both."""

import pytest

from microbert_cli.errors import MbertError
from microbert_cli.recipe.registry import Catalog
from microbert_cli.recipe.resolve import resolve
from microbert_cli.runs.stage_inputs import step, steps

NAME = "bert-2x16x32"  # a student of the catalogue
KEYS = {
    "task-distill": ("student", "student"), "general-distill": ("student", "student"),
    "pretrain": ("pretrain.model", "model"), "finetune": ("finetune.model", "model"),
}  # fmt: skip


def resolved(key, name, **flags):
    about = {"task": "sst2", "teacher": "teacher", "base": "base", "corpus": "python-docs"}
    return resolve(catalog=Catalog(), environment={}, flags={**about, key: name, **flags})


def finished(root, name):
    (root / name).mkdir(parents=True)
    (root / name / "manifest.json").write_text("{}")


@pytest.mark.parametrize("stage", KEYS)
def test_a_student_is_no_output_of_an_earlier_run(stage, tmp_path):
    """The second run of `mbert task-distill --student NAME -o runs/sst2/NAME` begins with the student, not with its output."""
    key, place = KEYS[stage]
    finished(tmp_path, NAME)
    finished(tmp_path, "assistant")
    for name, expected in ((NAME, NAME), ("assistant", str(tmp_path / "assistant"))):
        recipe = resolved(key, name, stages=["assistant"], variant={"assistant": {"stage": "general-distill"}})
        assert step(stage, recipe, tmp_path, Catalog(), out=tmp_path / NAME).inputs[place] == expected


@pytest.mark.parametrize("stage", KEYS)
def test_a_name_of_a_stage_and_of_a_student_is_refused(stage, tmp_path):
    key, _ = KEYS[stage]
    variant = {NAME: {"stage": "task-distill", "student": "bert-1x16", "pretrain": {"model": "x"}}, "again": {"stage": stage}}
    with pytest.raises(MbertError) as caught:
        steps(resolved(key, NAME, stages=[NAME, "again"], variant=variant), tmp_path, Catalog())
    assert (caught.value.code, caught.value.where) == ("M025", key)
