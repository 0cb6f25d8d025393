"""The Python example of docs/running.md runs on tiny models; commands are tried in test_docs.py."""

import re

import pytest
from tiny_models import tiny_bert

REVIEWS = ["arrived late and broken", "a fine film", "good story and great acting", "bad plot", "i like it", "poor thing"]


@pytest.fixture
def page(repo):
    return (repo / "docs" / "running.md").read_text(encoding="utf-8")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with what README's examples name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MBERT_CACHE", str(tmp_path / "cache"))
    tiny_bert(tmp_path / "bert", kind="masked-lm", layers=4, hidden=12, heads=2)
    rows = [f"{REVIEWS[i % 6]} number {i},{'low' if i % 6 in (0, 3, 5) else 'high'}" for i in range(60)]
    (tmp_path / "reviews.csv").write_text("text,stars\n" + "\n".join(rows) + "\n")
    (tmp_path / "texts.txt").write_text("".join(f"{text.capitalize()}. It was {text}.\n\n" for text in REVIEWS * 3))
    return tmp_path


def test_python_example(page, workplace, monkeypatch, capsys):
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1)
    assert len(example.strip().splitlines()) <= 10
    example = example.replace('"google-bert/bert-base-uncased"', '"bert"')
    for key, value in {
        "finetune__steps": 2,
        "phases__distillation__steps": 2,
        "teacher__allow_weak": "true",
    }.items():
        monkeypatch.setenv(f"MBERT_SET_{key.upper()}", str(value))
    exec(compile(example, "running.md", "exec"), {})
    output = capsys.readouterr().out
    assert "accuracy" in output and "agreement" in output and "probabilities" in output
    for name in ("teacher", "student", "report"):
        assert (workplace / "runs" / "py" / name / "manifest.json").is_file()
