"""Two vocabularies as one: the tokens of a teacher, followed by the pieces that only its student's vocabulary has.

    joint id of a student's token   the teacher's id, where the teacher has the same piece, or for a special token its like;
                                    else R, R + 1 ... in the student's order, behind the R rows of the teacher's table

Both vocabularies are WordPiece's and read the same words, so that a word can be written in either (`mixed_blocks.py`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from microbert_cli.errors import MbertError

ROLES = ("pad", "unk", "cls", "sep", "mask")
CONTINUES = "##"  # begins a piece that goes on with a word


class JointVocabulary:
    """What a teacher of two vocabularies reads; to `Masking` it is a tokenizer.

    rows         R, the rows of the teacher's table without the student's pieces
    student_ids  the joint id of every token of the student's [V]
    new_pieces   the pieces that the teacher lacks, by their joint ids
    """

    def __init__(self, teacher: Any, student: Any, rows: int):
        self.teacher, self.student, self.rows = teacher, student, rows
        of_teacher = teacher.get_vocab()
        roles = {getattr(student, f"{role}_token"): getattr(teacher, f"{role}_token_id") for role in ROLES}
        pieces = sorted(student.get_vocab().items(), key=lambda item: item[1])
        self.new_pieces = {
            rows + number: piece
            for number, piece in enumerate(piece for piece, _ in pieces if piece not in of_teacher and piece not in roles)
        }
        new_ids = {piece: number for number, piece in self.new_pieces.items()}
        self.student_ids = np.zeros(pieces[-1][1] + 1, dtype=np.int64)
        for piece, number in pieces:
            self.student_ids[number] = next(ids[piece] for ids in (roles, of_teacher, new_ids) if piece in ids)
        self.all_special_ids = teacher.all_special_ids
        self.mask_token_id = teacher.mask_token_id

    def __len__(self) -> int:
        return self.rows + len(self.new_pieces)

    def teacher_pieces(self, piece: str) -> list[int]:
        """Returns the teacher's ids for a piece, by the longest match first; the unknown token's where it cannot write it."""
        vocabulary = self.teacher.get_vocab()
        prefix, rest = (CONTINUES, piece[len(CONTINUES) :]) if piece.startswith(CONTINUES) else ("", piece)
        ids: list[int] = []
        while rest:
            end = next((end for end in range(len(rest), 0, -1) if prefix + rest[:end] in vocabulary), None)
            if end is None:
                return [self.teacher.unk_token_id]
            ids.append(vocabulary[prefix + rest[:end]])
            prefix, rest = CONTINUES, rest[end:]
        return ids


Pieces = tuple[list[int], list[int]]  # of a sentence: ids, and how many of them each word has


def read_words(sentences: Sequence[str], student: Any, teacher: Any) -> list[tuple[Pieces, Pieces]]:
    """Returns the words of each sentence in the student's and in the teacher's pieces.

    The words are those of the student's tokenizer. One that either of the two does not write at all is left out.
    """
    encoded = _backend(student).encode_batch(list(sentences), add_special_tokens=False)
    words = [_spans(sentence, encoding) for sentence, encoding in zip(sentences, encoded, strict=True)]
    by_teacher = _backend(teacher).encode_batch(words, is_pretokenized=True, add_special_tokens=False)
    return [
        _aligned(encoding, of_teacher, len(spans))
        for encoding, of_teacher, spans in zip(encoded, by_teacher, words, strict=True)
    ]


def is_word_piece(tokenizer: Any) -> bool:
    """Whether a tokenizer's model is WordPiece, with BERT's mark of what goes on with a word."""
    model = _rules(tokenizer).get("model", {})
    return bool(model.get("type") == "WordPiece" and model.get("continuing_subword_prefix") == CONTINUES)


def lowers_case(tokenizer: Any) -> bool:
    """Whether a tokenizer reads capital letters as small ones."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def check_word_piece(tokenizers: Mapping[str, Any]) -> None:
    """Raises M384 where one of the tokenizers, by the keys of their models, is no WordPiece one."""
    for where, tokenizer in tokenizers.items():
        if not is_word_piece(tokenizer):
            raise MbertError(
                "M384",
                "this vocabulary is not made of WordPiece's pieces, and a teacher of two vocabularies reads each word in the "
                "pieces of one of them",
                where=where,
                allowed="Models with a WordPiece tokenizer.json, as those of BERT, DistilBERT, MobileBERT and ELECTRA.",
                fix="Take such a model, or a method without a second vocabulary.",
            )


def _rules(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    return rules


def _backend(tokenizer: Any) -> Any:
    """Returns a copy of a tokenizer's rules that neither cuts nor pads."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def _spans(sentence: str, encoding: Any) -> list[str]:
    """Returns the words of a sentence as they are written in it."""
    bounds: dict[int, tuple[int, int]] = {}
    for word, (begin, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
        bounds[word] = (bounds[word][0] if word in bounds else begin, end)
    return [sentence[begin:end] for begin, end in bounds.values()]


def _aligned(student: Any, teacher: Any, count: int) -> tuple[Pieces, Pieces]:
    """Returns ids and pieces a word of one sentence, from the encodings of `count` words by both tokenizers."""
    numbers = {word: place for place, word in enumerate(dict.fromkeys(student.word_ids))}
    student_words = np.array([numbers[word] for word in student.word_ids], dtype=np.int64)
    teacher_words = np.array(teacher.word_ids, dtype=np.int64)
    student_counts, teacher_counts = (np.bincount(words, minlength=count) for words in (student_words, teacher_words))
    kept = (student_counts > 0) & (teacher_counts > 0)
    student_ids, teacher_ids = (
        np.array(encoding.ids, dtype=np.int64)[kept[words]].tolist()
        for encoding, words in ((student, student_words), (teacher, teacher_words))
    )
    return (student_ids, student_counts[kept].tolist()), (teacher_ids, teacher_counts[kept].tolist())
