"""`mbert env`: versions and devices, for a bug report."""

import os
import platform
from importlib import metadata
from typing import Annotated

import typer

from microbert_cli.cli.console import show, show_json
from microbert_cli.runs.manifest import PACKAGES
from microbert_cli.text import without_secrets
from microbert_cli.version import __version__

SETTINGS = ("MBERT_DATA", "MBERT_CACHE", "MBERT_DEVICE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "OMP_NUM_THREADS")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("env", epilog="Example: mbert env --json")(env)


def env(as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """Shows versions, cores and settings, for a bug report."""
    # Imports torch, which no other command's --help shall wait for.
    from microbert_cli.models.device import LIMITS, auto_precision, bfloat16_by, pick_device

    device = pick_device("auto")
    by = bfloat16_by(device)
    facts = {"mbert": __version__, "python": platform.python_version(), "system": platform.platform()}
    facts |= {
        "cores": str(os.cpu_count()),
        "device": device,
        "precision": f"auto is {auto_precision(device)}" + (f", by {by}" if by else ""),
    }
    facts |= {name: _version(name) for name in PACKAGES}
    facts |= {name: without_secrets(os.environ[name]) for name in (*SETTINGS, *LIMITS) if name in os.environ}
    if as_json:
        show_json(facts)
    else:
        show("\n".join(f"{name:<16}{value}" for name, value in facts.items()))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"
