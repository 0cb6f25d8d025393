"""A sample of a corpus: some of its documents, the size of the whole, and how fast it is read."""

import struct
import time
from dataclasses import dataclass
from pathlib import Path

from microbert_cli.data.corpus.documents import is_corpus_file, is_parquet, read_documents
from microbert_cli.errors import MbertError

READ = 30_000_000  # characters read, at most
SAMPLE = 3_000_000  # characters of the sample, at most


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
    started = time.perf_counter()
    documents, characters, is_complete = [], 0, True
    for document in read_documents(source, limit=limit):
        documents.append(document)
        characters += sum(map(len, document))
        if characters >= READ:
            is_complete = False
            break
    seconds = time.perf_counter() - started
    whole = float(characters) if is_complete else _total_characters(source, limit, len(documents), characters)
    interval = max(1, round(characters / SAMPLE))
    sample = documents[::interval]
    size = sum(sum(map(len, document)) for document in sample)
    scale = 1.0 if is_complete and interval == 1 else whole / max(1, size)
    return CorpusSample(sample, size, scale, seconds * whole / max(1, characters))


def _total_characters(source: str, limit: int | None, documents: int, characters: int) -> float:
    """Returns the characters of the whole corpus, by its files' sizes, and by the limit of documents if that is less."""
    by_limit = characters / documents * limit if limit else float("inf")
    path = Path(source)
    if not path.exists():
        if limit:
            return by_limit
        raise _unknown_size(source)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if is_corpus_file(file)]
    return min(by_limit, float(sum(map(_characters, files))))


def _characters(file: Path) -> int:
    if is_parquet(file):
        import pyarrow.parquet as pq

        groups = pq.ParquetFile(file).metadata
        return sum(groups.row_group(i).total_byte_size for i in range(groups.num_row_groups))
    size = file.stat().st_size
    return _unpacked(file, size) if file.suffix.lower() in (".gz", ".gzip") else size


def _unpacked(file: Path, size: int) -> int:
    """Returns the unpacked length: gzip's last four bytes hold it modulo 2^32, and text is at least twice its archive."""
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
