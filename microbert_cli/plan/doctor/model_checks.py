"""Checks of what the stages read: is it here, and do teacher and student cut texts alike."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from microbert_cli.augmentation.word_vectors import SUFFIXES, load_word_table
from microbert_cli.data.load import load_augmented
from microbert_cli.errors import MbertError
from microbert_cli.models import factory
from microbert_cli.models.tokenizers import same_tokens, same_vocabulary
from microbert_cli.plan.doctor.context import DoctorContext, inputs_of
from microbert_cli.plan.doctor.findings import Finding, Later, attempt, doubtful, passed
from microbert_cli.plan.phases import losses_of
from microbert_cli.runs import atomic
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.training.loss_terms import make_terms

TRIED = 500  # texts of the task
PROBES = (
    "The baker sold the boat.", "UPPER lower MiXeD", "crème brûlée, naïve Ångström", "don't e-mail a_b@c.example, ok?",
    "12.5 % of 1,000 costs €3", "  spaces\tand\nlines ", "東京 and Москва", "[MASK] [UNK] ##ing", "unaffableness",
)  # fmt: skip


def inputs(case: DoctorContext) -> Iterator[Finding]:
    """Models, corpora, vectors and rows are here, or will be; where the Hub may not be asked, its local cache has them."""
    told: set[str] = set()
    for step in case.steps:
        for role, name in inputs_of(step).items():
            if name not in told:
                yield attempt(name, _input, case, step, role, name)
            told.add(name)
    known: dict[str, set[str]] = {}
    for step in case.steps:
        if step.stage.splits:
            data = step.resolved.recipe.keys("task", "data")
            about = f"rows of {data['task'] or data['data']['train_file']}"
            yield from _new_rows(attempt(about, _rows, case, step), known.setdefault(atomic.digest(data), set()))
        if remark := step.stage.remark(step.resolved.recipe, case.catalog):
            yield replace(doubtful(remark), about=step.name)


def _new_rows(found: Finding, known: set[str]) -> Iterator[Finding]:
    """What no stage before said of the same data, split by split."""
    told = [part for part in found.what.split("; ") if part not in known]
    known.update(told)
    if told:
        yield replace(found, what="; ".join(told))


def _input(case: DoctorContext, step: Step, role: str, name: str) -> Finding:
    if name in case.to_come:
        raise Later(f"made by {case.to_come[name].name}")
    if role == "source":
        return passed(case.find_corpus(step))
    if role == "vectors" and (Path(name).is_file() or Path(name).suffix in SUFFIXES or ".zip/" in name):
        return _vectors(name)
    if role == "augmented":
        return passed(f"{len(load_augmented(Path(name), case.data(step).task)):,} rows")
    if factory.is_description(name, case.catalog):
        return passed("a student of the catalogue")
    directory = case.directory(name, f"{step.kind}.{role}")
    return passed("here" if directory == Path(name) else "in the Hub's local cache")


def _vectors(name: str) -> Finding:
    """A file, or a member of an archive; raises M242."""
    archive, inside, _ = name.partition(".zip/")
    if not Path(archive + ".zip" if inside else name).is_file():
        load_word_table(name)
    return passed("here")


def _rows(case: DoctorContext, step: Step) -> Finding:
    splits = case.splits(step)
    data = case.rows(step, splits)
    return passed("; ".join(f"{split} {len(data.rows[split]):,}" for split in splits))


def tokenizers(case: DoctorContext) -> Iterator[Finding]:
    """Teacher and student make the same ids of the same text: logits and hidden states are compared row by row."""
    distilling = [step for step in case.steps if step.distils]
    for step in distilling:
        yield attempt(step.name, _tokenizers, case, step)
    if not distilling:
        yield passed("no stage has a teacher")


def _tokenizers(case: DoctorContext, step: Step) -> Finding:
    task = step.stage.learns_task
    teacher = case.known(step.inputs["teacher"], where=step.stage.input_keys["teacher"][0]).tokenizer
    student = case.output(step).tokenizer
    where = f"student {step.inputs['student']}" if task else "student"
    if student is teacher:
        return passed("the student takes the teacher's tokenizer")
    phases = step.stage.phases(step.resolved.recipe)
    terms = {key: make_terms(losses_of(phase.losses), case.catalog) for key, phase in phases.items()}
    bound = [f"{key}.losses.{term.name}" for key, found in terms.items() for term in found if term.by_token]
    if bound:
        same_vocabulary(teacher, student, where=where, key=bound[0])
    elif task and teacher.get_vocab() != student.get_vocab():
        return passed("no loss compares token by token, so each reads a text in its own tokens")
    else:
        same_tokens(teacher, student, where=where)
    texts = [*PROBES, *(_texts(case, step) if task else [])]
    for text in texts:
        theirs, ours = (one(text, verbose=False)["input_ids"] for one in (teacher, student))
        if theirs != ours:
            raise _cut_otherwise(text, teacher.convert_ids_to_tokens(theirs), student.convert_ids_to_tokens(ours), where)
    return passed(f"the same ids for {len(texts)} texts")


def _texts(case: DoctorContext, step: Step) -> list[str]:
    """Some of the task's own; none where its rows cannot be had, which another check says."""
    try:
        rows = case.data(step).rows["train"].texts
    except (MbertError, Later):
        return []
    return [text for texts in rows[:: max(1, len(rows) // TRIED)] for text in texts]


def _cut_otherwise(text: str, theirs: list[str], ours: list[str], where: str) -> MbertError:
    return MbertError(
        "M635",
        f'teacher and student cut texts differently: "{text[:60]}" is {" ".join(theirs[:12])} and {" ".join(ours[:12])}',
        where=where,
        allowed="Two models whose tokenizers have the same vocabulary and the same rules, such as lower case.",
        fix="Copy the teacher's tokenizer files beside the student, or build the student anew: --student bert-4x312",
    )
