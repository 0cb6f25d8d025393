"""Screens of commands as pictures: python benchmarks/screens.py docs/img, after `make demo`; `make screens`.

Each command runs on a terminal of 80 and of 140 columns, as a user has it; what stands there at its end becomes an SVG in
docs/img/screens. `python benchmarks/screens.py docs/img doctor show` makes those of two commands.
"""

import fcntl
import io
import os
import pty
import re
import shutil
import struct
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI, TerminalTheme
from rich.text import Text

LIGHT = TerminalTheme(
    (255, 255, 255),
    (40, 40, 40),
    [(60, 60, 60), (180, 30, 30), (30, 120, 50), (140, 100, 0), (30, 80, 170), (130, 40, 130), (0, 110, 120), (90, 90, 90)],
)
WIDTHS = (80, 140)
# After the demo; those that train take a few steps, in runs/screens. What names the machine is left out: cache, env.
TASK = "--task python-docs --set data.limit=600"
COMMANDS = {
    "help": "--help",
    "run": "run recipes/quickstart.toml -o runs/quickstart",
    "distill": "distill runs/screens/short.csv --base runs/quickstart/pretrain -o runs/screens/short --dry-run",
    "plan": "plan recipes/quickstart.toml -o runs/quickstart",
    "doctor": "doctor recipes/quickstart.toml",
    "pretrain": (
        "pretrain --model demo-2l-64 --corpus python-docs --set vocabulary=4000 --set corpus.max_length=32 "
        "--set pretrain.steps=20 -o runs/screens/pretrain"
    ),
    "finetune": f"finetune --model runs/quickstart/pretrain {TASK} --set finetune.steps=20 -o runs/screens/finetune",
    "general-distill": (
        "general-distill --teacher runs/quickstart/pretrain --student demo-2l-64 --corpus python-docs --set "
        "corpus.max_length=32 --set general.steps=20 -o runs/screens/general"
    ),
    "augment": f"augment --masked-lm runs/quickstart/pretrain {TASK} --set augment.copies=1 -o runs/screens/augment",
    "trim": f"trim runs/quickstart/finetune {TASK} --set vocabulary.keep_first=0 -o runs/screens/trim",
    "task-distill": (
        f"task-distill --teacher runs/quickstart/finetune --student demo-2l-64 --set method=kd {TASK} --set "
        "phases.distillation.steps=20 -o runs/screens/kd"
    ),
    "expert-teacher": (
        f"expert-teacher --teacher runs/quickstart/finetune {TASK} --set moe.experts=2 --set "
        "moe.repair.steps=4 -o runs/screens/experts"
    ),
    "cascade": "cascade runs/quickstart/task-distill runs/quickstart/finetune --task python-docs -o runs/screens/cascade",
    "evaluate": (
        "evaluate runs/quickstart/export --teacher runs/quickstart/finetune --task python-docs -o runs/screens/evaluate"
    ),
    "predict": "predict runs/quickstart/export --file runs/screens/lines.txt",
    "export": "export runs/quickstart/task-distill --task python-docs -o runs/screens/student/export",
    "bench": "bench runs/quickstart/export --no-baselines --rounds 5 --passes 1",
    "compare": "compare runs/screens/kd.toml runs/screens/pkd.toml -o runs/screens/compare",
    "report": "report runs/quickstart -o runs/screens/report.html",
    "verify": "verify runs/quickstart/export",
    "push": "push runs/quickstart/export someone/python-docs-small --dry-run",
    "list": "list students",
    "keys": "list keys export",
    "show": "show methods kd",
    "copy": "copy recipes own-data -o runs/screens/mine.toml",
    "error": "finetune --model google-bert/bert-base-uncased --task sst3 --set finetune.epoch=3",
}


def on_terminal(words: list[str], width: int) -> str:
    """Returns what a command writes on a terminal so many columns wide, control sequences included."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(width), "LINES": "50"}
        os.execv(sys.executable, [sys.executable, "-m", "microbert_cli", *words])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    written = io.BytesIO()
    try:
        while part := os.read(terminal, 65536):
            written.write(part)
    except OSError:  # how a terminal says that its last process has left
        pass
    os.waitpid(process, 0)
    return written.getvalue().decode(errors="replace")


def at_the_end(written: str) -> str:
    """Returns the lines left on the screen, with their colours: bars of progress are drawn over each other and erased."""
    lines, row, begins = [""], 0, False
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-ln-z]|\r|\n)", written.replace("\r\n", "\n")):
        if part == "\n":
            row, begins = row + 1, False
            lines += [""] * (row == len(lines))
        elif part == "\r":
            begins = True
        elif move := re.fullmatch(r"\x1b\[(\d*)A", part):
            row = max(0, row - int(move[1] or 1))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part and not part.startswith("\x1b[?"):  # whether the cursor is seen
            lines[row], begins = ("" if begins else lines[row]) + part, False
    return "\n".join(lines).rstrip()


def without_places(text: str) -> str:
    """Returns the text without where this copy and the home of its user lie."""
    return text.replace(str(Path.cwd()), "~/work").replace(str(Path.home()), "~")


def forget(command: str) -> None:
    """Removes what the command wrote at another width, so that it does its work again."""
    if out := re.search(r"-o (runs/screens/\S+)", command):
        path = Path(out[1])
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def prepare(folder: Path) -> None:
    """Writes what some commands read: a small table, lines of text, two recipes to compare."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [f"Return the {name} of the day number {i}." for i in range(40) for name in ("hour", "week")]
    rows = [f"{text},{'hours' if 'hour' in text else 'weeks'}" for text in texts]
    (folder / "short.csv").write_text("\n".join(["text,label", *rows, ""]), encoding="utf-8")
    (folder / "lines.txt").write_text(
        "Return the hour of the day.\nClose the socket and forget its address.\n", encoding="utf-8"
    )
    for method in ("kd", "pkd"):
        lines = [
            'task = "python-docs"',
            f'method = "{method}"',
            'teacher = "runs/quickstart/finetune"',
            'student = "demo-2l-64"',
            'initialise = "teacher-slice"',
        ]
        text = "\n".join([*lines, "[data]", "limit = 600", "[phases.distillation]", "steps = 20", ""])
        (folder / f"{method}.toml").write_text(text, encoding="utf-8")


def main(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prepare(Path("runs/screens"))
    for name in names or COMMANDS:
        command = COMMANDS[name]
        for width in WIDTHS:
            forget(command)
            text = without_places(at_the_end(on_terminal(command.split(), width)))
            for theme, colours in {"light": LIGHT, "dark": DIMMED_MONOKAI}.items():
                console = Console(record=True, width=width, file=io.StringIO())
                console.print(Text(f"$ mbert {command}", style="bold"))
                for line in Text.from_ansi(text).split("\n", allow_blank=True):  # a terminal breaks lines anywhere
                    console.print(*line.divide(range(width, len(line), width)) or [line], sep="\n")
                picture = re.sub(
                    r"@font-face \{.*?\}\s*", "", console.export_svg(title="mbert", theme=colours), flags=re.DOTALL
                )
                (folder / f"{name}-{width}-{theme}.svg").write_text(picture, encoding="utf-8")  # no font from elsewhere
        print(folder / f"{name}-*.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "screens", sys.argv[2:])
