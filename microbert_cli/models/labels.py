"""Which output of a checkpoint answers for which label of a task.

Outputs are matched by name: exactly first, then without case, hyphens and spaces, then by number where both sides are numbered
(`LABEL_3`, `class 3`, `4 stars`). A match is one-to-one or none at all.
"""

import json
import re
import shlex
import unicodedata
from collections.abc import Sequence
from typing import Any

from microbert_cli.errors import MbertError
from microbert_cli.recipe.task import Task
from microbert_cli.recipe.task_kinds import SEVERAL_LABELS, answers_words

# LABEL_k is what transformers writes where nobody named the labels: it says nothing of their order.
UNNAMED = re.compile(r"LABEL_\d+")
WHOLE = re.compile(r"([+-]?\d+)(?:\.0*)?")
NUMBERED = re.compile(r"(\D*?)(\d+)(\D*)")


def output_names(config: Any) -> list[str] | None:
    """Returns the names of a classifier's outputs in order; None where the checkpoint says only LABEL_k."""
    names = _all_names(config)
    return None if all(map(UNNAMED.fullmatch, names)) else names


def match_labels(config: Any, task: Task, *, where: str, source: str, order: Sequence[str] | None = None) -> list[int] | None:
    """Returns the output of a classifier for each label of the task; None where nothing says which is which.

    where, source   what named the model, and the model as it was named
    order           names of the model's outputs, given by the user, over those in its configuration
    Raises M320 where the number of outputs differs, M321 where the names cannot be matched one-to-one.
    """
    if answers_words(config) != task.kind.of_words:
        raise _other_unit(config, task, f"{where} {source}", source)
    check_several(config, task.kind.independent, where=f"{where} {source}")
    outputs = config.num_labels
    if outputs != task.kind.num_outputs:
        raise _mismatch(
            "M320",
            f"the model has {outputs} outputs, the task {task.kind.num_outputs}",
            task,
            f"{where} {source}",
            fix=f"Fine-tune it on this task: mbert finetune --model {shlex.quote(source)} {task.options}",
        )
    if not task.kind.is_named:
        return None
    names = list(order or _all_names(config))
    columns = match_names(task.kind.names, names)
    if columns is None and (order or output_names(config) is not None):
        raise _mismatch(
            "M321",
            f"the model's labels ({', '.join(names)}) cannot be matched one-to-one to the task's",
            task,
            f"{where} {source}",
            fix=naming_advice(where, task.kind.names),
        )
    return columns


def _other_unit(config: Any, task: Task, where: str, source: str) -> MbertError:
    of_model, of_task = ("every word", "a text") if answers_words(config) else ("a text", "every word")
    return MbertError(
        "M437",
        f"the model gives an answer for {of_model}, and the task asks one for {of_task}",
        where=where,
        allowed=f"A model that was trained with the kind of task {task.kind.name}.",
        fix=f"Fine-tune it on this task: mbert finetune --model {shlex.quote(source)} {task.options}",
    )


def check_one_score(config: Any, *, where: str) -> None:
    """Raises M379 for a classifier of several scores a row: its outputs are neither one answer nor labels."""
    if getattr(config, "problem_type", None) == "regression" and config.num_labels > 1:
        raise _other_answers("several scores a row (problem_type regression), and is not asked as if it gave one", where)


def check_several(config: Any, wanted: bool, *, where: str) -> None:
    """Raises M379 where a model gives several labels a row and the task has one, or the other way round.

    wanted  whether the task's rows have several labels; a model of which nothing is said counts as one of a single label
    """
    problem, several = getattr(config, "problem_type", None), SEVERAL_LABELS
    if problem == several and not wanted:
        raise _other_answers(f"several labels a row (problem_type {problem}), and is not asked as if it gave one", where)
    if problem != several and wanted:
        raise _other_answers(f"one label a row (problem_type {problem}), and the task's rows have several", where, several)


def _other_answers(what: str, where: str, wanted: str = "") -> MbertError:
    fix = f"{shlex.quote(where.partition(' ')[2] or 'MODEL')} --train-file FILE --text COLUMN --label COLUMN"
    advice = f'; if it was trained with sigmoids, write "problem_type": "{wanted}" into a copy\'s config.json' if wanted else ""
    return MbertError(
        "M379",
        f"this model gives {what}",
        where=where,
        allowed=f"A classifier of problem_type {wanted}."
        if wanted
        else "A classifier with one of several classes a row, or a single score; of several labels a row for a task of these.",
        fix=f"Take a model of that kind, or fine-tune this one on such a task: mbert finetune --model {fix}{advice}",
    )


def check_names_differ(config: Any, *, where: str) -> None:
    """Raises M323 where outputs of a classifier have the same name: an answer would not say which of them is meant."""
    names = _all_names(config)
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise MbertError(
            "M323",
            f'{names.count(twice[0])} outputs of this model are called "{twice[0]}"',
            where=where,
            allowed="A name of its own for each output.",
            fix="Correct id2label and label2id in the config.json of a copy of the model's own files.",
        )


def names_settle_order(config: Any, task: Task, order: Sequence[str] | None = None) -> bool:
    """Whether the checkpoint's names say which output answers for which label; a user's `order` may be wrong."""
    settled = not task.kind.is_named or task.kind.of_words  # the order of tags of words is not asked of dev either
    if order or settled:
        return settled
    # A task may well have labels called LABEL_k; numbers that are alike otherwise may be those of another list.
    return output_names(config) is not None or set(task.kind.names) == set(_all_names(config))


def naming_advice(where: str, names: Sequence[str]) -> str:
    """Returns how to name a model's outputs; `names` are a task's labels, in the order that is likeliest."""
    if where.startswith("teacher"):
        order = shlex.quote(f"teacher.label_order={json.dumps(list(names), ensure_ascii=False)}")
        return f"Name the teacher's outputs in their order: --set {order}"
    return (
        "Write the labels into the table as the model names them, or correct id2label and label2id in the config.json of a "
        f"copy of the model's own files; by dev scores or the task's order: {', '.join(names)}."
    )


def match_names(labels: Sequence[str], outputs: Sequence[str]) -> list[int] | None:
    """Returns the position among `outputs` of each label, or None where no rule matches them one-to-one."""
    if len(labels) != len(outputs) or len(set(outputs)) < len(outputs) or len(set(labels)) < len(labels):
        return None
    equal = set(labels) & set(outputs)
    # What is equal as it stands is settled, so that "Co" beside "CO" does not keep the others from being matched.
    rest_of_labels, rest_of_outputs = ([name for name in names if name not in equal] for names in (labels, outputs))
    partner = {name: name for name in equal}
    by_form = {_normalised(name): name for name in rest_of_outputs}
    wanted = [_normalised(name) for name in rest_of_labels]
    if len(by_form) == len(rest_of_outputs) and len(set(wanted)) == len(wanted) and by_form.keys() == set(wanted):
        partner |= {label: by_form[form] for label, form in zip(rest_of_labels, wanted, strict=True)}
        return [outputs.index(partner[label]) for label in labels]
    return _match_numbers(labels, outputs)


def _match_numbers(labels: Sequence[str], outputs: Sequence[str]) -> list[int] | None:
    numbers, others = _numbers(labels), _numbers(outputs)
    if numbers is None or others is None or set(numbers) != set(others):
        return None
    return [others.index(number) for number in numbers]


def _numbers(names: Sequence[str]) -> list[int] | None:
    """Returns the numbers of names that differ by a number alone, such as `1 star` and `2 stars`; None of any others."""
    if all(whole := [WHOLE.fullmatch(name.strip()) for name in names]):
        numbers = [int(each[1]) for each in whole if each]
    elif all(parts := [NUMBERED.fullmatch(name.strip()) for name in names]):
        words = {tuple(_normalised(word).removesuffix("s") for word in (each[1], each[3])) for each in parts if each}
        if len(words) > 1:
            return None
        numbers = [int(each[2]) for each in parts if each]
    else:
        return None
    return numbers if len(set(numbers)) == len(numbers) else None


def _all_names(config: Any) -> list[str]:
    return [str(config.id2label[i]) for i in range(config.num_labels)]


def _normalised(name: str) -> str:
    name = unicodedata.normalize("NFC", name).casefold()  # one letter may be written as two characters
    return name.strip().replace("-", "_").replace(" ", "_")


def _mismatch(code: str, what: str, task: Task, where: str, *, fix: str) -> MbertError:
    return MbertError(
        code,
        what,
        where=where,
        allowed=f"The labels of {task.name}: {task.kind.describe()}.",
        fix=fix,
    )
