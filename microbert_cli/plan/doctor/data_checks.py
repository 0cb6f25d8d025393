"""Checks of the data: is every class there, does dev lie in train, how many texts are cut."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from microbert_cli.data.tokenized import TokenizedExamples, tokenize_examples, tokenizer_fingerprint
from microbert_cli.data.windows.examples import WindowedExamples, tokenize_windows
from microbert_cli.data.words.starts import unread_words
from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import positions_of
from microbert_cli.models.windows.settings import OVERLAP, WindowSettings
from microbert_cli.plan.doctor.context import DoctorContext, inputs_of
from microbert_cli.plan.doctor.findings import Finding, Later, attempt, doubtful, passed
from microbert_cli.recipe.phase_data import SELECTED_BY, TRANSFER
from microbert_cli.runs.stage_inputs import Step

SOME, MOST = 0.01, 0.5  # of dev that is in train: from here on a person should look; it measures nothing any more
CUT = 0.05  # of the rows
SAMPLE = 2000  # rows by which the cost of windows is estimated
NO_ROWS = "no stage trains on the rows of a task"


def labels(context: DoctorContext) -> Iterator[Finding]:
    """Checks that every class is in the training rows, and none is rare."""
    for about, step in context.data_sets().items():
        yield attempt(about, _labels, context, step)
    if not context.data_sets():
        yield passed(NO_ROWS)


def _labels(context: DoctorContext, step: Step) -> Finding:
    data = context.data(step)
    labels, kind = data.rows["train"].labels or [], data.task.kind
    kind.check_training_labels(labels, f"task {data.task.name}, train")
    summary, doubt = kind.examine(labels)
    return doubtful(doubt) if doubt else passed(summary)


def duplicates(context: DoctorContext) -> Iterator[Finding]:
    """Checks that dev is not in train, nor in a transfer set: texts are compared without case and white space."""
    for about, step in context.data_sets().items():
        yield attempt(about, _duplicates, context, step)
    for step in context.task_steps:
        if TRANSFER in context.splits(step):
            yield attempt(step.name, _in_transfer, context, step)
    if not context.data_sets():
        yield passed(NO_ROWS)


def _duplicates(context: DoctorContext, step: Step) -> Finding:
    data = context.data(step)
    train, dev = ([same(texts) for texts in data.rows[split].texts] for split in ("train", "dev"))
    train_texts = set(train)
    shared, repeated = sum(text in train_texts for text in dev), len(train) - len(train_texts)
    share = shared / max(1, len(dev))
    summary = f"{shared:,} of {len(dev):,} dev rows are in train ({share:.1%}); "
    summary += f"{repeated:,} of {len(train):,} train rows are repeated"
    if share > MOST:
        raise MbertError(
            "M634",
            f"most of dev is in train: {summary}",
            where=f"task {data.task.name}",
            allowed="Dev rows that training does not see: by dev the best checkpoint is chosen and reported.",
            fix="Name another dev file, or none: then a part of train is held out by its text.",
        )
    return passed(summary) if share <= SOME else doubtful(summary)


def _in_transfer(context: DoctorContext, step: Step) -> Finding:
    """Counts the dev texts on which a student learns the teacher's outputs, though not the labels."""
    rows = context.data(step).rows
    transfer_texts = {same(texts) for texts in rows[TRANSFER].texts}
    shared, dev = sum(same(texts) in transfer_texts for texts in rows["dev"].texts), len(rows["dev"])
    summary = f"{shared:,} of {dev:,} dev rows are in the transfer set of {len(rows[TRANSFER]):,} ({shared / max(1, dev):.1%})"
    return passed(summary) if shared <= SOME * dev else doubtful(f"{summary}: the student learns the teacher's answers to them")


def same(texts: tuple[str, ...]) -> str:
    """Returns a row's texts without case and repeated white space, as one string to compare."""
    return "\x1f".join(" ".join(text.split()).casefold() for text in texts)


def truncation(context: DoctorContext) -> Iterator[Finding]:
    """Checks that few training rows, and few texts of a transfer set, are longer than `data.max_length`."""
    checked: set[tuple[Any, ...]] = set()
    for step in context.task_steps:
        for split in (split for split in context.splits(step) if split != SELECTED_BY):
            finding = attempt(step.name, _truncation, context, step, split, checked)
            if finding.what:
                yield finding
    if not context.task_steps:
        yield passed(NO_ROWS)


def _truncation(context: DoctorContext, step: Step, split: str, checked: set[tuple[Any, ...]]) -> Finding:
    """Counts the rows that are cut; of stages with the same rows and tokenizer only the first one reports them."""
    data = context.data(step)
    encoded = context.encoded(step, split)
    length = data.length_for(context.output(step).config, where="data.max_length")
    key = (data.rows[split].fingerprint, length, tokenizer_fingerprint(context.output(step).tokenizer))
    if key in checked:
        return passed("")
    checked.add(key)
    if isinstance(encoded, WindowedExamples) or (split == TRANSFER and len(encoded) > len(data.rows[split])):
        return _windows(context, step, split, encoded, length)
    share = encoded.truncated / max(1, len(encoded))
    what = "texts of the transfer set" if split == TRANSFER else "training rows"
    text = f"{encoded.truncated:,} of {len(encoded):,} {what} are cut to {length} tokens ({share:.1%})"
    if encoded.words is not None:
        text += "; {:,} of {:,} words are not read".format(*unread_words(data.rows[split].texts, encoded.words))
    longer = min([2 * length, *_positions(context)])
    advice = f"; for more: --set data.max_length={longer}" if longer > length else ""
    return passed(text) if share <= CUT else doubtful(text + _cost_of_windows(context, step, split, length) + advice)


def _windows(context: DoctorContext, step: Step, split: str, encoded: TokenizedExamples, length: int) -> Finding:
    """Counts the windows of long rows, and what they cost beside rows that are cut."""
    rows, windows = context.data(step).rows[split], encoded.windows
    cut = tokenize_examples(rows, context.output(step).tokenizer, length)
    factor = windows.lengths.sum() / max(1, cut.lengths.sum())
    what = "texts of the transfer set" if split == TRANSFER else "training rows"
    return passed(
        f"{cut.truncated:,} of {len(rows):,} {what} are longer than {length} tokens ({cut.truncated / max(1, len(rows)):.1%}); "
        f"all are {len(windows):,} windows, {factor:.1f} times the tokens of rows that are cut"
    )


def _cost_of_windows(context: DoctorContext, step: Step, split: str, length: int) -> str:
    """Returns advice to read long rows in windows, with what that costs, by a sample of the rows; "" where there are none."""
    data, output = context.data(step), context.output(step)
    if step.resolved.recipe.teachers or data.task.kind.writes or data.task.kind.of_words or split == TRANSFER:
        return ""
    rows = data.rows[split]
    sample = rows.take(range(0, len(rows), max(1, len(rows) // SAMPLE)))
    settings = WindowSettings("mean", length, length // OVERLAP)
    try:
        windows = tokenize_windows(sample, output.tokenizer, settings).lengths.sum()
    except MbertError:  # of pairs in windows that have no room for both
        return ""
    factor = windows / max(1, tokenize_examples(sample, output.tokenizer, length).lengths.sum())
    return f"; in windows, at {factor:.1f} times the tokens: --set data.windows=mean"


def _positions(context: DoctorContext) -> Iterator[int]:
    """Yields the positions of every model that reads rows of a task, as far as they are known: all read the same length."""
    for step in context.task_steps:
        makers = {name: context.to_come.get(name) for name in inputs_of(step).values()}
        models = [name for name, maker in makers.items() if maker is None or maker.stage.makes_model]
        for get_model in (partial(context.output, step), *(partial(context.info, name, where=step.name) for name in models)):
            with contextlib.suppress(MbertError, Later):  # not every input is a model
                if positions := positions_of(get_model().config):
                    yield positions
