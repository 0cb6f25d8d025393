"""TOML files as nested tables, with errors that help."""

import tomllib
from pathlib import Path
from typing import Any

from microbert_cli.errors import MbertError


def read_toml(path: Path, kind: str = "recipes") -> dict[str, Any]:
    """A file of a catalogued kind; raises M001 (not TOML, not UTF-8) or M201 (not there)."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise MbertError(
            "M201",
            "there is no such file",
            where=str(path),
            allowed=f"An existing TOML file, or a name of the catalogue's {kind}.",
            fix=f"See them: mbert list {kind}",
        ) from None
    except (ValueError, RecursionError) as error:  # too many digits or brackets are none of tomllib's own errors
        raise MbertError(
            "M001",
            f"this is not valid TOML: {error}",
            where=str(path),
            allowed='TOML 1.0 in UTF-8: key = "text", key = 1.5, key = [1, 2], [table].',
            fix=f"Correct that place; a file that is right: mbert copy {kind}",
        ) from None
