"""The command `mbert`."""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache as remembered
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import typer

from microbert_cli import distributed, signals
from microbert_cli.cli.console import error_console, show, show_error, show_json, show_traceback
from microbert_cli.cli.summaries import SUMMARIES
from microbert_cli.errors import Exit, MbertError
from microbert_cli.runs import cache, disk
from microbert_cli.signals import Halted, Interrupted, raise_on_signal
from microbert_cli.version import __version__

COMMANDS = (
    "distill", "run", "plan", "doctor", "pretrain", "finetune", "general-distill", "augment", "expert-teacher", "trim",
    "task-distill", "cascade", "evaluate", "predict", "extract", "export", "push", "bench", "compare", "report", "verify",
    "names", "cache", "log", "env",
)  # fmt: skip
COMPLETION = "_MBERT_COMPLETE"  # set by a shell that completes a command
NO_COMMANDS = ("names",)  # files that are called otherwise than their commands

HELP = """Two-stage distillation of BERT-style encoders: a good but slow classifier becomes a small fast one.

Exit codes: 0 done or up to date, 1 a check failed, 2 usage, 3 recipe invalid, 4 input missing or incomplete, 5 data or
checkpoint corrupt, 6 diverged, 7 optional dependency missing, 70 bug, 130/143 interrupted and resumable, 141 broken pipe.
"""

GRACE_SECONDS = 20.0  # seconds; on a busy machine it takes a few until one that has left is missed


def __getattr__(name: str) -> Any:
    """`app`, the command line with all its commands, which is built when it is asked for: each takes time."""
    if name == "app":
        return command_line(COMMANDS)
    raise AttributeError(name)


@remembered
def command_line(names: Sequence[str]) -> typer.Typer:
    """Returns the command line with these of COMMANDS, in the order of the help."""
    app = _without_commands()
    for name in names:
        if Path(__file__).with_name(f"{name}.py").is_file():
            import_module(f"microbert_cli.cli.{name}").register(app)
        else:  # it runs one stage and does no more
            import_module("microbert_cli.cli.stage_commands").register(app, name)
    for command in app.registered_commands:  # click cuts what it takes from the help itself, and not what is called short
        text = command.help or (command.callback.__doc__ if command.callback else None) or ""
        command.short_help = " ".join(text.split("\n\n")[0].split())
    return app


def _without_commands() -> typer.Typer:
    app = typer.Typer(
        name="mbert", help=HELP, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode=None,
    )  # fmt: skip
    app.callback(invoke_without_command=True)(_root)
    return app


def overview() -> typer.Typer:
    """Returns the command line as its help shows it: the commands' names and what they do, none of which is loaded."""
    app = _without_commands()
    for name, summary in SUMMARIES.items():
        app.command(name, help=summary, short_help=summary)(_nothing)
    return app


def _nothing() -> None:
    """Stands for a command that is only listed."""


def _asks_for_overview() -> bool:
    """Whether nothing but the list of commands was asked for; completion, which the shell asks for, needs them all."""
    return sys.argv[1:] in ([], ["--help"], ["-h"]) and COMPLETION not in os.environ


def _typed_commands() -> Sequence[str]:
    """Returns the command that was typed, alone; all where it is none, or where the help or an error names the others."""
    typed = sys.argv[1:2]
    return tuple(typed) if set(typed) & set(COMMANDS) - set(NO_COMMANDS) else COMMANDS


def _root(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
    if version:
        show(f"mbert {__version__}")
        raise typer.Exit


def main() -> None:
    """Runs the command line and leaves with one of the documented exit codes."""
    try:
        _run()
    except (SystemExit, BrokenPipeError) as leaving:
        # click and rich make exit code 1 of a reader that left (`| head`), wherever it is noticed.
        if not isinstance(leaving, BrokenPipeError) and not isinstance(leaving.__context__, BrokenPipeError):
            raise
        signals.silence_broken_streams()
        sys.exit(int(Exit.BROKEN_PIPE))


def _run() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # threads that spin long starve whatever shares the machine
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        with raise_on_signal():
            app = overview() if _asks_for_overview() else command_line(_typed_commands())
            code = app(standalone_mode=False, prog_name="mbert")
            distributed.shutdown()
        sys.exit(code or int(Exit.DONE))
    except MbertError as error:
        _exit_with_error(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        refusal = cache.CacheDeletedError(error.filename) if cache.was_deleted(error) else disk.path_refused(error)
        if refusal is None:
            _report_bug()
        _exit_with_error(refusal)
    except (Halted, Interrupted) as stop:
        error_console().print(f"stopped by {stop}; the same command goes on from here", markup=False)
        sys.exit(int(stop.exit_code))
    except Exception as error:
        if hasattr(error, "format_message"):
            _exit_with_usage_error(error)
        if (code := getattr(error, "exit_code", None)) is not None:
            error_console().print(f"stopped by {error}; the same command goes on from here", markup=False)
            sys.exit(int(code))
        _report_bug()


def _report_bug() -> NoReturn:
    _wait_for_main_process()
    show_traceback()
    error_console().print(
        f"[B070] this is a bug in mbert {__version__}, not your mistake. The report should hold the above and `mbert env`.",
        markup=False,
    )
    sys.exit(int(Exit.BUG))


def _wait_for_main_process() -> None:
    """Lets the main process report first: where it fails too, the launcher ends all others once it has left.

    So whoever is here after a while met something that the main one did not, and says it.
    """
    if not distributed.is_main():
        time.sleep(GRACE_SECONDS)


def _exit_with_error(error: MbertError) -> NoReturn:
    """Prints the error on stderr, with --json on stdout too, and exits with the code of its family."""
    _wait_for_main_process()
    show_error(error)
    if "--json" in sys.argv:
        with suppress(MbertError):  # stdout may be what cannot be written
            show_json({**error.details, "error": error.as_dict()})
    if "-v" in sys.argv or "--verbose" in sys.argv:
        show_traceback()
    sys.exit(int(error.exit_code))


def _exit_with_usage_error(error: Any) -> NoReturn:
    """Prints what the parser of the command line found as an error of four parts; `mbert` alone shows the help."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "mbert"
    if len(sys.argv) == 1:
        error.show()
        sys.exit(int(Exit.USAGE))
    from microbert_cli.cli.options import keys_of_option, phases_of_method

    fix = f"See all options: {command} --help"
    if keys := keys_of_option(
        getattr(error, "option_name", None) or "", command.rpartition(" ")[2], phases_of_method(sys.argv)
    ):
        value = next(iter(sys.argv[sys.argv.index(error.option_name) + 1 :]), "") if error.option_name in sys.argv else ""
        settings = " or ".join(f"--set {key}={value or 'VALUE'}" for key in keys)
        fix = f"This is a key of the recipe, without an option of its own: {settings}"
    _exit_with_error(
        MbertError(
            "M100",
            error.format_message().rstrip("."),
            where=command,
            allowed=(context.get_usage() if context else f"Usage: {command} [OPTIONS] COMMAND [ARGS]..."),
            fix=fix,
        )
    )
