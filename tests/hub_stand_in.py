"""A stand-in for the Hugging Face Hub on a loopback port: real libraries load models and datasets from it.

    pytest_plugins = ["hub_stand_in"]                    # in a test module: brings the fixture

    def test_it(hub):                                    # which starts one and stops it
        hub.add_model("tiny/teacher", directory)
        hub.add_dataset("nyu-mll/glue", tiny_glue_hub(["sst2"]))
        subprocess.run([...], env=hub.env())             # a child, for HF_ENDPOINT is read at import
        assert hub.downloads() == ["tiny/teacher/config.json", ...]

It answers what huggingface_hub, transformers and datasets ask when they load: repository info, trees, path infos,
files with ranges, and the errors for what is not there, in the Hub's own form. It takes new repositories, branches and commits
of small files from who has the token TOKEN. It writes down every request. A child
of `env()` cannot reach any other host; `outside()` lists those it tried.

PYTEST_DONT_REWRITE: there is no assert here, and a test module imports this file before pytest takes it as a plugin.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TESTS = Path(__file__).resolve().parent
NAME = r"(?P<id>[^/]+(?:/[^/]+)??)"
FILE = re.compile(rf"/(?P<kind>datasets/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
API = re.compile(
    rf"/api/(?P<kind>models|datasets)/{NAME}"
    r"(?:/(?P<what>revision|tree|paths-info|refs|preupload|commit|branch)(?:/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?)?"
)
WRITING = re.compile(r"/api/(?P<what>repos/create|validate-yaml|models/.+/(?:preupload|commit|branch)/[^/]+)")
OWNER, TOKEN = "tester", "hf_of_the_stand_in"  # whose token writes, and what is made without an owner
DROPPED = re.compile(r"(HF|HUGGING_?FACE|HUGGINGFACE_HUB|TRANSFORMERS|DATASETS|MBERT)_.*|.*_proxy", re.IGNORECASE)


@dataclass
class Repository:
    """The files of every commit by their path; `main` is the newest commit."""

    kind: str  # models or datasets
    id: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    main: str = ""
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Makes `files` the content of a branch; returns the commit's hash, which follows from kind, id and content."""
        digest = hashlib.sha1(f"{self.kind} {self.id}".encode())
        for path in sorted(files):
            digest.update(path.encode() + b"\0" + blob_id(files[path]).encode())
        oid = digest.hexdigest()
        self.commits[oid] = dict(files)
        if branch == "main":
            self.main = oid
        else:
            self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch name or hash stands for."""
        return self.main if revision == "main" else self.branches.get(revision, revision if revision in self.commits else None)


@dataclass(frozen=True)
class Request:
    """One request and the status of its answer. `file` is `id/path` for a file of a repository, "" for the API."""

    method: str
    path: str
    status: int
    file: str = ""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    file: str = ""


class HubStandIn:
    """A Hub with the repositories that were added, its address, and the list of requests it got."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.requests: list[Request] = []
        self.broken = 0  # the status of every answer, where it is not 0
        self.repositories: dict[tuple[str, str], Repository] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops answering: from now on the Hub cannot be reached."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add_model(self, id: str, source: Path | Mapping[str, bytes]) -> str:
        """Serves a directory, or {path: bytes}, as the model `id`; returns the commit. Again = a new commit."""
        return self._add("models", id, source)

    def add_dataset(self, id: str, source: Path | Mapping[str, bytes]) -> str:
        """Serves {path: bytes}, or a directory, as the dataset `id`; returns the commit. Again = a new commit."""
        return self._add("datasets", id, source)

    def env(self, home: Path | None = None, **extra: str) -> dict[str, str]:
        """The environment of a child that knows this Hub alone; `home` is its HF_HOME, empty at first.

        Without HF_HUB_OFFLINE, tokens, proxies and MBERT_ settings of the process that runs the tests.
        """
        kept = {name: value for name, value in os.environ.items() if not DROPPED.fullmatch(name)}
        paths = [str(TESTS / "loopback_only"), str(TESTS.parent), *filter(None, [kept.get("PYTHONPATH")])]
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home or self.home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "LOOPBACK_ONLY_LOG": str(self.home / "outside.log"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(paths),
            "TOKENIZERS_PARALLELISM": "false",
        } | extra  # fmt: skip

    def downloads(self) -> list[str]:
        """The files that were fetched so far, as `id/path`, sorted; repeated as often as they were."""
        return sorted(r.file for r in self.requests if r.file and r.method == "GET" and r.status in (200, 206))

    def outside(self) -> list[str]:
        """The other hosts that children tried to reach, in vain."""
        log = self.home / "outside.log"
        return log.read_text(encoding="utf-8").split() if log.exists() else []

    def answer(self, method: str, url: str, body: bytes, authorization: str = "") -> Answer:
        """What the Hub says to one request; what writes needs the token TOKEN."""
        if self.broken:
            return Answer(self.broken)
        parts = urlsplit(url)
        if method == "POST" and (writing := WRITING.fullmatch(parts.path)):
            if authorization != f"Bearer {TOKEN}":
                return _error(401, "Unauthorized", "Invalid username or password.")
            return self._write(writing, parts.path, body)
        if match := API.fullmatch(parts.path):
            return self._answer_api(match, parse_qs(parts.query), body)
        if match := FILE.fullmatch(parts.path):
            return self._answer_file(match)
        return Answer(404)

    def _add(self, kind: str, id: str, source: Path | Mapping[str, bytes]) -> str:
        if isinstance(source, Path):
            source = {p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*") if p.is_file()}
        return self.repositories.setdefault((kind, id), Repository(kind, id)).commit(source)

    def _write(self, asked: re.Match[str], path: str, body: bytes) -> Answer:
        """Makes a repository or a branch, says how files are to be sent, or takes a commit whose files are in the body."""
        if asked["what"] == "validate-yaml":
            return _json({"errors": [], "warnings": []})
        if asked["what"] == "repos/create":
            return self._create(json.loads(body))
        match = API.fullmatch(path)
        assert match is not None, path
        repository = self.repositories.get((match["kind"], match["id"]))
        if repository is None:
            return _error(404, "RepoNotFound", "Repository not found")
        branch = unquote(match["revision"] or "main")
        if match["what"] == "branch":
            if branch in repository.branches:
                return _error(409, "Conflict", "Reference already exists")
            repository.branches[branch] = repository.main
            return _json({})
        if repository.resolve(branch) is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        if match["what"] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            return _json({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        return self._commit(repository, branch, [json.loads(line) for line in body.splitlines() if line])

    def _create(self, wish: dict[str, Any]) -> Answer:
        id = f"{wish.get('organization') or OWNER}/{wish['name']}"
        address = {"url": f"{self.endpoint}/{id}", "name": id, "id": id}
        if ("models", id) in self.repositories:
            return Answer(409, json.dumps(address).encode(), {"Content-Type": "application/json"})
        repository = Repository("models", id, private=wish.get("visibility") == "private" or bool(wish.get("private")))
        repository.commit({".gitattributes": b""})
        self.repositories["models", id] = repository
        return _json(address)

    def _commit(self, repository: Repository, branch: str, lines: list[dict[str, Any]]) -> Answer:
        files = dict(repository.commits[repository.resolve(branch) or ""])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                return _error(400, "BadRequest", f"no such operation here: {line['key']}")
        oid = repository.commit(files, branch)
        url = f"{self.endpoint}/{repository.id}/commit/{oid}"
        return _json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _find(self, kind: str, match: re.Match[str]) -> tuple[Repository, str] | Answer:
        """The repository and commit asked for, or the answer that there is none: 401, to one who is not logged in."""
        repository = self.repositories.get((kind, match["id"]))
        if repository is None:
            return _error(401, "RepoNotFound", "Repository not found")
        revision = unquote(match["revision"] or "main")
        commit = repository.resolve(revision)
        return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}") if commit is None else (repository, commit)

    def _answer_file(self, match: re.Match[str]) -> Answer:
        result = self._find("datasets" if match["kind"] else "models", match)
        if isinstance(result, Answer):
            return result
        repository, commit = result
        path = unquote(match["path"])
        if path not in repository.commits[commit]:
            return _error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        body = repository.commits[commit][path]
        headers = {"ETag": f'"{blob_id(body)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        return Answer(200, body, headers, file=f"{repository.id}/{path}")

    def _answer_api(self, match: re.Match[str], query: dict[str, list[str]], body: bytes) -> Answer:
        result = self._find(match["kind"], match)
        if isinstance(result, Answer):
            return result
        repository, commit = result
        files, path = repository.commits[commit], unquote(match["path"] or "")
        if match["what"] == "tree":
            entries = tree(files, path, query.get("recursive", ["False"])[0].lower() == "true")
            return _json(entries) if entries or not path else _error(404, "EntryNotFound", f"{path} does not exist")
        if match["what"] == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            return _json([entry for entry in tree(files, "", True) if entry["path"] in wanted])
        if match["what"] == "refs":
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}
            return _json({"branches": [branch], "tags": [], "converts": []})
        return _json(_info(repository, commit))


def tree(files: Mapping[str, bytes], path: str, recursive: bool) -> list[dict[str, Any]]:
    """The entries below a folder, files and folders, as the Hub lists them."""
    start = f"{path}/" if path else ""
    inside = sorted(name for name in files if name.startswith(start))
    parents = {str(parent) for name in inside for parent in Path(name).parents}
    folders = sorted(parent for parent in parents if parent != "." and parent.startswith(start))
    entries = [{"type": "directory", "oid": blob_id(name.encode()), "size": 0, "path": name} for name in folders]
    entries += [{"type": "file", "oid": blob_id(files[n]), "size": len(files[n]), "path": n} for n in inside]
    return [entry for entry in entries if recursive or "/" not in entry["path"][len(start) :]]


def blob_id(content: bytes) -> str:
    """git's name for a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _info(repository: Repository, commit: str) -> dict[str, Any]:
    siblings = [{"rfilename": path} for path in sorted(repository.commits[commit])]
    plain = {"private": repository.private, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
    return {"_id": commit[:24], "id": repository.id, "sha": commit, "siblings": siblings, **plain}


def _json(content: Any) -> Answer:
    return Answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})


def _error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps({"error": message}).encode(), {
        "Content-Type": "application/json", "X-Error-Code": code, "X-Error-Message": message, **(headers or {}),
    })  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: header and body apart would wait for each other's acknowledgement

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = body or self._chunks()
        answer = self.hub.answer(self.command, self.path, body, self.headers.get("Authorization", ""))
        if answer.file:
            answer = _ranged(answer, self.headers.get("Range"))
        self.hub.requests.append(Request(self.command, self.path, answer.status, answer.file))
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_POST = do_GET

    def _chunks(self) -> bytes:
        """Returns a body that comes in chunks, as a commit's does."""
        parts = []
        while self.headers.get("Transfer-Encoding") == "chunked" and (size := int(self.rfile.readline(), 16)):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        if parts:
            self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *args: Any) -> None:
        """Says nothing: the requests are in `hub.requests`."""


def _ranged(answer: Answer, wanted: str | None) -> Answer:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
    if not match:
        return answer
    size, start = len(answer.body), int(match[1])
    if start >= size:
        return Answer(416, b"", {"Content-Range": f"bytes */{size}"}, answer.file)
    body = answer.body[start : int(match[2]) + 1 if match[2] else size]
    headers = {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{size}"}
    return Answer(206, body, {**answer.headers, **headers}, answer.file)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubStandIn]:
    """An empty stand-in for the Hub, with an empty HF_HOME for its children."""
    home = tmp_path / "hf_home"
    home.mkdir()
    stand_in = HubStandIn(home)
    yield stand_in
    stand_in.close()
