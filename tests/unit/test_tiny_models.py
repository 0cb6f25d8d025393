"""The small models and the invented GLUE are what the other tests take them for."""

from pathlib import Path

import pytest
from tiny_glue import TASKS, tiny_glue, tiny_rows
from tiny_models import WORDS, tiny_bert, tiny_tokenizer


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_glue(tmp_path_factory.mktemp("glue"), rows=12)


def cells(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8-sig").split("\n") if line]


def test_the_same_arguments_give_the_same_files(tmp_path: Path, glue: Path) -> None:
    for first, second in (
        (tiny_bert(tmp_path / "a"), tiny_bert(tmp_path / "b")),
        (glue, tiny_glue(tmp_path / "g", rows=12)),
    ):
        files = {str(path.relative_to(first)): path.read_bytes() for path in first.rglob("*") if path.is_file()}
        assert files == {str(path.relative_to(second)): path.read_bytes() for path in second.rglob("*") if path.is_file()}
    weights = (tiny_bert(tmp_path / "c", seed=1) / "model.safetensors").read_bytes()
    assert weights != (tmp_path / "a" / "model.safetensors").read_bytes()


def test_every_row_is_as_wide_as_its_header(glue: Path) -> None:
    widths = {str(path.relative_to(glue).with_suffix("")): {len(row) for row in cells(path)} for path in glue.rglob("*.tsv")}
    assert all(len(width) == 1 for width in widths.values())
    shown = ("CoLA/train", "SST-2/test", "MRPC/dev", "STS-B/train", "STS-B/test", "QQP/train", "QQP/test", "QNLI/dev")
    assert [widths[name] for name in shown] == [{4}, {2}, {5}, {10}, {9}, {6}, {3}, {4}]
    mnli = ("MNLI/train", "MNLI/dev_mismatched", "MNLI/test_matched", "diagnostic/diagnostic")
    assert [widths[name] for name in mnli] == [{12}, {16}, {10}, {3}]


def test_the_quirks_of_the_official_files_are_there(glue: Path) -> None:
    assert (glue / "MRPC/train.tsv").read_bytes().startswith(b"\xef\xbb\xbfQuality\t")
    assert not (glue / "MRPC/test.tsv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert cells(glue / "CoLA/dev.tsv")[0][0] == "tiny"
    assert cells(glue / "SST-2/dev.tsv")[1][0].endswith(" ")
    assert not (glue / "diagnostic/diagnostic.tsv").read_bytes().endswith(b"\n")


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_row_and_labels_are_balanced(task: str) -> None:
    splits = tiny_rows(task, 24)
    texts = [row[0] for rows in splits.values() for row in rows]
    assert len(set(texts)) == len(texts)
    for rows in splits.values():
        counts = {label: sum(1 for row in rows if row[1] == label) for _, label in rows}
        assert len(counts) == (len(TASKS[task].names) or 4) and max(counts.values()) - min(counts.values()) <= 1


def test_english_text_tokenises(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    assert len(tokenizer) > len(WORDS) + 70
    assert tokenizer.tokenize("The lovely boat.") == ["the", "lovely", "boat", "."]
    assert "[UNK]" not in tokenizer.tokenize('Quixotic ideas, "half-baked": 42% of them (or 7)! Cafés & jazz?')


def test_heads_and_labels_are_as_asked(tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

    named = AutoModelForSequenceClassification.from_pretrained(tiny_bert(tmp_path / "named", labels=["bad", "good", "so"]))
    assert named.config.id2label == {0: "bad", 1: "good", 2: "so"} and named.classifier.out_features == 3
    score = AutoModelForSequenceClassification.from_pretrained(tiny_bert(tmp_path / "score", num_labels=1))
    assert score.config.problem_type == "regression"
    filler, info = AutoModelForMaskedLM.from_pretrained(
        tiny_bert(tmp_path / "mlm", kind="masked-lm", layers=3, hidden=24, heads=3), output_loading_info=True
    )
    assert filler.config.num_hidden_layers == 3 and not info["missing_keys"]
