"""Checks of the data: is every class there, does dev lie in train, how many texts are cut."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from microbert_cli.data.own_files import too_few_classes
from microbert_cli.data.tokenized import tokenizer_fingerprint
from microbert_cli.errors import MbertError
from microbert_cli.plan.doctor.context import DoctorContext
from microbert_cli.plan.doctor.findings import Finding, attempt, doubtful, passed
from microbert_cli.recipe.phase_data import SELECTED_BY, TRANSFER
from microbert_cli.runs.stage_inputs import Step

FEW = 8  # rows of a class that nobody learns from
EXTREME = 20.0  # the commonest class over the rarest
SOME, MOST = 0.01, 0.5  # of dev that is in train: from here on a person should look; it measures nothing any more
CUT = 0.05  # of the rows
NO_ROWS = "no stage trains on the rows of a task"


def labels(case: DoctorContext) -> Iterator[Finding]:
    """Every class is in the training rows, and none is rare."""
    for about, step in case.data_sets().items():
        yield attempt(about, _labels, case, step)
    if not case.data_sets():
        yield passed(NO_ROWS)


def _labels(case: DoctorContext, step: Step) -> Finding:
    data = case.data(step)
    found, task = data.rows["train"].labels or [], data.task
    if task.is_regression:
        low, high = min(found, default=0), max(found, default=0)
        told = f"{len(found):,} scores from {low:g} to {high:g}"
        return passed(told) if low < high else doubtful(f"{told}: there is nothing to learn")
    names = task.label.names or ()
    counts = {name: Counter(found)[number] for number, name in enumerate(names)}
    if missing := [name for name, count in counts.items() if not count]:
        present = {name for name, count in counts.items() if count}
        what = f"no row to train on has the label {' or '.join(missing)}"
        raise too_few_classes(f"task {task.name}, train", present, what)
    told = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    rarest, commonest = min(counts.values()), max(counts.values())
    if rarest < FEW:
        return doubtful(f"fewer than {FEW} rows of a class: {told}")
    if commonest > EXTREME * rarest:
        return doubtful(f"one class is more than {EXTREME:g} times as common as another: {told}")
    return passed(told)


def duplicates(case: DoctorContext) -> Iterator[Finding]:
    """Dev is not in train, nor in a transfer set: texts are compared without regard to case and space."""
    for about, step in case.data_sets().items():
        yield attempt(about, _duplicates, case, step)
    for step in case.task_steps:
        if TRANSFER in case.splits(step):
            yield attempt(step.name, _in_transfer, case, step)
    if not case.data_sets():
        yield passed(NO_ROWS)


def _duplicates(case: DoctorContext, step: Step) -> Finding:
    data = case.data(step)
    train, dev = ([same(texts) for texts in data.rows[split].texts] for split in ("train", "dev"))
    known = set(train)
    both, again = sum(text in known for text in dev), len(train) - len(known)
    share = both / max(1, len(dev))
    told = f"{both:,} of {len(dev):,} dev rows are in train ({share:.1%}); {again:,} of {len(train):,} train rows are repeated"
    if share > MOST:
        raise MbertError(
            "M634",
            f"most of dev is in train: {told}",
            where=f"task {data.task.name}",
            allowed="Dev rows that training does not see: by dev the best checkpoint is chosen and reported.",
            fix="Name another dev file, or none: then a part of train is held out by its text.",
        )
    return passed(told) if share <= SOME else doubtful(told)


def _in_transfer(case: DoctorContext, step: Step) -> Finding:
    """Dev texts of which a student learns the teacher's answers, though not the labels."""
    rows = case.data(step).rows
    known = {same(texts) for texts in rows[TRANSFER].texts}
    both, dev = sum(same(texts) in known for texts in rows["dev"].texts), len(rows["dev"])
    told = f"{both:,} of {dev:,} dev rows are in the transfer set of {len(rows[TRANSFER]):,} ({both / max(1, dev):.1%})"
    return passed(told) if both <= SOME * dev else doubtful(f"{told}: the student learns the teacher's answers to them")


def same(texts: tuple[str, ...]) -> str:
    """A row's texts without what makes no difference."""
    return "\x1f".join(" ".join(text.split()).casefold() for text in texts)


def truncation(case: DoctorContext) -> Iterator[Finding]:
    """Few training rows are longer than `data.max_length`, and few texts of a transfer set."""
    looked: set[tuple[Any, ...]] = set()
    for step in case.task_steps:
        for split in (split for split in case.splits(step) if split != SELECTED_BY):
            found = attempt(step.name, _truncation, case, step, split, looked)
            if found.what:
                yield found
    if not case.task_steps:
        yield passed(NO_ROWS)


def _truncation(case: DoctorContext, step: Step, split: str, looked: set[tuple[Any, ...]]) -> Finding:
    """Of stages with the same rows and tokenizer only the first one says something."""
    data = case.data(step)
    encoded = case.encoded(step, split)
    key = (data.rows[split].fingerprint, data.max_length, tokenizer_fingerprint(case.output(step).tokenizer))
    if key in looked:
        return passed("")
    looked.add(key)
    share = encoded.truncated / max(1, len(encoded))
    what = "texts of the transfer set" if split == TRANSFER else "training rows"
    told = f"{encoded.truncated:,} of {len(encoded):,} {what} are cut to {data.max_length} tokens ({share:.1%})"
    positions = getattr(case.output(step).config, "max_position_embeddings", 2 * data.max_length)
    longer = min(2 * data.max_length, positions)
    more = f"; for more: --set data.max_length={longer}" if longer > data.max_length else ""
    return passed(told) if share <= CUT else doubtful(told + more)
