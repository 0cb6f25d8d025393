"""A corpus in two vocabularies at once: each word in the student's pieces and in the teacher's, cut into the same blocks.

    tokens.bin     the student's pieces of every word;  teacher.bin  the teacher's; the top bit marks the first piece of a word
    sentences.bin  where each sentence begins, in tokens of whichever of the two writes a word longer
    pieces.bin     where each sentence begins in the two files
    documents.bin, train.bin, heldout.bin   as in `blocks.py`, in the unit of sentences.bin

So a block of at most `max_length` is that in the student's pieces, in the teacher's, and in any mixture of both. Blocks of
format "packed" end between words; a word that loses a part where a pair is too long is left out.

    student  every word in its own pieces
    teacher  each word in the student's pieces with probability `share`, else in its own: all pieces of a word from one
             vocabulary, drawn anew for every batch from (seed, batch number) alone

Source of the mixture: DualTrain (Zhao et al. 2019).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microbert_cli.data.corpus.blocks import (
    DOCUMENTS_PER_CALL,
    Blocks,
    BlockSettings,
    TokenizedCorpus,
    append_positions,
    padded,
    read_positions,
    write_blocks,
)
from microbert_cli.data.corpus.documents import identify_corpus, read_documents
from microbert_cli.data.corpus.joint_vocabulary import JointVocabulary, Pieces, read_words
from microbert_cli.data.tokenized import tokenizer_fingerprint
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, cache


@dataclass(frozen=True)
class Words:
    """Some words: their ids in the student's and in the teacher's pieces, one after the other, and pieces a word [W]."""

    student: np.ndarray
    student_counts: np.ndarray
    teacher: np.ndarray
    teacher_counts: np.ndarray

    def __len__(self) -> int:
        return len(self.student_counts)

    def only(self, chosen: np.ndarray) -> "Words":
        """Returns the words `chosen` [W]."""
        student, teacher = (
            ids[np.repeat(chosen, counts)]
            for ids, counts in ((self.student, self.student_counts), (self.teacher, self.teacher_counts))
        )
        return Words(student, self.student_counts[chosen], teacher, self.teacher_counts[chosen])

    def mixed(self, chosen: np.ndarray, student_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns joint ids, the words `chosen` [W] in the student's pieces; and which of the ids are of those words."""
        from_student = np.repeat(chosen, np.where(chosen, self.student_counts, self.teacher_counts))
        ids = np.empty(len(from_student), dtype=np.int64)
        ids[from_student] = student_ids[self.student[np.repeat(chosen, self.student_counts)]]
        ids[~from_student] = self.teacher[np.repeat(~chosen, self.teacher_counts)]
        return ids, from_student


class MixedBlocks(Blocks):
    """Blocks of a corpus in two vocabularies; `batch` is the student's.

    lengths  of each block where every word has its longer form: of what either of the two reads at most
    """

    def __init__(self, directory: Path, part: str, joint: JointVocabulary):
        super().__init__(directory, part, joint.student)
        self.joint = joint
        self._files = _WordFiles(directory, joint)
        self.tokens: Any = _Unmarked(self._files.student)

    def mixed(self, indices: np.ndarray, share: float, seed: tuple[int, ...], pad_to: int | None = None) -> dict[str, Tensor]:
        """Returns the teacher's batch: input_ids, token_type_ids, attention_mask and from_student [B, T].

        share  of the words, read in the student's pieces;  from_student  1 at their pieces
        """
        draw = np.random.default_rng(seed)
        ends = (self.joint.teacher.cls_token_id, self.joint.teacher.sep_token_id)
        rows = [self._mixed_row(self.ranges[i], share, draw, ends) for i in indices]
        batch = padded([(ids, first) for ids, first, _ in rows], self.joint.teacher.pad_token_id, pad_to)
        from_student = torch.zeros_like(batch["input_ids"])
        for row, (_, _, pieces) in enumerate(rows):
            from_student[row, : len(pieces)] = torch.from_numpy(pieces)
        return {**batch, "from_student": from_student}

    def _row(self, a: int, a_end: int, b: int, b_end: int) -> tuple[np.ndarray, int]:
        first = self.words(a, a_end).student
        parts: list[Any] = [[self._cls], first, [self._sep]]
        if b_end > b:
            parts += [self.words(b, b_end).student, [self._sep]]
        return np.concatenate(parts).astype(np.int64), len(first) + 2

    def _mixed_row(
        self, bounds: np.ndarray, share: float, draw: np.random.Generator, ends: tuple[int, int]
    ) -> tuple[np.ndarray, int, np.ndarray]:
        a, a_end, b, b_end = bounds.tolist()
        ids: list[Any] = [[ends[0]]]
        marks: list[Any] = [[False]]
        first = 0
        for begin, end in ((a, a_end), (b, b_end))[: 1 + (b_end > b)]:
            words = self.words(begin, end)
            mixed, from_student = words.mixed(draw.random(len(words)) < share, self.joint.student_ids)
            ids += [mixed, [ends[1]]]
            marks += [from_student, [False]]
            first = first or len(mixed) + 2
        return np.concatenate(ids).astype(np.int64), first, np.concatenate(marks).astype(np.int64)

    def words(self, begin: int, end: int) -> Words:
        """Returns the words that lie wholly within a range."""
        words, bounds = self._files.read(begin, end)
        return words.only((bounds[:-1] >= begin) & (bounds[1:] <= end))


def make_mixed_blocks(
    source: str, joint: JointVocabulary, settings: BlockSettings, *, reporter: Reporter = SILENT, where: str = "corpus.source"
) -> tuple[MixedBlocks, MixedBlocks]:
    """Returns training and held-out blocks of a corpus in two vocabularies, from the cache where they were made before."""
    with cache.entry("mixed-blocks", _key(source, joint, settings), reporter=reporter) as (directory, ready):
        if not ready:
            documents = read_documents(source, limit=settings.documents, where=where, reporter=reporter)
            cut_mixed_blocks(documents, joint, settings, directory, reporter=reporter, where=where)
    return _open_parts(directory, joint)


def find_mixed_blocks(source: str, joint: JointVocabulary, settings: BlockSettings) -> tuple[MixedBlocks, MixedBlocks] | None:
    """Returns training and held-out blocks where they are cached; makes none."""
    directory = cache.find("mixed-blocks", _key(source, joint, settings))
    return _open_parts(directory, joint) if directory else None


def cut_mixed_blocks(
    documents: Iterable[list[str]],
    joint: JointVocabulary,
    settings: BlockSettings,
    directory: Path,
    *,
    reporter: Reporter = SILENT,
    where: str = "corpus.source",
) -> tuple[MixedBlocks, MixedBlocks]:
    """Cuts documents into training and held-out blocks in `directory`; by itself it does not use the cache."""
    _write_pieces(documents, joint, directory, reporter)
    write_blocks(directory, settings, lambda: _WordCorpus(directory, joint), where)
    return _open_parts(directory, joint)


class _WordFiles:
    """Random access to the words of a corpus in two vocabularies."""

    def __init__(self, directory: Path, joint: JointVocabulary):
        self.sentences = read_positions(directory / "sentences.bin")
        self.pieces = read_positions(directory / "pieces.bin").reshape(-1, 2)
        self.student = np.memmap(directory / "tokens.bin", dtype=_dtype(joint.student), mode="r")
        self.teacher = np.memmap(directory / "teacher.bin", dtype=_dtype(joint.teacher), mode="r")

    def read(self, begin: int, end: int) -> tuple[Words, np.ndarray]:
        """Returns the words of the sentences that a range touches, and their bounds [W + 1] in the unit of sentences.bin."""
        first = int(np.searchsorted(self.sentences, begin, side="right")) - 1
        last = max(first, int(np.searchsorted(self.sentences, end, side="left")))
        pieces, counts = [], []
        for column, file in enumerate((self.student, self.teacher)):
            part = np.asarray(file[self.pieces[first, column] : self.pieces[last, column]])
            counts.append(np.diff(np.flatnonzero(part & _mark(part.dtype)), append=len(part)))
            pieces.append((part & ~_mark(part.dtype)).astype(np.int64))
        bounds = self.sentences[first] + np.cumsum([0, *np.maximum(*counts)])
        return Words(pieces[0], counts[0], pieces[1], counts[1]), bounds


class _WordCorpus(TokenizedCorpus):
    """Random access to a corpus whose positions are not those of tokens.bin, and whose words stay whole."""

    def __init__(self, directory: Path, joint: JointVocabulary):
        super().__init__(directory, _dtype(joint.student))
        self._files = _WordFiles(directory, joint)

    def cut_before(self, begin: int, limit: int) -> int:
        """Returns the last end of a word up to `limit`; `limit` itself where the first word is longer."""
        _, bounds = self._files.read(begin, limit)
        return int(max(bounds[(bounds > begin) & (bounds <= limit)], default=limit))

    def tokens_of(self, document: int) -> np.ndarray:
        """Returns the student's pieces of a document."""
        first, last = self.documents[document], self.documents[document + 1]
        return self.tokens[self._files.pieces[first, 0] : self._files.pieces[last, 0]]


class _Unmarked:
    """Pieces without the mark of the first one of a word, for whoever reads slices."""

    def __init__(self, pieces: np.ndarray):
        self._pieces = pieces

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.asarray(self._pieces[part]) & ~_mark(self._pieces.dtype)


def _write_pieces(documents: Iterable[list[str]], joint: JointVocabulary, directory: Path, reporter: Reporter) -> None:
    documents, number, sentences = iter(documents), 0, 0
    position, places = 0, np.zeros(2, dtype=np.int64)
    with (
        (directory / "tokens.bin").open("wb") as student_file,
        (directory / "teacher.bin").open("wb") as teacher_file,
        (directory / "sentences.bin").open("wb") as sentence_file,
        (directory / "pieces.bin").open("wb") as piece_file,
        (directory / "documents.bin").open("wb") as document_file,
    ):
        for file, beginning in ((sentence_file, [0]), (piece_file, [0, 0]), (document_file, [0])):
            append_positions(file, beginning)
        while group := list(islice(documents, DOCUMENTS_PER_CALL)):
            number += len(group)
            read = iter(read_words([sentence for document in group for sentence in document], joint.student, joint.teacher))
            for document in group:
                written = [pair for pair in islice(read, len(document)) if pair[0][1]]
                for student, teacher in written:
                    student_file.write(_marked(student, _dtype(joint.student)))
                    teacher_file.write(_marked(teacher, _dtype(joint.teacher)))
                    position += int(np.maximum(student[1], teacher[1]).sum())
                    places += len(student[0]), len(teacher[0])
                    append_positions(sentence_file, [position])
                    append_positions(piece_file, places)
                sentences += len(written)
                if written:
                    append_positions(document_file, [sentences])
            reporter.progress("tokenise", number, 0, tokens=position)


def _marked(pieces: Pieces, dtype: type) -> bytes:
    """Returns the ids of a sentence for its file, with a mark at the first piece of each word."""
    ids: np.ndarray = np.array(pieces[0], dtype=dtype)
    counts = np.array(pieces[1])
    ids[np.cumsum(counts) - counts] |= _mark(ids.dtype)
    return ids.tobytes()


def _mark(dtype: Any) -> Any:
    """Returns the number whose only bit that is set is the top one."""
    return np.dtype(dtype).type(1 << (8 * np.dtype(dtype).itemsize - 1))


def _dtype(tokenizer: Any) -> type:
    return np.uint16 if len(tokenizer) <= 2**15 else np.uint32


def _open_parts(directory: Path, joint: JointVocabulary) -> tuple[MixedBlocks, MixedBlocks]:
    return MixedBlocks(directory, "train", joint), MixedBlocks(directory, "heldout", joint)


def _key(source: str, joint: JointVocabulary, settings: BlockSettings) -> str:
    tokenizers = [tokenizer_fingerprint(tokenizer) for tokenizer in (joint.student, joint.teacher)]
    return atomic.digest({"corpus": identify_corpus(source), "tokenizers": tokenizers, **vars(settings)})
