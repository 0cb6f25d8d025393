"""Tables as a user would bring them, out of Python's standard library: python benchmarks/own_texts.py DIRECTORY

topics.csv and topics-dev.csv: the first paragraph of each docstring (text) and what its module is about (label, eight
classes), after the manner of AG News; short.csv and short-dev.csv: the first twelve words alone, as short as the questions
of TREC. Texts that occur twice are written once, every fifth is in dev, and module names stay: a linear model profits, too.
"""

import ast
import csv
import hashlib
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

TOPICS = {  # modules by what they are about
    "windows": "tkinter turtle curses idlelib",
    "concurrency": "asyncio concurrent multiprocessing threading queue sched selectors subprocess",
    "mail": "email mailbox smtplib imaplib poplib nntplib",
    "web": "http urllib wsgiref xmlrpc xml html ssl ftplib socketserver socket cgi ipaddress",
    "numbers": "_pydecimal decimal fractions statistics numbers random datetime _pydatetime calendar heapq",
    "language": "importlib ast inspect typing enum dataclasses abc functools contextlib collections types",
    "files": "tarfile zipfile pathlib shutil os _pyio tempfile gzip bz2 lzma encodings codecs csv",
    "tools": "unittest doctest pdb bdb logging argparse optparse distutils pydoc trace traceback venv",
}


def docstrings() -> Iterator[tuple[str, str]]:
    """Yields the first paragraph of every docstring with the topic of its module."""
    root = Path(sysconfig.get_path("stdlib"))
    for topic, modules in TOPICS.items():
        for module in modules.split():
            for path in sorted([*root.glob(f"{module}.py"), *(root / module).rglob("*.py")]):
                if not {"test", "tests"} & set(path.relative_to(root).parts):
                    with warnings.catch_warnings(action="ignore"):
                        tree = ast.parse(path.read_text(encoding="utf-8"))
                    for node in ast.walk(tree):
                        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                            if text := " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split()):
                                yield text, topic


def write_tables(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, words in (("topics", 1000), ("short", 12)):
        rows = {" ".join(text.split()[:words]): topic for text, topic in docstrings()}
        in_order = sorted(rows, key=lambda text: hashlib.sha256(text.encode()).digest())
        for part, texts in (("", in_order[len(in_order) // 5 :]), ("-dev", in_order[: len(in_order) // 5])):
            with (folder / f"{name}{part}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(("text", "label"))
                writer.writerows((text, rows[text]) for text in texts)
            print(f"{name}{part}.csv", len(texts), Counter(rows[text] for text in texts))


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]))
