"""A task of texts for one pair of vocabularies: its rows as a student reads them, and as its teacher does."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from microbert_cli.data.generation.rows import FilledRows, Lengths, TextPairs, check_frame, filled_rows, text_pairs
from microbert_cli.data.task_data import TaskData
from microbert_cli.distillation.generation.teacher import Filler
from microbert_cli.errors import MbertError
from microbert_cli.models.find import find_model
from microbert_cli.models.generation.vocabulary import check_special_tokens, load_target_tokenizer, teacher_ids
from microbert_cli.models.load import load_model
from microbert_cli.text import one_line


@dataclass
class TextTask:
    """A task's rows in the tokens of a student: `tokenizer` is the student's."""

    data: TaskData
    tokenizer: Any
    lengths: Lengths
    _pairs: dict[str, TextPairs] = field(default_factory=dict)

    def pairs(self, split: str) -> TextPairs:
        """Returns a split's rows as the student reads them; says how many were cut.

        Raises M397 for a target of the training rows that is too long: cut, it would teach a student to end in mid-sentence.
        """
        if split not in self._pairs:
            pairs = text_pairs(self.data.rows[split], self.tokenizer, self.lengths)
            long = np.flatnonzero(pairs.whole_lengths > self.lengths.target)
            if len(long) and split == "train":
                raise self._too_long(pairs, long)
            if pairs.truncated or len(long):
                self.data.reporter.note(
                    f"{self.data.task.name} {split}: {pairs.truncated} of {len(pairs)} sources are cut to "
                    f"{self.lengths.source} tokens; {len(long)} targets are longer than {self.lengths.target}: perplexity is "
                    "that of what comes before, and no text that is written is as long"
                )
            self._pairs[split] = pairs
        return self._pairs[split]

    def _too_long(self, pairs: TextPairs, long: np.ndarray) -> MbertError:
        rows, first, longest = self.data.rows["train"], int(long[0]), int(pairs.whole_lengths.max())
        text, named = one_line(str((rows.labels or [])[first])), (rows.ids or [])[first]
        return MbertError(
            "M397",
            f"{len(long):,} of {len(pairs):,} targets have more than {self.lengths.target} tokens, the longest {longest:,}",
            where=f"{self.data.task.name} train, the row with id {named}, whose target begins {text[:60]!r}",
            allowed="Whole targets: one that is cut would teach a student to end in mid-sentence. Sources may be cut.",
            fix=f"--set data.max_length={longest}, where the models have the positions (the teacher twice as many); or shorten "
            "these rows.",
        )

    def filled(self, split: str, filler: Filler) -> FilledRows:
        """Returns a split's rows as a teacher reads them."""
        return filled_rows(self.data.rows[split], self.pairs(split), filler.tokenizer, filler.teacher_ids, self.lengths)

    def labels(self, split: str, rows: np.ndarray) -> Tensor:
        """Returns the student's tokens [B, T] of rows by their numbers, negative behind a target's end."""
        return self.pairs(split).batch(rows, pad_id=self.tokenizer.pad_token_id)["labels"]

    @property
    def most(self) -> int:
        """The tokens that a student writes at most: twice the longest target of the training rows, or as many as it reads."""
        if "train" not in self.data.rows:
            return self.lengths.target
        return min(self.lengths.target, 2 * int(self.pairs("train").target_lengths.max(initial=1)))


def load_filler(source: str, data: TaskData, *, where: str) -> tuple[Filler, TextTask]:
    """Loads what `mbert finetune` made of a masked-LM, with its task in the tokens of the student that it can teach.

    Raises M394 for a model that was not trained so.
    """
    tokenizer = load_target_tokenizer(find_model(source, where=where), where=where, about=data.task.options)
    loaded = load_model(source, "masked-lm", where=where)
    return filler_of(loaded.model, loaded.tokenizer, tokenizer, data, where=f"{where} {source}")


def filler_of(model: Any, tokenizer: Any, target_tokenizer: Any, data: TaskData, *, where: str) -> tuple[Filler, TextTask]:
    """Returns a masked-LM as a teacher of `target_tokenizer`'s tokens, and the task in them."""
    check_special_tokens(tokenizer, where=where, hides=True)
    check_frame(tokenizer, where=where)
    filler = Filler(model, tokenizer, teacher_ids(target_tokenizer, tokenizer, where=where))
    return filler, TextTask(data, target_tokenizer, Lengths.of(data, model.config, both=True, where=where))


def texts_of_training(data: TaskData) -> list[str]:
    """Returns the sources and targets of the training rows."""
    rows = data.rows["train"]
    return [*(text for texts in rows.texts for text in texts), *(str(label) for label in rows.labels or ())]


def is_filler(source: str | Path) -> bool:
    """Whether a directory is what `mbert finetune` made of a masked-LM on a task of texts."""
    from microbert_cli.models.generation.vocabulary import FOLDER

    return (Path(source) / FOLDER).is_dir()


def fills_in(where: str, model: str, about: str = "--task TASK") -> MbertError:
    """Returns the error for a teacher where a model is wanted that writes; `about` = the options that name the task."""
    return MbertError(
        "M375",
        "this model fills in hidden words of a target, and writes none: it has no text to show",
        where=where,
        allowed="A student that writes, as task-distill makes it. How well a teacher fills in is in its own metrics.json.",
        fix=f"Teach a student with it: mbert task-distill --teacher {model} --student seq2seq --set method=c-mlm {about}",
    )
