"""Screens of commands as pictures: python benchmarks/screens.py docs/img, after `make demo`; `make screens`.

Each command runs on a terminal of 80 and of 140 columns, as a user has it; what it writes becomes an SVG in docs/img/screens.
"""

import fcntl
import io
import os
import pty
import re
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
COMMANDS = {
    "run": "run recipes/quickstart.toml -o runs/quickstart",
    "list": "list students",
    "keys": "list keys export",
    "plan": "plan recipes/quickstart.toml -o runs/quickstart",
    "bench": "bench runs/quickstart/export --no-baselines --rounds 5 --passes 1",
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


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, command in COMMANDS.items():
        for width in WIDTHS:
            lines = [line.rpartition("\r")[2] for line in on_terminal(command.split(), width).replace("\r\n", "\n").split("\n")]
            for theme, colours in {"light": LIGHT, "dark": DIMMED_MONOKAI}.items():
                console = Console(record=True, width=width, file=io.StringIO())
                console.print(Text(f"$ mbert {command}", style="bold"))
                console.print(Text.from_ansi("\n".join(lines).rstrip()), overflow="fold")  # as a terminal breaks lines
                picture = re.sub(
                    r"@font-face \{.*?\}\s*", "", console.export_svg(title="mbert", theme=colours), flags=re.DOTALL
                )
                (folder / f"{name}-{width}-{theme}.svg").write_text(picture, encoding="utf-8")  # no font from elsewhere
        print(folder / f"{name}-*.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "screens")
