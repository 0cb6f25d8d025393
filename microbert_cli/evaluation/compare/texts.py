"""A comparison of students that write: scores, spread, size and cost beside each other.

There is no teacher's score to retain, since a teacher that fills in writes nothing; no int8 file and no linear model, which
answer with classes; and no latency, which depends on how much a model writes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from microbert_cli.evaluation.alternatives.kinds import MAJORITY
from microbert_cli.evaluation.compare.fairness import differences, remarks
from microbert_cli.models.size import weights_bytes

Section = dict[str, Any]
COMMONEST = "commonest text"
NOT_MEASURED = ("flops", "latency_ms", "rows_per_second", "retention", "above_floor", "verdict")


def text_section(rows: Sequence[Section], metrics: Sequence[Mapping[str, Any]], directories: Mapping[str, str]) -> Section:
    """Returns the comparison on one task: rows, differences, and what must be known to read them.

    metrics      what metrics.json of each row holds
    directories  of the rows, by their names
    """
    for row in rows:
        row |= {**dict.fromkeys(NOT_MEASURED), "megabytes": weights_bytes(Path(directories[row["row"]])) / 1e6}
    majority = metrics[0]["majority"]
    return {
        "primary": metrics[0]["primary"],
        "majority": majority,
        "signatures": metrics[0]["signatures"],
        "teacher": {},
        "rows": list(rows),
        "alternatives": [{"row": COMMONEST, "kind": MAJORITY, "score": majority}],
        "verdict": None,
        "differences": differences(rows),
        "remarks": [*_how_scored(metrics), *_foresight(rows, metrics), *remarks(rows, majority=majority, floor=COMMONEST)],
        "conditions": None,
    }


def _how_scored(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the signatures of the scores, and of rows whose signatures differ that they cannot be compared."""
    signed = list(dict.fromkeys(str(row["signatures"].get(row["primary"], "")) for row in metrics))
    lines = [f"Signature of {metrics[0]['primary']}: {' and '.join(signed)}."] if signed[0] else []
    if len(signed) > 1:
        lines.append("Signatures differ: the scores of these rows cannot be compared.")
    return [
        *lines,
        "Texts of dev were written without a search, the likeliest token each time; mbert evaluate searches with beams.",
    ]


def _foresight(rows: Sequence[Section], metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns how well the teachers fill in, with the warning that belongs to it."""
    shares = {
        row["row"]: of["teacher_sees_the_future"]
        for row, of in zip(rows, metrics, strict=True)
        if "teacher_sees_the_future" in of
    }
    if not shares:
        return []
    by_share: dict[str, list[str]] = {}
    for name, scores in shares.items():
        by_share.setdefault(f"{scores['token_accuracy']:.1%}", []).append(name)
    words = "; ".join(f"{', '.join(names)}: {share}" for share, names in by_share.items())
    return [
        f"Share of hidden tokens of dev that the teacher fills in ({words}): it sees what comes after them, so that this is no "
        "upper bound of a student."
    ]
