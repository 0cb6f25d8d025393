"""What has a name, and the keys of a recipe: as a table, as names alone, as JSON."""

import pytest
from mbert_command import refused, works


def test_a_list_says_what_each_is_and_where_it_is_from() -> None:
    lines = works("list", "methods").out.splitlines()
    assert lines[0].split() == ["methods", "what", "it", "is", "from"]
    kd = next(line for line in lines if line.startswith("kd "))
    assert "Knowledge distillation (Hinton et al. 2015)" in kd and kd.endswith("arXiv 1503.02531")
    names = works("list", "methods", "--json").json["methods"]
    assert [line.split()[0] for line in lines[1:]] == names == works("list", "methods", "--names").out.split()


def test_everything_that_comes_with_mbert_says_what_it_is() -> None:
    for kind, names in works("list", "--json").json.items():
        lines = works("list", kind).out.splitlines()[1:]
        assert [line.split()[0] for line in lines] == names
        assert all(len(line.split()) > 2 for line in lines), kind


def test_a_recipe_is_told_by_the_first_sentence_of_its_comment() -> None:
    lines = works("list", "recipes").out.splitlines()
    pd = next(line for line in lines if line.startswith("pd-sst2"))
    assert pd.split(None, 1)[1] == "BERT-base -> PD 6 x 768 on SST-2"
    assert not any("Expect:" in line or "Run:" in line for line in lines)


def test_keys_of_a_recipe_and_those_of_one_stage() -> None:
    everything = works("list", "keys", "--json").json
    assert everything["finetune.warmup"]["type"] == "number >= 0 <= 1" and everything["finetune.warmup"]["default"] == "0.1"
    assert everything["phases.PHASE.losses"]["text"]
    of_export = works("list", "keys", "export", "--names").out.split()
    assert {"export.int8", "data.max_length", "task"} <= set(of_export) and "finetune.epochs" not in of_export
    assert set(of_export) < set(everything)
    assert "export.tolerance" in works("list", "keys", "export").out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [(("keys", "exprot"), "M171", "export"), (("methods", "export"), "M170", "methods"), (("metods",), "M103", "methods")],
)
def test_what_is_refused(words: tuple[str, ...], code: str, says: str) -> None:
    assert says in " ".join(map(str, refused(2, code, "list", *words).values()))


def test_explain_shows_the_keys_of_the_stage_and_what_was_set() -> None:
    words = ("export", "somewhere", "--set", "finetune.epochs=7", "--explain-config")
    short, whole = works(*words), works(*words, "-v")
    keys = {line.split()[0] for line in short.out.splitlines()}
    assert {"export.int8", "task", "data.text", "finetune.epochs"} <= keys and "finetune.warmup" not in keys
    assert "finetune.warmup" in whole.out and "-v" in short.err
    assert "finetune.warmup" in works(*words, "--json").json
