"""A model before and after its vocabulary was cut: the same tokens, the same outputs, and how dev is split and scored."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from microbert_cli.data.corpus.documents import read_documents
from microbert_cli.data.examples import Examples
from microbert_cli.data.task_data import TaskData
from microbert_cli.data.tokenized import TokenizedExamples, tokenize_examples
from microbert_cli.errors import MbertError
from microbert_cli.evaluation import scoring
from microbert_cli.exporting.directory import refuse_difference
from microbert_cli.models.architectures import forward_parameters, positions_of
from microbert_cli.models.labels import match_labels
from microbert_cli.models.load import LoadedModel
from microbert_cli.models.tokenizers import CARRIED_INPUTS
from microbert_cli.models.vocabulary.tokenizer import Numbers, encode, encode_each

CHECKED_ROWS = 64
CHECKED_LENGTH = 128  # tokens
TOLERANCE = 1e-6  # of outputs up to 1; of larger ones in proportion
EXAMPLES = 10


@dataclass(frozen=True)
class Pair:
    """The model before and after; `numbers` are the new ids of the kept tokens, `kind` is its head."""

    before: LoadedModel
    after: LoadedModel
    numbers: Numbers
    kind: str

    def check_tokens(self, texts: list[str]) -> list[int]:
        """Returns which texts have kept tokens alone, by position; raises M347 where one of them is split otherwise."""
        alike: list[int] = []
        wrong: list[int] = []
        both = zip(encode_each(self.before.tokenizer, texts), encode_each(self.after.tokenizer, texts), strict=True)
        for row, (old, new) in enumerate(both):
            if self.numbers.keys() >= set(old):
                (alike if [self.numbers[number] for number in old] == list(new) else wrong).append(row)
        if wrong:
            raise _split_otherwise(len(wrong), texts[wrong[0]], self.before.source)
        return alike

    def check_outputs(self, rows: Examples, directory: Path) -> dict[str, Any]:
        """Compares the outputs on rows whose tokens all stay, padded; raises M612 where they differ.

        Of a masked-LM the logits of the kept tokens, of an encoder the vectors of all tokens.
        """
        if not len(rows):
            return {"rows": 0, "max_difference": None}
        encoded = [tokenize_examples(rows, model.tokenizer, self._length()) for model in (self.before, self.after)]
        old, new = self._outputs(self.before, encoded[0]), self._outputs(self.after, encoded[1])
        if self.kind == "masked-lm":
            old = old[..., sorted(self.numbers, key=lambda number: self.numbers[number])]
        difference = float((old - new).abs().max())
        refuse_difference(directory / "model.safetensors", difference, TOLERANCE * max(1.0, float(old.abs().max())))
        return {"rows": len(rows), "max_difference": difference}

    def _length(self) -> int:
        return min(CHECKED_LENGTH, positions_of(self.before.model.config) or CHECKED_LENGTH)

    def _outputs(self, loaded: LoadedModel, encoded: TokenizedExamples) -> torch.Tensor:
        model_class: Any = type(loaded.model)
        read = forward_parameters(model_class) or CARRIED_INPUTS
        batch = encoded.batch(range(len(encoded)), pad_id=loaded.tokenizer.pad_token_id)
        inputs = {name: tensor for name, tensor in batch.items() if name in CARRIED_INPUTS & set(read)}
        with torch.inference_mode():
            output = loaded.model.eval()(**inputs)
        if self.kind == "classifier" and output.logits.dim() == 2:
            return output.logits
        tokens = output.last_hidden_state if self.kind == "encoder" else output.logits
        return tokens[batch["attention_mask"].bool()]

    def split_of(self, rows: Examples) -> dict[str, Any]:
        """Returns how the rows are split: tokens before and after, those that are cut, and the rows that are touched."""
        texts = [text for texts in rows.texts for text in texts]
        old, new = encode(self.before.tokenizer, texts), encode(self.after.tokenizer, texts)
        cut = Counter(number for ids in old for number in ids if number not in self.numbers)
        width = len(rows.texts[0]) if rows.texts else 1
        touched = {row // width for row, ids in enumerate(old) if not self.numbers.keys() >= set(ids)}
        tokens = sum(map(len, old))
        names = self.before.tokenizer.convert_ids_to_tokens([number for number, _ in cut.most_common(EXAMPLES)])
        return {
            "rows": len(rows),
            "rows_cut_finer": len(touched),
            "tokens_before": tokens,
            "tokens_after": sum(map(len, new)),
            "tokens_cut": cut.total(),
            "share_cut": cut.total() / max(1, tokens),
            "commonest_cut": names,
        }

    def scores(self, data: TaskData) -> dict[str, Any]:
        """Returns the dev scores of a classifier before and after; nothing where it has other labels than the task.

        It is the texts that say what stays: a model may be trimmed for texts that somebody labelled for another purpose.
        """
        if data.rows["dev"].labels is None:
            return {}
        try:
            columns = match_labels(self.before.model.config, data.task, where="trim.model", source=self.before.source)
        except MbertError as error:
            data.reporter.note(f"dev is not scored: {error.what}")
            return {}
        scores = {}
        for name, loaded in {"dev_before": self.before, "dev": self.after}.items():
            logits = scoring.predict_logits(data, "dev", loaded.model, loaded)
            kind = data.task.kind.answered_by(loaded.model.config, columns)
            scores[name] = scoring.score(data.task, logits[..., columns] if columns else logits, data.rows["dev"], kind=kind)
        return scores


def whole_rows(rows: Examples, alike: Collection[int]) -> Examples:
    """Returns some rows, evenly over all, each of whose texts is among those that are split alike; by position of the text."""
    width, kept = len(rows.texts[0]) if rows.texts else 1, set(alike)
    whole = [row for row in range(len(rows)) if all(row * width + text in kept for text in range(width))]
    positions = np.linspace(0, len(whole) - 1, min(CHECKED_ROWS, len(whole))).round().astype(int)
    return rows.take(whole[position] for position in positions)


def first_rows(pair: Pair, source: str | None) -> Examples:
    """Returns the first sentences of a corpus whose tokens all stay."""
    sentences = [text for document in read_documents(source, limit=CHECKED_ROWS) for text in document] if source else []
    some = sentences[: CHECKED_ROWS * 4]
    return Examples([(some[row],) for row in pair.check_tokens(some)[:CHECKED_ROWS]])


def _split_otherwise(count: int, text: str, source: str) -> MbertError:
    return MbertError(
        "M347",
        f'{count} texts are split otherwise by the smaller vocabulary, such as "{text}"',
        where=f"trim.model {source}",
        allowed="A tokenizer whose rules do not depend on tokens that a text has not.",
        fix="Keep all tokens: --set vocabulary.keep=all",
    )
