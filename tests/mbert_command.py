"""The command `mbert` as a user has it, in this process: the same `main`, fifty times faster than a new one.

done = mbert("finetune", "--task", "sst2")      # current directory, environment and sys.argv as a shell gives them
done.code, done.out, done.err                   # exit code, stdout, stderr
error = refused(4, "M203", "evaluate", "no/such/dir", "--task", "sst2")
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

# Several commands in one process, each as typed: importing torch takes longer than all of them.
COMMANDS = """
import json, sys
sys.path.insert(0, {tests!r})
from mbert_command import mbert

result = []
for words in {commands!r}:
    done = mbert(*words)
    result.append([done.code, done.out, done.err])
print(json.dumps(result))
"""
PARTS = ("what", "where", "allowed", "fix")


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as the one JSON object it is with --json."""
        return json.loads(self.out)


class _Piped(io.TextIOWrapper):
    """A stream that is no terminal and has the bytes below, as a pipe has."""

    def __init__(self, content: str = "") -> None:
        super().__init__(io.BytesIO(content.encode()), encoding="utf-8", write_through=True)

    @property
    def text(self) -> str:
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined]


def mbert(*arguments: str | Path, stdin: str = "") -> Done:
    """Runs `mbert ARGUMENTS` here and now."""
    from microbert_cli.cli.main import main

    out, err = _Piped(), _Piped()
    words = ["mbert", *map(str, arguments)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ))
        for name, value in {"argv": words, "stdin": _Piped(stdin), "stdout": out, "stderr": err}.items():
            stack.enter_context(patch.object(sys, name, value))
        try:
            main()
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return Done(code, out.text, err.text)


def works(*arguments: str | Path, stdin: str = "") -> Done:
    """The command, which must end well."""
    done = mbert(*arguments, stdin=stdin)
    assert done.code == 0, f"mbert {' '.join(map(str, arguments))} left with {done.code}:\n{done.err}"
    return done


def refused(exit_code: int, code: str, *arguments: str | Path, stdin: str = "") -> dict[str, Any]:
    """The command, which must fail with this exit code and error code; returns the error's parts, none of them empty.

    `--json` is added, since what a script reads and what a person reads must say the same.
    """
    done = mbert(*arguments, "--json", stdin=stdin)
    message = f"mbert {' '.join(map(str, arguments))} left with {done.code}:\n{done.out}\n{done.err}"
    assert done.code == exit_code, message
    assert "Traceback" not in done.err, message
    error: dict[str, Any] = done.json["error"]
    assert error["code"] == code and error["exit_code"] == exit_code, message
    for part in PARTS:
        assert error[part].strip(), f"{part} is empty: {message}"
        assert error[part] in done.err, message
    return error


def child(commands: list[tuple[str, ...]], env: dict[str, str], cwd: Path) -> list[Any]:
    """Runs commands in a process of their own environment: exit code, stdout and stderr of each."""
    script = COMMANDS.format(tests=str(Path(__file__).parent), commands=commands)
    done = subprocess.run([sys.executable, "-c", script], env=env, cwd=cwd, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
