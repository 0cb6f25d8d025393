"""stdout is the result, stderr is the talk. The only file that prints."""

import errno
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.markup import escape

from microbert_cli import distributed
from microbert_cli.cli.progress import Bars, Lines
from microbert_cli.cli.tables import layout
from microbert_cli.errors import Exit, MbertError
from microbert_cli.reporter import Reporter
from microbert_cli.runs import disk
from microbert_cli.signals import silence_broken_streams
from microbert_cli.text import escape_control_characters, json_line, one_line, safe_text

UNLIMITED = 100_000  # cells: of a file or pipe
ASCII_SIGNS = str.maketrans({"✓": "+", "✗": "x", "·": "-"})


class MessageConsole(Console):
    """stderr as it is now, also while a library's own talk is caught; where no disk takes the messages, the work goes on."""

    def __init__(self, *, quiet: bool = False):
        super().__init__(file=sys.stderr, highlight=False, soft_wrap=True, quiet=quiet)

    def print(self, *objects: Any, **options: Any) -> None:
        with suppress(OSError):  # rich makes an exit of a broken pipe
            super().print(*objects, **options)


def error_console() -> Console:
    """Returns the console of messages: stderr, colours only on a terminal; of several processes only the main one writes."""
    return MessageConsole(quiet=not distributed.is_main())


class ConsoleReporter(Reporter):
    """Bars on a terminal, lines every ten seconds in a log file, nothing but warnings under --quiet."""

    def __init__(self, *, quiet: bool = False):
        self.console = error_console()
        self.quiet = quiet
        self._bars = Bars(self.console) if self.console.is_terminal else None
        self._lines = Lines(lambda line: self.console.print(escape(line)))

    def note(self, text: str) -> None:
        if not self.quiet:
            self._print(escape(safe_text(text)))

    def warn(self, text: str) -> None:
        self._print(f"[yellow]warning:[/yellow] {escape(safe_text(text))}")

    def begin(self, stage: str, step: int, total: int) -> None:
        if not self.quiet:
            self._display.begin(stage, step, total)

    def progress(self, stage: str, step: int, total: int, **numbers: float) -> None:
        if not self.quiet:
            self._display.update(stage, step, total, numbers)

    @contextmanager
    def working(self, stage: str) -> Iterator[None]:
        if self.quiet:
            yield
            return
        self._display.enter(stage)
        try:
            yield
        finally:
            self._display.leave()

    def close(self) -> None:
        self._display.close()

    @property
    def _display(self) -> Bars | Lines:
        return self._bars or self._lines

    def _print(self, text: str) -> None:
        if self._bars:
            self._bars.pause()
        self.console.print(text, soft_wrap=not self.console.is_terminal)  # a terminal would break words
        self._lines.wrote()
        if self._bars:
            self._bars.resume()


def show_error(error: MbertError) -> None:
    """Prints the four parts of an error on stderr, from whichever process raised it."""
    MessageConsole().print(escape(str(error)), style="bold", markup=True)


def show_traceback() -> None:
    """Prints the traceback of the current exception on stderr."""
    MessageConsole().print(safe_text(traceback.format_exc().rstrip()), markup=False)


def show(text: str) -> None:
    """Prints one line of the main process's result.

    A terminal gets no control characters; a file or pipe gets every byte, and what is no character written out.
    """
    _print(escape_control_characters(text) if sys.stdout.isatty() else text)


def _print(text: str) -> None:
    """Prints text that may hold our own colours; ends the command where nobody reads any more (`| head`), as others do."""
    if not distributed.is_main():
        return
    try:
        print(text.encode(errors="backslashreplace").decode(), flush=True)
    except BrokenPipeError:
        sys.exit(int(Exit.BROKEN_PIPE))
    except OSError as error:
        silence_broken_streams()
        raise disk.disk_refused(error.errno or errno.EIO, "standard output") from error


def show_note(text: str) -> None:
    """Lines beside the result, on stderr."""
    console = error_console()
    console.print(escape(safe_text(text)), soft_wrap=not console.is_terminal)


def show_marked(before: str, mark: str, after: str, style: str) -> None:
    """Prints a line with a sign in it, coloured on a terminal; an ASCII sign where the encoding has no other."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        mark.encode(encoding)
    except UnicodeEncodeError:
        mark = mark.translate(ASCII_SIGNS)
    console = Console(highlight=False, soft_wrap=True)
    with console.capture() as captured:
        console.print(
            f"{escape(escape_control_characters(before))}[{style}]{escape(mark)}[/]{escape(escape_control_characters(after))}"
        )
    _print(captured.get().rstrip("\n").encode(encoding, "replace").decode(encoding))


def broken_below(text: str, column: int) -> str:
    """Returns a text that begins at a column, on a terminal broken at words so that it stays right of it; else as it is."""
    if not sys.stdout.isatty():
        return text
    width = Console().width - column
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) if 20 <= width < len(text) else [text]
    return f"\n{' ' * column}".join(lines)


def show_json(value: Any) -> None:
    """Prints a result as one JSON object."""
    show(json_line(value))


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, err: bool = False, texts: Sequence[str] = ()
) -> None:
    """Prints a table: a result on stdout, or with `err` a message on stderr.

    texts  columns that may be broken over lines. On a terminal that is too narrow the other columns are not cut: what does
           not fit stands in a second table below. A file or pipe gets lines as long as they are.
    """
    console = Console(highlight=False, stderr=err, quiet=err and not distributed.is_main())
    if not console.is_terminal:
        console = Console(width=UNLIMITED, highlight=False, stderr=err, quiet=console.quiet)
    cells = [[one_line(cell) for cell in row] for row in rows]
    tables = list(layout(columns, cells, console.width, texts))
    if err:
        with suppress(OSError):  # a full disk that takes no messages stops no work
            _print_tables(console, title, tables)
        return
    with console.capture() as captured:
        _print_tables(console, title, tables)
    _print("\n".join(line.rstrip() for line in captured.get().rstrip().split("\n")))


def _print_tables(console: Console, title: str, tables: Sequence[Any]) -> None:
    if title:
        console.print(escape(escape_control_characters(title)), style="italic", soft_wrap=True)
    for number, table in enumerate(tables):
        console.print(*([""] if number else []), table, sep="\n")
