"""Makes an export look as earlier versions wrote it: ONNX files at the top, with the names and the manifest of then."""

import json
from pathlib import Path

from microbert_cli.models.exported.files import EARLIER_EXITS_FILE, EARLIER_FILES, EXITS_FILE, ONNX_FILES
from microbert_cli.runs import manifest
from microbert_cli.runs.atomic import CHECKSUM_KEY, digest, dump_with_checksum

MOVED = {ONNX_FILES[name]: earlier for name, earlier in EARLIER_FILES.items()} | {EXITS_FILE: EARLIER_EXITS_FILE}


def to_earlier_layout(export: Path) -> list[str]:
    """Moves the files of a finished export and rewrites its metrics and its manifest; returns the names that they have now."""
    moved = [(new, earlier) for new, earlier in MOVED.items() if (export / new).is_file()]
    assert moved, f"no ONNX files in {export}"
    for new, earlier in moved:
        (export / new).rename(export / earlier)
    (export / "onnx").rmdir()
    path = export / "metrics.json"
    text = path.read_text(encoding="utf-8")
    for new, earlier in moved:
        text = text.replace(json.dumps(new), json.dumps(earlier))
    path.write_text(text, encoding="utf-8")
    facts = {key: value for key, value in manifest.read(export).items() if key != CHECKSUM_KEY}
    facts["outputs"] = manifest.output_digests(export)
    facts["result"] = digest({name: value for name, value in facts["outputs"].items() if manifest.is_result(name)})
    (export / manifest.FILE).write_text(dump_with_checksum(facts), encoding="utf-8")
    return [earlier for _, earlier in moved]
