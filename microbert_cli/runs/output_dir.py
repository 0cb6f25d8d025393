"""Output directories: worked on beside, renamed when whole, never overwritten.

OUT            exists only complete, with its manifest
OUT.partial    where the stage works; found again, same identity -> resumed
OUT.old-N      what --force or a changed recipe moved aside
OUT.lock       held while a run works on OUT
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microbert_cli import distributed
from microbert_cli.errors import MbertError
from microbert_cli.reporter import SILENT, Reporter
from microbert_cli.runs import atomic, manifest
from microbert_cli.runs.disk import cannot_write, disk_error, disk_refused
from microbert_cli.runs.reuse import copy_output
from microbert_cli.text import command_line

Identity = Mapping[str, Any]
BEGUN = "begun.json"
START_FILES = (BEGUN, f".{BEGUN}.")  # how the names of files begin that say nothing about work


@dataclass
class OutputDirectory:
    """A directory being made. `facts` go into the manifest; `done` says that OUT was there already.

    begun  what `remember` was given, also by the run that is resumed; None where a version began it that remembered nothing
    """

    out: Path
    path: Path
    done: bool = False
    resumed: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    begun: dict[str, Any] | None = field(default_factory=dict)

    def remember(self, **facts: str) -> None:
        """Keeps what this machine decided, for a resumed run and for the manifest; the main process calls it."""
        self.facts |= facts
        if self.begun is not None and facts.items() - self.begun.items():
            self.begun |= facts
            start = atomic.load_with_checksum((self.path / BEGUN).read_text(encoding="utf-8"))
            atomic.write_text(self.path / BEGUN, atomic.dump_with_checksum({**start, "facts": self.begun}))


@contextmanager
def stage_output(
    out: Path,
    *,
    stage: str,
    identity: Identity,
    force: bool = False,
    resume: bool = True,
    renew: bool = False,
    reuse: Sequence[str] = (),
    reporter: Reporter = SILENT,
) -> Iterator[OutputDirectory]:
    """Yields a directory to work in, and turns it into OUT when the block ends well.

    force   moves a finished OUT and any begun work aside first
    resume  goes on with begun work of the same identity; without it that is moved aside
    renew   moves an OUT, or begun work, of another identity aside, instead of raising M110 or M117; a damaged OUT too
    reuse   runs whose output of the same identity is copied, where nothing was begun here
    A block that fails before it wrote anything leaves nothing behind, not even OUT.partial.
    Of several processes the main one does all this; the others get the same Work, and go on when OUT is whole.
    Raises M110 (OUT made by another recipe), M117 (work begun by another recipe), M306 (OUT is not what was made), M111 (OUT
    holds something else), M112 (another run works on it), M114 (OUT is a file), M120 (the root), M370 (a link, or begun work
    with links), M220 (disk full; what is done stays in OUT.partial), M221 (nothing can be written there).
    """
    out = out.absolute()
    if not distributed.is_main():
        yield distributed.broadcast(OutputDirectory(out, out))
        distributed.barrier()
        return
    _check_is_directory(out)
    with _lock(out):
        if force:
            _move_aside(out, reporter)
            _move_aside(manifest.partial_path(out), reporter)
        elif _is_done(out, identity, renew, reporter) or _is_copied(out, reuse, stage, identity, reporter):
            yield distributed.broadcast(OutputDirectory(out, out, done=True))
            distributed.barrier()
            return
        work = _start_or_resume(out, stage, identity, resume, renew, reporter)
        started = manifest.utc_now()
        try:
            yield distributed.broadcast(work)
            manifest.write(work.path, stage=stage, identity=identity, started=started, **work.facts)
            _publish(work)
            distributed.barrier()
        except BaseException as error:
            _remove_if_untouched(work.path)
            if number := disk_error(error, out):
                raise disk_refused(number, str(getattr(error, "filename", None) or f"-o {out}")) from error
            raise


def is_up_to_date(out: Path, identity: Identity) -> bool:
    """Whether OUT was completed from exactly these keys and inputs."""
    return (out / manifest.FILE).is_file() and manifest.read(out)["identity_hash"] == atomic.digest(identity)


def differences(out: Path, identity: Identity) -> list[str]:
    """Returns why OUT is not up to date, a line each: `finetune.epochs: 3.0 -> 2.0`."""
    return _changed_keys(manifest.read(out)["identity"], identity)


def _changed_keys(before: Identity, identity: Identity) -> list[str]:
    old, new = _flatten(before), _flatten(json.loads(json.dumps(identity, default=str)))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f"{key}: {_shorten(old.get(key))} -> {_shorten(new.get(key))}" for key in keys]


def _is_done(out: Path, identity: Identity, renew: bool, reporter: Reporter) -> bool:
    if not out.exists() or not any(out.iterdir()):
        return False
    if not (out / manifest.FILE).is_file():
        raise MbertError(
            "M111",
            "this directory is not empty, and no stage of mbert finished it",
            where=f"-o {out}",
            allowed="A new or empty directory, or one that the same command made.",
            fix="Choose another -o, or move this one aside: --force",
        )
    if renew and (reasons := _reasons_to_renew(out, identity)):
        reporter.note(f"{out.name}: made anew, because {'; '.join(reasons[:3])}")
        _move_aside(out, reporter)
        return False
    if is_up_to_date(out, identity):
        manifest.read_verified(out)
        (out / BEGUN).unlink(missing_ok=True)  # a run that was killed at its very end may have left it
        return True
    changed = differences(out, identity)
    raise MbertError(
        "M110",
        f"this directory was made from something else ({'; '.join(changed[:6])})",
        where=f"-o {out}",
        allowed="A new or empty directory, or one that the same recipe and inputs made.",
        fix="Choose another -o, or move the old one aside: --force",
    )


def _is_copied(out: Path, runs: Sequence[str], stage: str, identity: Identity, reporter: Reporter) -> bool:
    copy = out.with_name(f".{out.name}.copy")
    if not runs or manifest.partial_path(out).exists() or not (source := copy_output(runs, stage, identity, copy)):
        return False
    _publish(OutputDirectory(out, copy))
    reporter.note(f"{out.name}: copied from {source}, which was made of the same")
    return True


def _reasons_to_renew(out: Path, identity: Identity) -> list[str]:
    """Returns why a finished OUT has to be made anew: changed keys and inputs, else damaged files."""
    try:
        return differences(out, identity) or atomic.damaged_files(out, manifest.read(out)["outputs"])
    except MbertError as error:
        return [error.what]


def _start_or_resume(
    out: Path, stage: str, identity: Identity, resume: bool, renew: bool, reporter: Reporter
) -> OutputDirectory:
    partial = manifest.partial_path(out)
    if resume or out.is_symlink():
        _check_no_links(out, partial)
    start = {"stage": stage, "identity": identity, "argv": command_line(), "facts": {}}
    if partial.is_dir() and not _remove_if_untouched(partial):
        begun = _read_start(partial)
        before = begun and begun["identity"]
        changed = ["what it was begun with cannot be read"] if before is None else _changed_keys(before, identity)
        if begun and resume and not changed:
            reporter.note(f"{out.name}: going on with what was begun in {partial.name}")
            atomic.remove_all_temporaries(partial)
            return OutputDirectory(out, partial, resumed=True, begun=begun.get("facts"))
        if resume and not renew and before is not None:
            raise _other_partial_work(partial, changed)
        reporter.note(f"{partial.name}: begun anew, {'; '.join(changed[:3]) or 'as asked'}")
        _move_aside(partial, reporter)
    try:
        partial.mkdir(parents=True)
        atomic.write_text(partial / BEGUN, atomic.dump_with_checksum(start))
    except OSError as error:
        _remove_if_untouched(partial)
        raise cannot_write(error, out) from error
    return OutputDirectory(out, partial)


def _check_no_links(out: Path, partial: Path) -> None:
    """Raises M370 for links: begun work may come from elsewhere, and what is written through a link would leave OUT."""
    if link := next((path for path in (out, partial, *partial.rglob("*")) if path.is_symlink()), None):
        raise MbertError(
            "M370",
            "this is a link, and what is written here must not leave the directory",
            where=str(link),
            allowed="Begun work as mbert left it: files and folders, no links.",
            fix="Look where it leads; to move it aside and begin anew: the same command with --force",
        )


def _read_start(partial: Path) -> dict[str, Any] | None:
    """Returns what begun.json says: the stage, its identity and what was remembered; None where it cannot be read."""
    try:
        start = atomic.load_with_checksum((partial / BEGUN).read_text(encoding="utf-8"))
        return start if isinstance(start["identity"], dict) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _other_partial_work(partial: Path, changed: list[str]) -> MbertError:
    return MbertError(
        "M117",
        f"work was begun here from something else ({'; '.join(changed[:6])})",
        where=str(partial),
        allowed="The recipe and the inputs that it was begun with go on where it stopped.",
        fix="Change them back, or begin anew, the old work is moved aside: the same command with --no-resume",
    )


def _publish(work: OutputDirectory) -> None:
    if work.out.is_dir():
        work.out.rmdir()
    work.path.rename(work.out)
    (work.out / BEGUN).unlink(missing_ok=True)  # not before: where the renaming fails, the work must be found again
    atomic.fsync(work.out.parent)


def _move_aside(path: Path, reporter: Reporter) -> None:
    if not (path.exists() or path.is_symlink()):
        return
    number = 1
    while (target := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    path.rename(target)
    reporter.note(f"{path.name}: the old one was moved to {target}")


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Holds the lock file beside OUT for the block; raises M112 at once where another run holds it."""
    from filelock import FileLock, Timeout  # here, because `mbert --help` needs no lock and should not wait for the import

    created = [parent for parent in out.parents if not parent.exists()]
    lock = FileLock(out.with_name(f".{out.name}.lock"), blocking=False)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise MbertError(
            "M112",
            "another run is working on this directory",
            where=f"-o {out}",
            allowed="One run at a time for one directory.",
            fix="Wait for it, or choose another -o.",
        ) from None
    except OSError as error:
        raise cannot_write(error, out) from error
    try:
        yield
    finally:
        # Removed while it is still held: a run that opened the file before sees that it has no name any more, and does not
        # take it for a lock. Windows cannot remove an open file; there FileLock removes it on release.
        with suppress(PermissionError):
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        _remove_empty(created)


def _remove_if_untouched(partial: Path) -> bool:
    """Removes a begun directory in which nothing was done, and says whether it did."""
    untouched = not any(file.is_file() and not file.name.startswith(START_FILES) for file in partial.rglob("*"))
    if untouched:
        shutil.rmtree(partial, ignore_errors=True)
    return untouched


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders that this run made and left empty, the innermost first."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _check_is_directory(out: Path) -> None:
    if not out.name:
        raise MbertError(
            "M120",
            "the root of the file system is no place for an output",
            where=f"-o {out}",
            allowed="A new or empty directory, or one that the same command made.",
            fix="Choose another -o.",
        )
    if out.exists() and not out.is_dir():
        raise MbertError(
            "M114",
            "this is a file, and an output is a directory",
            where=f"-o {out}",
            allowed="A new or empty directory, or one that the same command made.",
            fix="Choose another -o.",
        )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
    return flat


def _shorten(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text if len(text) <= 24 else text[:12] + "…"
