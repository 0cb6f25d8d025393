"""Streams plain text as documents, each a list of sentences; the corpus is never in memory as a whole.

Sources: `python-docs` (built in), a text file, the same gzipped, a Parquet file with a text column, a folder of those, or a Hub
data set as `owner/name:config`. In text files a blank line ends a document. A Parquet row is a document.
"""

import hashlib
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

from microbert_cli.data.corpus import python_docs
from microbert_cli.data.limits import bounded_lines, open_gzip
from microbert_cli.data.tables.content import MARKS, check_format, name_encoding, utf16_without_mark
from microbert_cli.errors import MbertError, first_line
from microbert_cli.hub import ask_hub, cached_dataset, hub_advice, hub_errors, is_hub_id, is_offline
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import manifest

BUILT_IN_CORPUS = "python-docs"
CORPUS_SUFFIXES = (".txt", ".gz", ".gzip", ".parquet", ".pq")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])")

Document = list[str]


def read_documents(
    source: str, *, limit: int | None = None, where: str = "corpus.source", reporter: Reporter = SILENT
) -> Iterator[Document]:
    """Yields the documents of a source in order, at most `limit`; raises M2xx and M3xx as readers do."""
    documents = (document for document in _documents(source, where, reporter) if document)
    return islice(documents, limit) if limit else documents


def identify_corpus(source: str) -> str | None:
    """Returns the identity of a corpus for caches and manifests: hashes of files, or the name."""
    return _built_in_fingerprint() if source == BUILT_IN_CORPUS else manifest.identify(source)


def is_corpus_file(path: Path) -> bool:
    """Returns whether a file is one of text, by its suffix in any case."""
    return path.suffix.lower() in CORPUS_SUFFIXES


def split_sentences(paragraph: str) -> list[str]:
    """Splits a paragraph after a full stop, question or exclamation mark that a space and a capital or digit follow."""
    return [sentence for sentence in SENTENCE_END.split(paragraph.strip()) if sentence]


@cache
def _built_in_fingerprint() -> str:
    digest = hashlib.sha256()
    for document in python_docs.python_documents():
        digest.update("\n".join([*document, ""]).encode())
    return digest.hexdigest()


def _documents(source: str, where: str, reporter: Reporter) -> Iterator[Document]:
    if source == BUILT_IN_CORPUS:
        yield from python_docs.python_documents()
        return
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if is_corpus_file(file))
        if not files:
            raise _no_corpus(source, where, f"no file in it ends in {', '.join(CORPUS_SUFFIXES)}")
        for file in files:
            yield from _file(file, where)
    elif path.is_file():
        yield from _file(path, where)
    elif is_hub_id(source.partition(":")[0]) and not is_corpus_file(path):
        yield from _hub(source, where, reporter)
    else:
        raise _no_corpus(source, where, "there is no such file or folder")


def _file(path: Path, where: str) -> Iterator[Document]:
    if is_parquet(path):
        return _parquet(path, where)
    return _lines(path, where)


def is_parquet(path: Path) -> bool:
    """By the suffix, and for `.parquet.gzip`, as pandas calls Parquet with gzip inside, by its first bytes."""
    if path.suffix.lower() in (".parquet", ".pq"):
        return True
    with path.open("rb") as file:
        return path.suffix.lower() in (".gz", ".gzip") and file.read(4) == b"PAR1"


def _lines(path: Path, where: str) -> Iterator[Document]:
    document: Document = []
    for line in _text(path, where):
        if line.strip():
            document += split_sentences(line)
        else:
            yield document
            document = []
    yield document


def _text(path: Path, where: str) -> Iterator[str]:
    packed = path.suffix.lower() in (".gz", ".gzip")
    opened = open_gzip(path) if packed else path.open("rb")
    try:
        with opened as file:
            for number, line in enumerate(bounded_lines(file, str(path)), 1):
                if number == 1:
                    check_format(line, path)
                    if encoding := utf16_without_mark(line):
                        what = f"this is UTF-16 without a byte-order mark ({encoding})"
                        raise _damaged(f"{path}, line 1", where, what, _conversion(path, packed, encoding))
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    name, what = _encoding_of(line, error, number)
                    fix = _conversion(path, packed, name)
                    raise _damaged(f"{path}, line {number}", where, f"this is not UTF-8: {what}", fix) from None
    except (EOFError, zlib.error, OSError) as error:
        raise _damaged(str(path), where, str(error)) from error


def _encoding_of(line: bytes, error: UnicodeDecodeError, number: int) -> tuple[str | None, str]:
    """Returns the name of the encoding for iconv where the bytes show it, and what they are in words."""
    mark = next((name for start, name in MARKS if number == 1 and line.startswith(start)), None)
    if mark:
        return mark, f"its byte-order mark says {mark}"
    words, encoding = name_encoding(line, error.start)
    return encoding, f"{error.reason}; {words}"


def _conversion(path: Path, packed: bool, encoding: str | None) -> str:
    """Returns the command that writes a corpus in UTF-8 beside the old one."""
    name = path.with_name(f"utf8-{Path(path.stem if packed else path.name).stem}.txt")
    source, target = shlex.quote(str(path)), shlex.quote(str(name))
    name_for_iconv = (encoding or "ENCODING").upper().replace("UTF-16-", "UTF-16")  # Python writes a hyphen more
    start, end = (f"gzip -dc {source} | iconv", "") if packed else ("iconv", f"{source} ")
    command = f"{start} -f {name_for_iconv} -t UTF-8 {end}> {target}"
    return f"Convert it: {command}" if encoding else f"Say which encoding it is: {command}; or fetch it again."


def _parquet(path: Path, where: str) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        if "text" not in table.schema_arrow.names:
            raise _damaged(str(path), where, f"it has no column text, only {', '.join(table.schema_arrow.names)}")
        for batch in table.iter_batches(columns=["text"], batch_size=256):
            for text in batch.column(0).to_pylist():
                if not isinstance(text, str):
                    raise _damaged(str(path), where, f"a row of its column text is no text but {type(text).__name__}")
                yield _as_document(text)
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise _damaged(str(path), where, str(error) or type(error).__name__) from error


def _hub(source: str, where: str, reporter: Reporter) -> Iterator[Document]:
    import datasets

    name, _, config = source.partition(":")
    rows: Iterable[dict[str, str]] | None = cached_dataset(name, config or None, "train")
    try:
        if rows is None:
            if is_offline():
                raise LookupError("the local cache of data sets does not have it")
            reporter.note(f"corpus: streaming {source} from the Hub")
            ask_hub(name, "dataset")
            rows = datasets.load_dataset(name, config or None, split="train", streaming=True)
        yield from (_as_document(row["text"]) for row in rows)
    except (*hub_errors(), LookupError, datasets.exceptions.DatasetsError) as error:
        fix = hub_advice(error, "name a file: --corpus corpus.txt.gz")
        raise _no_corpus(source, where, f"the Hub did not give it: {first_line(error)}", fix) from error


def _as_document(text: str) -> Document:
    return [sentence for line in text.splitlines() for sentence in split_sentences(line)]


def _no_corpus(
    source: str, where: str, why: str, fix: str = "Name one that is there, for instance: --corpus python-docs"
) -> MbertError:
    return MbertError(
        "M230",
        f'"{source}" is no corpus: {why}',
        where=where,
        allowed=f"{BUILT_IN_CORPUS}, a file or folder of {', '.join(CORPUS_SUFFIXES)}, or a Hub data set as owner/name:config.",
        fix=fix,
    )


def _damaged(location: str, where: str, why: str, fix: str = "Make or fetch the file again.") -> MbertError:
    return MbertError(
        "M330",
        why,
        where=f"{where} {location}",
        allowed="UTF-8 text, one sentence or paragraph a line, a blank line between documents; or Parquet with a column text.",
        fix=fix,
    )
