"""One trial again, by hand, with all that was said: for a line of a report.

    python tests/torture/one.py fault augment 'run/augment.partial/shards/.begun-0' w 1 fail EIO
    python tests/torture/one.py damage scene-in-finetune-0.8 run/finetune.partial/begun.json 17 0x20    byte 17 xor 0x20
    python tests/torture/one.py damage scene-after-augment run/augment/augmented.parquet 17 cut         cut after byte 17

The folder stays, and its name is printed: `cd` there and go on.
"""

import errno
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

from fork_server import Ended, Fault, Server, build_library  # noqa: E402
from proofs import scenes  # noqa: E402
from small_run import Bench, verdict  # noqa: E402


def main(what: str, where: str, name: str, *rest: str) -> None:
    """Makes the undisturbed run first, then the trial, then the same command again."""
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    with Server(folder / "server-1", build_library(folder)) as server:
        bench = Bench(folder, server)
        if what == "fault":
            place = bench.place("trial", where)
            kinds, number, mode, *value = rest
            show(bench, place, bench.run(place, fault=Fault(name, kinds, int(number), mode, _value(*value))))
        else:
            scene = next(scene for scene in scenes(bench, server) if scene.place.name == where)
            place = bench.copy(scene.place, "trial")
            damage(place / name, int(rest[0]), rest[1])
        show(bench, place, bench.run(place))


def damage(path: Path, position: int, how: str) -> None:
    """Turns bits of one byte, or cuts the file there."""
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[position:]
    else:
        content[position] ^= int(how, 0)
    path.write_bytes(content)


def show(bench: Bench, place: Path, ended: Ended) -> None:
    print(f"\n== {verdict(ended)}, exit {ended.code}\n{ended.err}\n== in {place}:")
    print("\n".join(bench.problems(place)[:40]) or "all as in the undisturbed run")


def _value(name: str = "0") -> int:
    return int(name) if name.isdigit() else int(getattr(errno, name))


if __name__ == "__main__":
    main(*sys.argv[1:])
