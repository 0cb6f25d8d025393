"""Advice is typed: every error whose `fix` has a command is provoked somewhere, and its command is run.

`tests/commands/test_bad_input.py` follows the advice of its tables; further errors are here. What neither has is listed below
with the reason, so that a new error with a command is noticed.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from advice import START, follow
from mbert_command import mbert
from tiny_folder import tiny_folder
from tiny_models import tiny_bert

import microbert_cli

PACKAGE = Path(microbert_cli.__file__).parent
HERE = Path(__file__).parent
RECIPE = """
task    = "sst2"
base    = "base"
student = "bert-1x16"
corpus  = "text.txt"
data    = "glue"
stages  = ["finetune", "task-distill"]
"""
DISTIL = ("task-distill", "--teacher", "taught", "--student", "bert-1x16", "--task", "sst2", "--set", "teacher.allow_weak=true")
GENERAL = ("general-distill", "--teacher", "base", "--student", "bert-2x16", "--corpus", "text.txt", "--set", "general.steps=1")
DUAL = (
    "general-distill", "--teacher", "base", "--corpus", "text.txt", "--set", "method=dualtrain", "--set", "general.steps=1",
    "--set", "general.dual.vocabulary=90",
)  # fmt: skip
PRUNE = (
    "task-distill", "--teacher", "taught", "--task", "sst2", "--set", "teacher.allow_weak=true", "--set", "method=kd",
    "--set", "init=teacher", "--set", "phases.distillation.steps=2", "--set", "phases.distillation.prune.every=1", "--student",
)  # fmt: skip
EXITS = (
    "task-distill", "--teacher", "taught", "--task", "sst2", "--set", "teacher.allow_weak=true", "--set", "method=fastbert",
    "--set", "phases.branches.steps=2",
)  # fmt: skip
AUGMENT = ("augment", "--task", "sst2")
FINETUNE = ("finetune", "--model", "base", "--task", "sst2", "--set", "finetune.steps=1")
MEANINGS = {
    "MODEL": "taught", "DIR": "taught", "FILE": "reviews.csv", "TASK": "sst2", "METHOD": "tinybert", "STUDENT": "bert-1x16",
    "NAME": "tinybert", "RECIPE": "small.toml", "--masked-lm MODEL": "base", "--corpus python-docs": "text.txt",
    "--text COLUMN": "text", "--label COLUMN": "label",
}  # fmt: skip

# The words of a mistake, and the code of its error.
MISTAKES: dict[str, tuple[str, tuple[str, ...]]] = {
    "a length beyond the positions, of predict": ("M012", ("predict", "taught", "fine", "--max-length", "4000")),
    "a table and no column": ("M106", ("predict", "taught", "--file", "reviews.csv")),
    "a column and no table": ("M107", ("predict", "taught", "--text", "text")),
    "texts and a file": ("M108", ("predict", "taught", "fine", "--file", "lines.txt")),
    "a grid without values": ("M123", ("compare", "tinybert", "--grid", "finetune.learning_rate")),
    "masked positions of a loss that needs them": ("M091", (*GENERAL, "--set", "general.losses.masked_lm=1")),
    "experts that are not there": (
        "M073", (*DISTIL, "--set", "moe.side=student", "--set", "moe.experts=2", "--set", "moe.top_k=3"),
    ),
    "a plain model to extract from": ("M128", ("extract", "taught", "--task", "sst2")),
    "a table that is no task": ("M030", ("finetune", "--model", "base", "--task", "broken.toml")),
    "a recipe that is no TOML": ("M001", ("finetune", "broken-recipe.toml")),
    "a machine that is none": ("M116", ("plan", "small.toml", "--on", "cpu:0")),
    "no student to go on from": ("M022", ("task-distill", "--teacher", "taught", "--task", "sst2", "--set", "method=kd")),
    "a vocabulary from nowhere": ("M021", ("finetune", "--model", "bert-1x16", "--task", "sst2", "--set", "base=")),
    "rows of no file": ("M256", ("finetune", "--model", "base", "--dev-file", "reviews.csv", "--text", "text")),
    "a column that is not there": ("M253", ("finetune", "--model", "base", "--train-file", "reviews.csv", "--label", "stars")),
    "stop words in Latin-1": ("M344", (*AUGMENT, "--masked-lm", "base", "--set", "augment.stop_words=latin.txt")),
    "vectors in Latin-1": ("M342", (*AUGMENT, "--masked-lm", "base", "--vectors", "latin vectors.txt")),
    "vectors that end early": ("M341", (*AUGMENT, "--masked-lm", "base", "--vectors", "short.txt")),
    "a model without a masked-LM head": ("M311", (*AUGMENT, "--masked-lm", "bare")),
    "pairs of a task of single texts": ("M246", (*AUGMENT, "--set", 'augment.sources=["recombine"]')),
    "a tagger without its data": ("M247", (*AUGMENT, "--set", 'augment.sources=["rules"]')),
    "an option that no augmenter has": ("M035", (*AUGMENT, "--set", "augment.options.perturb.swop=0.2")),
    "a task of one label and several labels": ("M379", ("evaluate", "several", "--task", "sst2")),
    "a metric of another kind": ("M444", ("finetune", "--model", "base", "--task", "sst2", "--set", "data.primary=pearson")),
    "labels in another order": ("M321", ("evaluate", "taught", "--teacher", "foreign", "--task", "sst2")),
    "fewer tokens than the texts use": ("M093", ("trim", "taught", "--task", "sst2", "--set", "vocabulary.rows=120")),
    "common tokens, and no number": ("M098", ("trim", "taught", "--task", "sst2", "--set", "vocabulary.keep=common")),
    "a student of another type than the teacher it is pruned from": ("M420", (*PRUNE, "distilbert-1x16")),
    "a student larger than the teacher it is pruned from": ("M421", (*PRUNE, "bert-3x16")),
    "pruning without a loss on answers": (
        "M423", (*PRUNE, "bert-1x16x8", *(word for loss in ("soft_target=0", "hard_label=0", "hidden_states=1")
                                          for word in ("--set", f"phases.distillation.losses.{loss}"))),
    ),
    "pruned columns and a loss of one width": (
        "M424", (*PRUNE, "bert-1x8", "--set", "phases.distillation.losses.relations.heads=2"),
    ),
    "pruning a student that begins as something else": ("M425", (*PRUNE, "bert-1x16x8", "--set", "init=new")),
    "pruning a compiled student": ("M426", (*PRUNE, "bert-1x16x8", "--set", "compile=true")),
    "an exit behind the last layer": ("M036", (*EXITS, "--set", "early_exit.layers=[2]")),
    "a loss of exits and a student without": ("M038", (*DISTIL, "--set", "phases.distillation.losses.self_distillation=1")),
    "exits and experts": ("M039", (*EXITS, "--set", "moe.side=student")),
    "a speed above 1": ("M155", ("predict", "taught", "fine", "--speed", "2")),
    "a student of pairs and a task of single texts": ("M324", (*DISTIL[:4], "bi-1x16x16", *DISTIL[5:])),
    "a projection of weights and one vocabulary": ("M396", (*GENERAL, "--set", "general.losses.shared_projection=1")),
    "a projection onto fewer layers": ("M388", (*DUAL, "--student", "bert-1x8")),
    "a second vocabulary and the teacher's weights": (
        "M389", (*DUAL, "--student", "bert-2x8x32", "--set", "initialise=teacher-slice"),
    ),
    "a stage, and names that have none": ("M170", ("list", "methods", "export")),
    "keys of no stage": ("M171", ("list", "keys", "exprot")),
    "a kind that the cache does not hold": ("M172", ("cache", "--kind", "teachers")),
    "a time that is none": ("M173", ("cache", "--older", "soon")),
    "two tables": ("M174", ("distill", "reviews.csv", "--task", "sst2")),
    "a stride as long as a window": (
        "M481", (*FINETUNE, "--set", "data.windows=mean", "--set", "data.max_length=12", "--set", "data.stride=10"),
    ),
    "windows in a run of several tasks": ("M483", ("task-distill", "--set", 'tasks=["sst2"]', "--set", "data.windows=mean")),
    "another number of labels": ("M320", ("evaluate", "taught", "--teacher", "three", "--task", "sst2")),
}  # fmt: skip


# What needs a network, a GPU, a damaged disk, several processes or minutes of training, or is typed in tests of its own.
NOT_TYPED = set(
    """
    M228 M530 M009 M315 M011 M014 M019 M378 M381 M387 M021 M034 M040 M042 M043 M044 M046 M048
    M050 M051 M053 M055 M057 M058 M059 M060 M062 M063 M065 M066 M068
    M067 M070 M071 M074 M076 M077 M078 M079 M081 M083 M085 M086
    M087 M088 M089 M090 M092 M094 M095 M096 M099 M113 M115 M117
    M118 M121 M122 M124 M125 M127 M129 M130 M131 M132 M134 M135 M140 M141 M142 M144 M146
    M325 M326 M327 M329 M613
    M037 M047 M049 M157 M160 M234 M328
    M136 M137 M280 M281 M282 M348 M349 M614
    M207 M224 M232 M262 M244 M245 M254 M258 M261 M265 M266 M267 M304 M305
    M313 M333 M337 M341 M347 M359 M361 M362 M364 M370 M380
    M026 M027 M150 M151 M161 M375 M391 M392 M393 M394 M397 M398 M399
    M175 M235 M236 M237 M377
    M484 M485
    M441 M442 M446
    M430 M431 M435 M436 M437 M439
    M227 M382 M402 M410 M422 M460 M461 M611 M612 M633 M635 M636 M637
    """.split()
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a recipe, its data, and models right and wrong."""
    place = tmp_path_factory.mktemp("advice")
    with tiny_folder(place, RECIPE, layers=2, hidden=16, dropout=0.0):
        tiny_bert("taught", labels=["negative", "positive"], dropout=0.0)
        tiny_bert("bare", kind="encoder")
        Path("latin.txt").write_bytes("caf\u00e9\n".encode("latin-1"))
        Path("latin vectors.txt").write_bytes("boat 1 2\ncaf\u00e9 1 2\n".encode("latin-1"))
        Path("short.txt").write_text("boat 1 2\nday 1\n", encoding="utf-8")
        tiny_bert("foreign", labels=["schlecht", "gut"], dropout=0.0)
        tiny_bert("three", num_labels=3, dropout=0.0)
        several = tiny_bert("several", labels=["a", "b"], dropout=0.0)
        config = json.loads((several / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
        (several / "config.json").write_text(json.dumps(config))
        Path("broken.toml").write_text('name = "broken"\n', encoding="utf-8")
        Path("broken-recipe.toml").write_text("task = = 1\n", encoding="utf-8")
        Path("lines.txt").write_text("fine\n", encoding="utf-8")
        Path("reviews.csv").write_text("text,label\n" + "a lovely boat,good\na gloomy day,bad\n" * 20, encoding="utf-8")
        yield place


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in that folder."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("MBERT_DATA", "glue")
    monkeypatch.setattr("nltk.data.path", [])


@pytest.mark.parametrize("case", MISTAKES)
def test_advice_leads_a_step_further(case: str, tmp_path: Path) -> None:
    code, words = MISTAKES[case]
    done = mbert(*words, "--json")
    error = done.json["error"]
    assert error["code"] == code, done.err
    assert follow(error, words, tmp_path, MEANINGS) > 0, f"nothing to type in: {error['fix']}"


def codes_with_commands() -> set[str]:
    """The codes of all errors whose `fix` has a command or an option to type, as far as the source shows it."""
    codes = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                fix = next((ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "fix"), "")
                if re.fullmatch(r"M\d{3}", str(node.args[0].value)) and START.search(fix.strip("f'\"")):
                    codes.add(str(node.args[0].value))
    return codes


def test_every_advice_is_typed_or_listed() -> None:
    typed = set()
    for name in ("test_bad_input.py", "test_advice.py"):
        typed |= set(re.findall(r'"(M\d{3})"', (HERE / name).read_text(encoding="utf-8")))
    assert sorted(codes_with_commands() - typed - NOT_TYPED) == []
    assert sorted(NOT_TYPED - codes_with_commands()) == [], "these have no command any more"
