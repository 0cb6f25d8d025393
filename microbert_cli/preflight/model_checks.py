"""Checks of what the stages read: is it here, and do teacher and student cut texts alike."""

from collections.abc import Iterator
from pathlib import Path

from microbert_cli import models, places
from microbert_cli.data import load_augmented
from microbert_cli.errors import MbertError
from microbert_cli.preflight.case import TAUGHT, Case, inputs_of
from microbert_cli.preflight.findings import Finding, Later, attempt, passed
from microbert_cli.stages.evaluate import default_splits
from microbert_cli.task_rows import find_task
from microbert_cli.wiring import Step
from microbert_cli.word_table import SUFFIXES

SPLITS = {
    "finetune": ("train", "dev"), "task-distill": ("train", "dev"), "augment": ("train",), "export": ("dev",),
    "report": ("train", "dev"), "evaluate": (),
}  # fmt: skip
TRIED = 500  # texts of the task
PROBES = (
    "The baker sold the boat.", "UPPER lower MiXeD", "crème brûlée, naïve Ångström", "don't e-mail a_b@c.example, ok?",
    "12.5 % of 1,000 costs €3", "  spaces\tand\nlines ", "東京 and Москва", "[MASK] [UNK] ##ing", "unaffableness",
)  # fmt: skip


def inputs(case: Case) -> Iterator[Finding]:
    """Models, corpora, vectors and rows are here, or will be; where the Hub may not be asked, its local cache has them."""
    told: set[str] = set()
    for step in case.steps:
        for role, name in inputs_of(step).items():
            if name not in told:
                yield attempt(name, _input, case, step, role, name)
            told.add(name)
    for step in case.steps:
        if step.kind in SPLITS:
            about = f"rows of {step.resolved.recipe.task or step.resolved.recipe.data.train_file}"
            found = attempt(about, _rows, case, step)
            if str(found) not in told:
                yield found
            told.add(str(found))


def _input(case: Case, step: Step, role: str, name: str) -> Finding:
    if name in case.to_come:
        raise Later(f"made by {case.to_come[name].name}")
    if role == "source":
        return passed(case.find_corpus(step))
    if role == "vectors" and (Path(name).is_file() or Path(name).suffix in SUFFIXES or ".zip/" in name):
        return _vectors(name)
    if role == "augmented":
        return passed(f"{len(load_augmented(Path(name), case.data(step).task)):,} rows")
    if places.is_description(name, case.catalog):
        return passed("a student of the catalogue")
    directory = case.directory(name, f"{step.kind}.{role}")
    return passed("here" if directory == Path(name) else "in the Hub's local cache")


def _vectors(name: str) -> Finding:
    file = name.partition(".zip/")[0] + ".zip" if ".zip/" in name else name
    if Path(file).is_file():
        return passed("here")
    raise MbertError(
        "M636",
        f"there is no file {file}",
        where="vectors.source",
        allowed="GloVe text (.txt, .gz, .zip), a BERT directory, or a Hub id.",
        fix="Name one: --vectors glove.6B.300d.txt; or leave the key out: the masked-LM's input embeddings serve.",
    )


def _rows(case: Case, step: Step) -> Finding:
    recipe = step.resolved.recipe
    splits = SPLITS[step.kind]
    if not splits:
        splits = tuple(recipe.evaluate.splits or default_splits(find_task(recipe, case.catalog)))
    data = case.rows(step, splits)
    return passed(", ".join(f"{split} {len(data.rows[split]):,}" for split in splits))


def tokenizers(case: Case) -> Iterator[Finding]:
    """Teacher and student make the same ids of the same text: logits and hidden states are compared row by row."""
    for step in case.steps_of(TAUGHT):
        yield attempt(step.name, _tokenizers, case, step)
    if not case.steps_of(TAUGHT):
        yield passed("no stage has a teacher")


def _tokenizers(case: Case, step: Step) -> Finding:
    task = step.kind == "task-distill"
    teacher = case.known(step.inputs["teacher"], where="teacher.model" if task else "base").tokenizer
    student = case.output(step).tokenizer
    where = f"student {step.inputs['student']}" if task else "student"
    if student is teacher:
        return passed("the student takes the teacher's tokenizer")
    models.same_vocabulary(teacher, student, where=where)
    texts = [*PROBES, *(_texts(case, step) if task else [])]
    for text in texts:
        theirs, ours = (one(text, verbose=False)["input_ids"] for one in (teacher, student))
        if theirs != ours:
            raise _cut_otherwise(text, teacher.convert_ids_to_tokens(theirs), student.convert_ids_to_tokens(ours), where)
    return passed(f"the same ids for {len(texts)} texts")


def _texts(case: Case, step: Step) -> list[str]:
    """Some of the task's own; none where its rows cannot be had, which another check says."""
    try:
        rows = case.data(step).rows["train"].texts
    except (MbertError, Later):
        return []
    return [text for texts in rows[:: max(1, len(rows) // TRIED)] for text in texts]


def _cut_otherwise(text: str, theirs: list[str], ours: list[str], where: str) -> MbertError:
    return MbertError(
        "M637",
        f'teacher and student cut texts differently: "{text[:60]}" is {" ".join(theirs[:12])} and {" ".join(ours[:12])}',
        where=where,
        allowed="Two models whose tokenizers have the same vocabulary and the same rules, such as lower case.",
        fix="Copy the teacher's tokenizer files beside the student, or build the student anew: --student bert-4x312",
    )
