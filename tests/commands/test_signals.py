"""What whoever starts `mbert` does to it from outside: signals at any moment, streams that are closed or that nobody reads."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tiny_glue import tiny_glue
from tiny_models import tiny_bert

ROOT = Path(__file__).resolve().parents[2]
MBERT = (sys.executable, "-m", "microbert_cli")
SPREAD = 3.0  # seconds over which the signals are spread: a command imports its libraries in the first two
FINETUNE = ("finetune", "--model", "base", "--task", "sst2", "--set", "data.folder=glue", "--set", "finetune.steps=3")
RUN = """stages = ["finetune", "evaluate"]
task = "sst2"
[data]
folder = "glue"
max_length = 32
[finetune]
model = "base"
steps = 3
"""
COMMANDS = (
    (*FINETUNE, "--set", "data.max_length=32", "-o", "out"),
    ("predict", "classifier", "a fine boat"),
    ("--help",),
    ("run", "short.toml", "-o", "runs"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a recipe, rows and models, in which the commands are started."""
    root = tmp_path_factory.mktemp("signals")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        tiny_glue("glue", ("sst2",), rows=12)
        tiny_bert("base", positions=48)
        tiny_bert("classifier", labels=["bad", "good"], positions=48)
        Path("short.toml").write_text(RUN, encoding="utf-8")
        yield root


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


# --- signals ------------------------------------------------------------------------------------------------------------------


def signalled(words: Sequence[str], number: signal.Signals, seconds: float) -> tuple[int, str]:
    """Starts a command and sends it a signal; returns the exit code as a shell has it, and what it said."""
    command = [*MBERT, *words]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        time.sleep(seconds)
        running.send_signal(number)
        out, err = running.communicate(timeout=120)
    return running.returncode if running.returncode >= 0 else 128 - running.returncode, out + err


def spread_signals(count: int, seed: int) -> Counter[tuple[str, str]]:
    """Sends signals at moments spread over the first seconds, and checks how each command ends; returns the counts."""
    draw = random.Random(seed)
    moments = [SPREAD * (number + draw.random()) / count for number in range(count)]
    draw.shuffle(moments)
    counts: Counter[tuple[str, str]] = Counter()
    for number, seconds in enumerate(moments):
        words, sent = COMMANDS[number % len(COMMANDS)], (signal.SIGINT, signal.SIGTERM)[number // len(COMMANDS) % 2]
        code, text = signalled(words, sent, seconds)
        message = f"mbert {' '.join(words)}, {sent.name} after {seconds:.3f} s: {code}\n{text}"
        if "Traceback" in text or "KeyboardInterrupt" in text:
            # Python was still starting: the interpreter's own answer, before it reads a line of mbert.
            assert sent == signal.SIGINT and "Error" not in text, message
            assert not re.search(r"microbert_cli/(?!__(init|main)__\.py)", text), message
            counts[sent.name, "before the first line of mbert"] += 1
            continue
        assert code in (0, 128 + sent), message
        if "stopped by" in text:
            assert f"stopped by {sent.name}; the same command goes on from here" in text and code == 128 + sent, message
        counts[sent.name, "done" if code == 0 else "said" if "stopped by" in text else "before the first line of mbert"] += 1
    return counts


@pytest.mark.slow
def test_a_few_signals_in_the_first_seconds(folder: Path) -> None:
    counts = spread_signals(16, seed=1)
    assert counts["SIGINT", "said"] and counts["SIGTERM", "said"], counts


@pytest.mark.torture
def test_many_signals_in_the_first_seconds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = spread_signals(int(os.environ.get("SIGNALS", 200)), seed=int(os.environ.get("SEED", 0)))
    with capsys.disabled():
        print(*(f"\n{name}: {end}: {count}" for (name, end), count in sorted(counts.items())))
    assert counts["SIGINT", "before the first line of mbert"] <= counts.total() // 20, counts


STOPPED = """
import os, signal, sys
from pathlib import Path
from microbert_cli import __main__, signals

signals.leave_on_signal()
where, number = sys.argv[1], signal.Signals(int(sys.argv[2]))
Path("struck.py").write_text("import os\\nos.kill(os.getpid(), " + str(int(number)) + ")\\n" + "for i in range(1000): pass\\n")
sys.path.insert(0, ".")

class Dying:
    def __del__(self):
        os.kill(os.getpid(), number)
        for i in range(1000): pass

def strike(*_, **__):
    if where == "import":
        try:
            import struck
        except BaseException:  # as compiled modules do
            raise SystemError("initialisation failed")
    if where == "finaliser":
        Dying()
    if where == "swallowed":
        try:
            os.kill(os.getpid(), number)
            for i in range(1000): pass
        except BaseException as error:
            raise ValueError("something else") from None
    return 0

from microbert_cli.cli import main
main.command_line = lambda names: strike
sys.argv = ["mbert", "env"]
__main__.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["import", "finaliser", "swallowed"])
def test_a_signal_where_an_exception_would_be_lost(tmp_path: Path, where: str, number: int) -> None:
    """In an import, in `__del__`, and where a library makes another error of the exception."""
    words = [sys.executable, "-c", STOPPED, where, str(int(number))]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    name = signal.Signals(number).name
    assert (done.returncode, done.stderr) == (128 + number, f"stopped by {name}; the same command goes on from here\n")


def test_the_entry_point_listens_before_it_imports_anything() -> None:
    """The console script calls the same function as `python -m`, and neither reads more than two small files before."""
    assert '\nmbert = "microbert_cli.__main__:main"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    code = (
        "import microbert_cli.__main__, sys; print(*(m for m in sys.modules if m.startswith('microbert_cli') or m == 'typing'))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    modules = {"microbert_cli", "microbert_cli.version", "microbert_cli.signals", "microbert_cli.__main__"}
    assert set(done.stdout.split()) == modules, done.stderr


# --- streams ------------------------------------------------------------------------------------------------------------------

STREAMS = [
    ("list <&-", "0"),
    ("list losses >&-", "0"),
    ("list losses 2>&-", "0"),
    ("list losses <&- >&- 2>&-", "0"),
    pytest.param("predict classifier <&-", "0", marks=pytest.mark.slow),
    ("run nope.toml 2>&-", "4"),
    ("run nope.toml --json <&- >&- 2>&-", "4"),
    ("--help 2>&1 | true", "141"),
    ("run nope.toml 2>&1 | true", "141"),
    ("list 2>&1 | true", "141"),
    ("list > /dev/full", "4"),
    ("--help > /dev/full", "4"),
    ("list < /dev/null 1< /dev/null", "4"),
    ("run nope.toml 2> /dev/full", "4"),
    ("run nope.toml --json > /dev/full 2> /dev/full", "4"),
]


@pytest.mark.parametrize(("words", "code"), STREAMS)
def test_streams_that_are_closed_full_or_that_nobody_reads(folder: Path, words: str, code: str) -> None:
    """The exit code, and no traceback; the shell opens another stream for the code."""
    mbert = f'"{sys.executable}" -m microbert_cli {words}'
    script = f'exec 7>&1; {mbert}; echo "${{PIPESTATUS[0]}}" >&7'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment(), timeout=60)
    assert "Traceback" not in done.stderr + done.stdout and "Exception ignored" not in done.stderr
    assert done.stdout.split()[-1] == code, done.stderr
