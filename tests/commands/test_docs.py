"""Commands on the pages of README and docs/: every one is parsed, and those with --dry-run are resolved and wired."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from mbert_command import mbert
from tiny_models import tiny_bert

from microbert_cli.runs.manifest import output_digests

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("", "sh", "console")  # languages of blocks that hold commands
PLACES = """DIR teacher FINE_TUNED SMALL BIG MODEL student general exits cascade cascade/small cascade/big runs/minilm
    runs/teacher/finetune runs/short/export runs/shared runs/routed"""
FILES = "texts.txt texts.txt.gz my-texts.txt.gz text.txt.gz sentences.txt glove.6B.300d.txt"
STAGES = "finetune general-distill augment task-distill export".split()  # of runs that pages go on from
TABLES = "reviews.csv pairs.csv dev.csv tables/short.csv tables/short-dev.csv"
COLUMN_FILES = "train.conll dev.conll"
# What a reader puts in; benchmarks need what other commands make; the folder of extending.md is made in test_extending.py.
LEFT_TO_READERS = re.compile(r"\bTASK\b|\.\.\. |benchmarks/|--include mine")


def commands(page: Path) -> Iterator[list[str]]:
    """Yields the words of the commands on a page, without comments and what is piped into them."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        variables = dict(re.findall(r'^(\w+)="(.*)"', block, re.MULTILINE))
        for line in block.splitlines() if language in SHELL else ():
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            if match := re.search(r"(?:^|\| )(mbert [a-z].*)", line):
                yield shlex.split(match[1], comments=True)[1:]


LINES = [(page.name, words) for page in PAGES for words in commands(page)]
FIRST = ("README.md", "tutorial.md")  # what a newcomer types; the others are slow because they are many


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the pages name: models, tables, texts, an augmented set."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MBERT_CACHE", str(folder / "cache"))
        for name in ("recipes", "benchmarks"):
            Path(name).symlink_to(ROOT / name)
        for name in PLACES.split():
            Path(name).mkdir(parents=True, exist_ok=True)
            tiny_bert(name, kind="classifier")
        for root, recipe in {"reviews": {}, "sst2": {"task": "sst2"}}.items():
            for stage in STAGES:
                place = Path("runs", root, stage)
                tiny_bert(place, kind="classifier")
                record = {
                    "schema": 1,
                    "identity": {},
                    "identity_hash": "",
                    "result": "",
                    "outputs": output_digests(place),
                    "recipe": recipe,
                }
                (place / "manifest.json").write_text(json.dumps(record), encoding="utf-8")
        rows = [f"text {n},{['low', 'high'][n % 2]},{['low', 'high'][n % 2]},0.4,0.6,source {n},target {n}" for n in range(40)]
        for name in TABLES.split():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text("\n".join(["text,stars,label,p_bad,p_good,source,target", *rows, ""]), encoding="utf-8")
        rows = [f"comment {n},{n % 2},{n % 3 % 2},{int(n % 5 == 0)}" for n in range(40)]
        Path("comments.csv").write_text("\n".join(["comment,toxic,insult,threat", *rows, ""]), encoding="utf-8")
        lines = [{"comment": f"comment {n}", "labels": [["toxic"], ["insult", "threat"], []][n % 3]} for n in range(40)]
        Path("comments.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        for name in COLUMN_FILES.split():
            Path(name).write_text("Anna B-PER\nsleeps O\n\nRome B-LOC\n\n" * 20, encoding="utf-8")
        for name in FILES.split():
            Path(name).write_text("a text\n", encoding="utf-8")
        yield folder


def test_pages_have_commands() -> None:
    assert len(LINES) > 60
    assert {"README.md", "tutorial.md", "own-data.md", "cascade.md"} <= {page for page, _ in LINES}


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(((?!https?:)[^)#]+)(?:#([^)]+))?\)", text):
        assert (ROOT / target).exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", (ROOT / target).read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, anchor
    assert len(text.splitlines()) <= 150


@pytest.mark.parametrize(
    ("page", "words"),
    [
        pytest.param(page, words, id=f"{page} {' '.join(words)[:60]}", marks=[] if page in FIRST else pytest.mark.slow)
        for page, words in LINES
    ],
)
def test_a_command_is_understood(page: str, words: list[str]) -> None:
    from microbert_cli.cli.main import app

    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    line = " ".join(words)
    if "..." not in words:
        command.make_context(words[0], words[1:])
    if "--dry-run" not in {name for parameter in command.params for name in parameter.opts} or LEFT_TO_READERS.search(line):
        return
    before = sorted(str(path) for path in Path().rglob("*"))
    done = mbert(*words, *([] if "--dry-run" in words else ["--dry-run"]))
    assert done.code == 0, f"{page}: mbert {line}\n{done.err}"
    assert sorted(str(path) for path in Path().rglob("*")) == before
