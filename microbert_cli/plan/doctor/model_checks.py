"""Checks of the inputs: whether they exist, and whether teacher and student tokenise alike."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from microbert_cli.augmentation.tools import check_augmenters
from microbert_cli.augmentation.word_vectors import SUFFIXES, load_word_table
from microbert_cli.data.corpus.joint_vocabulary import check_word_piece
from microbert_cli.data.load import load_augmented
from microbert_cli.errors import MbertError
from microbert_cli.models import factory
from microbert_cli.models.find import check_head
from microbert_cli.models.tokenizers import same_tokens, same_vocabulary
from microbert_cli.plan.doctor.context import DoctorContext, inputs_of
from microbert_cli.plan.doctor.findings import Finding, Later, attempt, doubtful, passed
from microbert_cli.plan.phases import losses_of
from microbert_cli.plan.static_checks import check_cascade, check_head_to_come
from microbert_cli.recipe.task import has_several_labels
from microbert_cli.runs import atomic
from microbert_cli.runs.stage_inputs import Step
from microbert_cli.training.loss_terms import make_terms

TRIED = 500  # texts of the task
PROBES = (
    "The baker sold the boat.", "UPPER lower MiXeD", "crème brûlée, naïve Ångström", "don't e-mail a_b@c.example, ok?",
    "12.5 % of 1,000 costs €3", "  spaces\tand\nlines ", "東京 and Москва", "[MASK] [UNK] ##ing", "unaffableness",
)  # fmt: skip


def inputs(context: DoctorContext) -> Iterator[Finding]:
    """Checks that models, corpora, vectors and rows exist, or will: offline, those of the Hub in its local cache."""
    checked: set[tuple[str, str | None]] = set()  # by name, and by the head that it must have
    for step in context.steps:
        for role, name in inputs_of(step).items():
            key = (name, step.stage.heads(step.resolved.recipe).get(role))
            if key not in checked and (key[1] or name not in {place for place, _ in checked}):
                yield attempt(name, _input, context, step, role, name)
            checked.add(key)
        if step.kind == "augment":
            yield attempt("augment.sources", _augmenters, context, step)
    rows_by_data: dict[str, set[str]] = {}
    for step in context.steps:
        if step.stage.splits:
            data = step.resolved.recipe.keys("task", "data")
            about = f"rows of {data['task'] or data['data']['train_file']}"
            yield from _new_rows(attempt(about, _rows, context, step), rows_by_data.setdefault(atomic.digest(data), set()))
        if remark := step.stage.remark(step.resolved.recipe, context.catalog):
            yield replace(doubtful(remark), about=step.name)


def _new_rows(finding: Finding, known_parts: set[str]) -> Iterator[Finding]:
    """Yields the finding without the splits that an earlier stage reported for the same data."""
    parts = [part for part in finding.what.split("; ") if part not in known_parts]
    known_parts.update(parts)
    if parts:
        yield replace(finding, what="; ".join(parts))


def _input(context: DoctorContext, step: Step, role: str, name: str) -> Finding:
    head = step.stage.heads(step.resolved.recipe).get(role)
    where = step.stage.input_keys.get(role, (f"{step.kind}.{role}",))[0]
    check_cascade(step, role, Path(name), context.to_come.get(name), where)
    if maker := context.to_come.get(name):
        check_head_to_come(head, maker, where)
        raise Later(f"made by {maker.name}")
    if role == "source":
        return passed(context.find_corpus(step))
    if role == "vectors" and (Path(name).is_file() or Path(name).suffix in SUFFIXES or ".zip/" in name):
        return _vectors(name)
    if role == "augmented":
        return passed(f"{len(load_augmented(Path(name), context.data(step).task)):,} rows")
    if factory.is_description(name, context.catalog):
        return passed("a student of the catalogue")
    directory = context.directory(name, f"{step.kind}.{role}")
    if head:
        several = has_several_labels(step.resolved.recipe, context.catalog) if step.stage.splits else None
        check_head(directory, head, where=where, several=several)
    return passed("here" if directory == Path(name) else "in the Hub's local cache")


def _augmenters(context: DoctorContext, step: Step) -> Finding:
    settings = step.resolved.recipe.augment
    check_augmenters(settings.sources, settings.options, context.catalog)
    return passed(", ".join(settings.sources))


def _vectors(name: str) -> Finding:
    """Checks a file, or a member of an archive; raises M242."""
    archive, inside, _ = name.partition(".zip/")
    if not Path(archive + ".zip" if inside else name).is_file():
        load_word_table(name)
    return passed("here")


def _rows(context: DoctorContext, step: Step) -> Finding:
    splits = context.splits(step)
    data = context.rows(step, splits)
    return passed("; ".join(f"{split} {len(data.rows[split]):,}" for split in splits))


def tokenizers(context: DoctorContext) -> Iterator[Finding]:
    """Checks that teacher and student make the same ids of the same text, since their outputs on it are compared."""
    distilling = [step for step in context.steps if step.distils]
    for step in distilling:
        yield attempt(step.name, _tokenizers, context, step)
    if not distilling:
        yield passed("no stage has a teacher")


def _tokenizers(context: DoctorContext, step: Step) -> Finding:
    task = step.stage.learns_task
    teacher = context.info(str(step.vocabulary), where=step.stage.input_keys["teacher"][0]).tokenizer
    student = context.output(step).tokenizer
    where = f"student {step.inputs['student']}" if task else "student"
    if student is teacher:
        return passed("the student takes the teacher's tokenizer")
    phases = step.stage.phases(step.resolved.recipe)
    terms = {key: make_terms(losses_of(phase.losses), context.catalog) for key, phase in phases.items()}
    token_losses = [f"{key}.losses.{term.name}" for key, phase_terms in terms.items() for term in phase_terms if term.by_token]
    if token_losses:
        same_vocabulary(teacher, student, where=where, keys=token_losses)
    elif task and teacher.get_vocab() != student.get_vocab():
        return passed("no loss compares token by token, so each reads a text in its own tokens")
    elif not task and step.resolved.recipe.general.dual.vocabulary:
        check_word_piece({"base": teacher, "student": student})
        return passed("the student has a vocabulary of its own, and its teacher reads both")
    else:
        same_tokens(teacher, student, where=where)
    texts = [*PROBES, *(_texts(context, step) if task else [])]
    for text in texts:
        teacher_ids, student_ids = (tokenizer(text, verbose=False)["input_ids"] for tokenizer in (teacher, student))
        if teacher_ids != student_ids:
            raise _different_tokens(
                text, teacher.convert_ids_to_tokens(teacher_ids), student.convert_ids_to_tokens(student_ids), where
            )
    return passed(f"the same ids for {len(texts)} texts")


def _texts(context: DoctorContext, step: Step) -> list[str]:
    """Returns some texts of the task; none where its rows are missing, which another check reports."""
    try:
        rows = context.data(step).rows["train"].texts
    except (MbertError, Later):
        return []
    return [text for texts in rows[:: max(1, len(rows) // TRIED)] for text in texts]


def _different_tokens(text: str, teacher_tokens: list[str], student_tokens: list[str], where: str) -> MbertError:
    by_teacher, by_student = (" ".join(tokens[:12]) for tokens in (teacher_tokens, student_tokens))
    return MbertError(
        "M635",
        f'teacher and student cut texts differently: "{text[:60]}" is {by_teacher} and {by_student}',
        where=where,
        allowed="Two models whose tokenizers have the same vocabulary and the same rules, such as lower case.",
        fix="Copy the teacher's tokenizer files beside the student, or build the student anew: --student bert-4x312",
    )
