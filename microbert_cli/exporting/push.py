"""Sends a finished output to a repository of the Hugging Face Hub: what answers, and its card, in one commit.

What tells of the work stays here: manifest, logs, recipe, metrics and pages, which name folders of this machine. Whoever
downloads the repository has a plain Hugging Face directory.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microbert_cli.errors import MbertError, first_line
from microbert_cli.hub import ask_hub, hub_advice, hub_errors, is_offline
from microbert_cli.models.exported.files import NAMES
from microbert_cli.runs import manifest

STAYS = re.compile(r"(.*/)?(manifest\.json|metrics\.json|recipe\.resolved\.toml|report\.html|report\.md|[^/]+\.jsonl)")
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
MAIN = "main"


@dataclass(frozen=True)
class Pushed:
    """What a repository got: its full name, the commit and its address, whether it is private, and names that are gone."""

    repository: str
    commit: str
    url: str
    private: bool
    removed: Sequence[str] = ()


def files_to_push(directory: Path) -> dict[str, Path]:
    """Returns the files of a finished output that are sent, by their names in the repository.

    Raises M207 (no directory), M210 (no finished output), M301, M306 (not what was made), M235 (no model in it).
    """
    if not directory.is_dir():
        raise _no_directory(directory)
    output = manifest.output_of(directory)
    if output is None:
        raise manifest.unfinished_output(directory)
    manifest.read_verified(output)
    inside = directory.resolve().relative_to(output.resolve()).as_posix()
    prefix = "" if inside == "." else f"{inside}/"
    names = [name for name in manifest.read(output)["outputs"] if name.startswith(prefix) and not STAYS.fullmatch(name)]
    files = {name.removeprefix(prefix): output / name for name in names}
    if "config.json" not in files:
        raise _no_model(directory)
    return files


def check_repository(repository: str) -> None:
    """Raises M175 for what is no name of a repository."""
    if REPOSITORY.fullmatch(repository) and not re.search(r"\.\.|--", repository) and not repository.endswith((".git", "/")):
        return
    raise MbertError(
        "M175",
        f'"{repository}" is no name of a repository',
        where="REPO",
        allowed="OWNER/NAME, or NAME in the account whose token is used: letters, digits, and . _ - within.",
        fix="mbert push DIR OWNER/NAME",
    )


def push(files: dict[str, Path], repository: str, *, message: str, public: bool = False, revision: str | None = None) -> Pushed:
    """Makes the repository where there is none, private unless `public`, and sends the files in one commit.

    revision  a branch, which is made where there is none; main by default
    Files of an export that the repository has, and this one lacks, are removed: a client would take them for its own.
    Raises M236 (no token), M237 (the repository is public, and nobody said so), M238 (the Hub did not take it).
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if is_offline():
        raise _refused(repository, LookupError("the network is forbidden"))
    if get_token() is None:
        raise _no_token(repository)
    api, branch = HfApi(), revision or MAIN
    try:
        try:
            ask_hub(repository, "model")  # with a time limit, which what follows has not
        except RepositoryNotFoundError:
            pass
        name = api.create_repo(repository, private=not public, exist_ok=True).repo_id
        info = api.repo_info(name)
        if not public and info.private is False:
            raise _is_public(name)
        if branch != MAIN:
            api.create_branch(name, branch=branch, exist_ok=True)
        removed = [other for other in api.list_repo_files(name, revision=branch) if other in NAMES and other not in files]
        operations: list[Any] = [CommitOperationAdd(each, path) for each, path in files.items()]
        operations += [CommitOperationDelete(each) for each in removed]
        commit = api.create_commit(name, operations, commit_message=message, revision=branch)
    except hub_errors() as error:
        raise _refused(repository, error) from error
    return Pushed(name, commit.oid, commit.commit_url, bool(info.private), removed)


def _no_directory(directory: Path) -> MbertError:
    return MbertError(
        "M207",
        "there is no such directory",
        where=f"DIR {directory}",
        allowed="An export, or another output of a stage with a model in it.",
        fix="Make one: mbert export MODEL -o DIR",
    )


def _no_model(directory: Path) -> MbertError:
    return MbertError(
        "M235",
        "there is no model in this output",
        where=f"DIR {directory}",
        allowed="An export, or what finetune, task-distill and the other stages that make a model wrote.",
        fix="Export a model, and name the export: mbert export MODEL -o DIR",
    )


def _no_token(repository: str) -> MbertError:
    return MbertError(
        "M236",
        "there is no token of the Hugging Face Hub here",
        where=f"REPO {repository}",
        allowed="A token that may write: in HF_TOKEN, or as hf auth login stores it.",
        fix="Log in with: hf auth login; or see what would be sent: --dry-run",
    )


def _is_public(repository: str) -> MbertError:
    return MbertError(
        "M237",
        "this repository is public, and nothing was sent: whoever looks would have it",
        where=f"REPO {repository}",
        allowed="A private repository, or a public one where that is said.",
        fix=f"Say it: mbert push DIR {shlex.quote(repository)} --public",
    )


def _refused(repository: str, error: BaseException) -> MbertError:
    return MbertError(
        "M238",
        f"the Hub did not take this: {first_line(error)}",
        where=f"REPO {repository}",
        allowed="A repository that the token may write to, and a connection to the Hub.",
        fix=hub_advice(error),
    )
