"""A corpus looked at before it is worked on: its size, a sample of its documents, and how fast they are read."""

import struct
import time
from dataclasses import dataclass
from pathlib import Path

from microbert_cli.data.corpus.documents import CORPUS_SUFFIXES, read_documents
from microbert_cli.errors import MbertError

READ = 30_000_000  # characters looked at, at most
SAMPLE = 3_000_000  # characters worked on, at most


@dataclass(frozen=True)
class CorpusSample:
    """Every k-th document of what was read.

    scale   how many times the sample is in the whole, by characters; 1.0 = the sample is the whole
    read_seconds   for one passage through the whole
    """

    documents: list[list[str]]
    characters: int
    scale: float
    read_seconds: float

    @property
    def exact(self) -> bool:
        """Whether counts of the sample are counts of the whole."""
        return self.scale == 1.0


def sample_corpus(source: str, *, limit: int | None = None) -> CorpusSample:
    """Reads at most READ characters; raises what `corpus.documents` raises, and M232 where the size cannot be foreseen."""
    begun = time.perf_counter()
    found, characters, ended = [], 0, True
    for document in read_documents(source, limit=limit):
        found.append(document)
        characters += sum(map(len, document))
        if characters >= READ:
            ended = False
            break
    seconds = time.perf_counter() - begun
    whole = float(characters) if ended else _whole(source, limit, len(found), characters)
    every = max(1, round(characters / SAMPLE))
    sample = found[::every]
    size = sum(sum(map(len, document)) for document in sample)
    scale = 1.0 if ended and every == 1 else whole / max(1, size)
    return CorpusSample(sample, size, scale, seconds * whole / max(1, characters))


def _whole(source: str, limit: int | None, documents: int, characters: int) -> float:
    """Characters of the whole corpus, by its files' sizes, and by the limit of documents if that is less."""
    by_limit = characters / documents * limit if limit else float("inf")
    path = Path(source)
    if not path.exists():
        if limit:
            return by_limit
        raise _unknown_size(source)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in CORPUS_SUFFIXES]
    return min(by_limit, float(sum(map(_characters, files))))


def _characters(file: Path) -> int:
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        groups = pq.ParquetFile(file).metadata
        return sum(groups.row_group(i).total_byte_size for i in range(groups.num_row_groups))
    size = file.stat().st_size
    return _unpacked(file, size) if file.suffix == ".gz" else size


def _unpacked(file: Path, size: int) -> int:
    """What gzip's last four bytes say: the length modulo 2^32; text shrinks to no less than a quarter or so."""
    with file.open("rb") as opened:
        opened.seek(-4, 2)
        length: int = struct.unpack("<I", opened.read(4))[0]
    while length < 2 * size:
        length += 2**32
    return length


def _unknown_size(source: str) -> MbertError:
    return MbertError(
        "M232",
        "the size of this corpus cannot be known before all of it was read",
        where=f"corpus.source {source}",
        allowed="A file or folder; or a number of documents to be read.",
        fix="--set corpus.documents=1_000_000",
    )
