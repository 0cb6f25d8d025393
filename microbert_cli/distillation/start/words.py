"""Gives a recurrent student the word embeddings of a file of word vectors.

word-vectors   a token that is a word of its own gets the word's vector, made as long as the random ones are:
                   x_t = s v / |v|,    s = sqrt(E) initializer_range
               all others, pieces of words and special tokens, stay random; every table of the student gets the same

Source: Tang et al. 2019 (arXiv 1903.12136), whose tokens are words and whose vectors are word2vec's; the length is ours.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from microbert_cli.augmentation.word_vectors import WordTable, load_word_table
from microbert_cli.augmentation.words import Spelling
from microbert_cli.errors import MbertError
from microbert_cli.models.architectures import architecture_of, model_shape, model_type_of
from microbert_cli.models.load import LoadedModel
from microbert_cli.reporter import Reporter

WORD_VECTORS = "word-vectors"


@dataclass(frozen=True)
class WordVectorStart:
    """Gives a new student the vectors of a file for the tokens that are words; see the module.

    source  the model whose tokens the student has;  ids [n] and vectors_nD [n, D], of length 1, of the tokens with a vector
    """

    source: LoadedModel
    file: str
    ids: np.ndarray
    vectors_nD: np.ndarray

    @torch.no_grad()
    def __call__(self, student: Any) -> None:
        """Raises M047 for a student that is no recurrent one, M049 for one with embeddings of another width."""
        if not architecture_of(student.config).recurrent:
            raise no_recurrent_student(model_type_of(student.config))
        for table in student.base_model.embeddings.tables:
            if table.embedding_dim != self.vectors_nD.shape[1]:
                raise _other_width(self.vectors_nD.shape[1], table.embedding_dim, student.config, self.file)
            length = table.embedding_dim**0.5 * student.config.initializer_range
            table.weight[torch.as_tensor(self.ids)] = length * torch.as_tensor(self.vectors_nD)

    @property
    def record(self) -> dict[str, Any]:
        """What metrics.json says of it."""
        return {"by": WORD_VECTORS, "of": self.file, "tokens": len(self.ids)}


def word_vector_start(file: str, teacher: LoadedModel, *, limit: int, reporter: Reporter) -> WordVectorStart:
    """Reads a file of word vectors for the tokens of a teacher. Raises what `load_word_table` does."""
    table = load_word_table(file, limit=limit, reporter=reporter)
    ids, vectors_nD = _vectors_of_tokens(teacher.tokenizer, table)
    reporter.note(f"word vectors of {Path(file).name}: {len(ids):,} of {len(teacher.tokenizer):,} tokens have one")
    return WordVectorStart(teacher, file, ids, vectors_nD)


def _vectors_of_tokens(tokenizer: Any, table: WordTable) -> tuple[np.ndarray, np.ndarray]:
    words = Spelling(tokenizer).words
    pairs = [(i, vector) for i, word in enumerate(words) if word and (vector := table.vector(word)) is not None]
    width = table.vectors_WD.shape[1]
    return np.array([i for i, _ in pairs], dtype=np.int64), np.array([v for _, v in pairs], np.float32).reshape(-1, width)


def no_recurrent_student(model_type: str) -> MbertError:
    """Returns the error for a student whose embeddings cannot be those of a file."""
    return MbertError(
        "M047",
        f'a student of the type "{model_type}" does not begin with the word vectors of a file: its layers are made for others',
        where="initialise.by",
        allowed="A recurrent student, such as bilstm-150x100; any other begins with its teacher's weights.",
        fix="--set initialise.by=auto",
    )


def _other_width(width: int, student_width: int, config: Any, file: str) -> MbertError:
    return MbertError(
        "M049",
        f"these word vectors have {width} numbers, and the student's word embeddings {student_width}",
        where=f"vectors.source {file}, student",
        allowed="Vectors as wide as the student's embeddings.",
        fix=f"--student bilstm-{model_shape(config).width}x{width}, or vectors of {student_width} numbers",
    )
