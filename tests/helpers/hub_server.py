"""A Hugging Face Hub for tests: one file, standard library only, real HTTP on 127.0.0.1.

The unmodified `huggingface_hub` client talks to it, with its endpoint set to `hub.url` and `HF_HUB_DISABLE_XET=1`:

    with HubServer(tmp_path, tokens={"hf_alice": "alice"}) as hub:
        HfApi(endpoint=hub.url, token="hf_alice").create_repo("alice/model")

Blobs lie under `root`, all else in memory. `fail`, `cut` and `slow` inject faults; `requests` says what was asked.
A repo belongs to the user whose name is its namespace, and nobody else writes to it.
There are no pull requests, organisations, pages of results or Xet; an endpoint that is missing answers 501.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import socketserver
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

LFS_MIN_BYTES = 10 * 1024**2
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".npy", ".npz", ".pkl", ".parquet", ".arrow", ".h5")
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
LIST_PARAMETERS = {"filter", "author", "search", "pipeline_tag", "limit", "full", "cardData"}
PLURALS = {"model": "models", "dataset": "datasets", "space": "spaces"}
TAG_PREFIXES = {"library_name": "", "pipeline_tag": "", "tags": "", "language": "", "license": "license:"}
TAG_PREFIXES |= {"datasets": "dataset:", "base_model": "base_model:"}

Card = dict[str, Any]


class HubError(Exception):
    """An answer that is a refusal; `code` is the `X-Error-Code` from which the client picks its exception."""

    def __init__(self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] = {}) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": ascii(message)[1:-1], **({"X-Error-Code": code} if code else {}), **headers}


@dataclass(frozen=True)
class File:
    """An entry of a snapshot: `oid` is git's (of the pointer, where the content is in LFS)."""

    size: int
    sha256: str
    oid: str
    pointer_size: int | None = None

    @property
    def etag(self) -> str:
        return self.oid if self.pointer_size is None else self.sha256

    def describe(self) -> dict[str, Any]:
        """Size and hashes under the names of the tree (`oid`) and of the siblings (`blobId`, `sha256`)."""
        lfs = {"oid": self.sha256, "sha256": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        entry = {"size": self.size, "oid": self.oid, "blobId": self.oid}
        return entry if self.pointer_size is None else {**entry, "lfs": lfs}


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    message: str
    date: str
    files: dict[str, File]
    parent: Commit | None


@dataclass
class Repo:
    kind: str
    id: str
    private: bool = False
    gated: str | bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def commit_at(self, revision: str) -> Commit:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return self.commits[oid]

    def add_commit(self, branch: str, files: dict[str, File], *, title: str, message: str = "") -> Commit:
        parent = self.commits[self.branches[branch]] if branch in self.branches else None
        content = [(path, file.oid) for path, file in sorted(files.items())]
        oid = sha1(repr((self.kind, self.id, parent and parent.oid, title, content)).encode())
        commit = Commit(oid, title, message, now(), files, parent)
        self.commits[oid], self.branches[branch] = commit, oid
        return commit


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    args: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")


@dataclass(frozen=True)
class Response:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """What `fail`, `cut` or `slow` asked for, and how often it is still to happen."""

    kind: str
    method: str
    path_substring: str
    times: int
    response: Response = Response()
    after_bytes: int = 0
    seconds: float = 0.0

    def fits(self, request: Request, body: bytes) -> bool:
        long_enough = self.kind != "cut" or (request.method != "HEAD" and len(body) > self.after_bytes)
        return long_enough and self.method in ("*", request.method) and self.path_substring in request.path


class Recorded(NamedTuple):
    method: str
    path: str
    status: int


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_oid(content: bytes) -> str:
    return sha1(b"blob %d\0" % len(content) + content)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def goes_to_lfs(path: str, size: int) -> bool:
    return size > 0 and (size >= LFS_MIN_BYTES or path.endswith(LFS_SUFFIXES))


def regular_file(content: bytes) -> File:
    return File(len(content), sha256(content), git_oid(content))


def lfs_file(digest: str, size: int) -> File:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n".encode()
    return File(size, digest, git_oid(pointer), len(pointer))


def json_response(content: Any, status: int = 200) -> Response:
    return Response(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


def is_private(body: dict[str, Any]) -> bool:
    return body.get("visibility") == "private" or body.get("private") is True


def checked_path(path: str) -> str:
    parts = path.split("/")
    if "\\" in path or any(part in ("", ".", "..", ".git") for part in parts):
        raise HubError(400, f"Invalid path in commit: {path!r}; a relative path without '.' or '..' is expected")
    return path


def byte_range(header: str, size: int) -> tuple[int, int]:
    """First byte and end (exclusive) of a `Range` header."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    first, last = match.groups() if match else ("", "")
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    else:
        start, stop = max(size - int(last or 0), 0), size
    if start >= stop:
        message = f"Range {header!r} of {size} bytes is not one part of the form bytes=first-last"
        raise HubError(416, message, headers={"Content-Range": f"bytes */{size}"})
    return start, stop


def scalar(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def front_matter(readme: str) -> Card:
    """The top-level strings and lists of strings of a card's YAML; whatever is nested deeper is left out."""
    block = re.match(r"---\r?\n(.*?)\r?\n---", readme, re.DOTALL)
    card: Card = {}
    key = ""
    for line in block.group(1).splitlines() if block else []:
        pair, item = re.fullmatch(r"([\w.-]+):(?:\s+(.*))?", line), re.fullmatch(r"\s*-\s+(.*)", line)
        values = card.get(key)
        if pair:
            key, value = pair[1], (pair[2] or "").strip()
            flow = re.fullmatch(r"\[(.*)\]", value)
            card[key] = [scalar(part) for part in flow[1].split(",") if part.strip()] if flow else scalar(value) or []
        elif item and isinstance(values, list) and not re.match(r"[\w-]+:(\s|$)", item[1]):
            values.append(scalar(item[1]))
        elif line.strip() and not line.startswith("#"):
            card.pop(key, None)
    return {name: value for name, value in card.items() if value}


def card_tags(card: Card) -> list[str]:
    """The tags which the Hub derives from a card, and by which it finds the repo."""
    values = {key: [card[key]] if isinstance(card[key], str) else card[key] for key in TAG_PREFIXES if key in card}
    return list(dict.fromkeys(TAG_PREFIXES[key] + value for key, found in values.items() for value in found))


def entries(files: dict[str, File]) -> dict[str, dict[str, Any]]:
    """Files and the folders above them, by path."""
    found = {path: {"type": "file", "path": path, **file.describe()} for path, file in files.items()}
    for path in files:
        parts = path.split("/")
        for folder in filter(None, ("/".join(parts[:depth]) for depth in range(1, len(parts)))):
            inside = sorted((name, file.oid) for name, file in files.items() if name.startswith(f"{folder}/"))
            found[folder] = {"type": "directory", "path": folder, "oid": sha1(repr(inside).encode()), "size": 0}
    return dict(sorted(found.items()))


class HubServer:
    """The server and its state; `tokens` maps a token to the name of the user (and namespace) that it belongs to."""

    def __init__(self, root: Path, tokens: dict[str, str]) -> None:
        self.tokens = dict(tokens)
        self.requests: list[Recorded] = []
        self.faults: list[Fault] = []
        self.repos: dict[tuple[str, str], Repo] = {}
        self.announced: set[str] = set()
        self.errors: list[str] = []
        self.stopping = threading.Event()
        self._lock = threading.RLock()
        self._blobs = Path(root) / "blobs"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="hub_server")
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.close_connections()
        self._server.server_close()
        self._thread.join()
        if self.errors and error is None:
            raise RuntimeError(f"{len(self.errors)} request(s) hit a bug in hub_server:\n" + "\n".join(self.errors))

    def fail(
        self, method: str, path_substring: str, *, status: int, times: int = 1, headers: Mapping[str, str] = {}
    ) -> None:
        """Answer the next requests whose method ("*" for any) and path fit with `status`, and do nothing else."""
        plain = json_response({"error": f"injected fault {status}"}, status)
        response = replace(plain, headers={**plain.headers, **headers})
        self.faults.append(Fault("fail", method, path_substring, times, response=response))

    def cut(self, path_substring: str, after_bytes: int, times: int = 1) -> None:
        """Close the connection after that many bytes of the next fitting bodies that are longer than that."""
        self.faults.append(Fault("cut", "*", path_substring, times, after_bytes=after_bytes))

    def slow(self, path_substring: str, seconds: float, times: int = 1) -> None:
        """Wait before the next fitting answers."""
        self.faults.append(Fault("slow", "*", path_substring, times, seconds=seconds))

    def put_files(self, repo_id: str, files: dict[str, bytes], repo_type: str = "model") -> str:
        """Commit files to main, whatever their names, creating the repo if need be; return the commit's id."""
        with self._lock:
            repo = self.repos.get((PLURALS[repo_type], repo_id)) or self.create(PLURALS[repo_type], repo_id)
            stored = {path: self._file(path, content) for path, content in files.items()}
            snapshot = {**repo.commit_at("main").files, **stored}
            return repo.add_commit("main", snapshot, title="put_files").oid

    def grant(self, repo_id: str, user: str, repo_type: str = "model") -> None:
        """Let a user read a gated repo."""
        self.repos[PLURALS[repo_type], repo_id].granted.add(user)

    def create(self, kind: str, repo_id: str, *, private: bool = False) -> Repo:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo_id):
            raise HubError(400, f"Invalid repo id {repo_id!r}: 'namespace/name' or 'name' is expected")
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private)
        files = {".gitattributes": self._file(".gitattributes", GIT_ATTRIBUTES)}
        repo.add_commit("main", files, title="initial commit")
        return repo

    def page(self, kind: str, repo_id: str) -> str:
        return f"{self.url}/{'' if kind == 'models' else f'{kind}/'}{repo_id}"

    def user(self, request: Request) -> str | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.tokens.get(token)

    def readable(self, request: Request) -> Repo:
        """The repo that a request names; a private one does not exist for those who may not see it."""
        user, repo = self.user(request), self.repos.get((request.args["kind"], request.args["repo_id"]))
        if repo is None or (repo.private and user != repo.owner):
            message = "Repository not found" if user else "Invalid username or password."
            raise HubError(404 if user else 401, message, code="RepoNotFound")
        return repo

    def check_gate(self, repo: Repo, request: Request) -> None:
        user = self.user(request)
        if repo.gated and user != repo.owner and user not in repo.granted:
            message = f"Access to {repo.id} is restricted and you are not in the authorized list"
            raise HubError(403 if user else 401, message, code="GatedRepo")

    def writable(self, request: Request) -> Repo:
        user = self.user(request)
        if user is None:
            raise HubError(401, f"A token is needed to write to {request.args['repo_id']}", code="RepoNotFound")
        repo = self.readable(request)
        if user != repo.owner:
            raise HubError(403, f"{user} may not write to {repo.id}: it belongs to {repo.owner}")
        return repo

    def card(self, commit: Commit) -> Card:
        readme = commit.files.get("README.md")
        return front_matter(self.read(readme.sha256).decode(errors="replace")) if readme else {}

    def size(self, digest: str) -> int | None:
        known = re.fullmatch("[0-9a-f]{64}", digest) and (self._blobs / digest).exists()
        return (self._blobs / digest).stat().st_size if known else None

    def read(self, digest: str) -> bytes:
        return (self._blobs / digest).read_bytes()

    def store(self, content: bytes) -> str:
        digest = sha256(content)
        (self._blobs / digest).write_bytes(content)
        return digest

    def _file(self, path: str, content: bytes) -> File:
        digest = self.store(content)
        return lfs_file(digest, len(content)) if goes_to_lfs(path, len(content)) else regular_file(content)

    def forget_contents(self) -> None:
        """Forget what was uploaded, so that it has to be uploaded again."""
        for blob in self._blobs.iterdir():
            blob.unlink()

    def take(self, kind: str, request: Request, body: bytes = b"") -> Fault | None:
        """The first fault of that kind that fits, used up once."""
        with self._lock:
            fault = next((f for f in self.faults if f.kind == kind and f.fits(request, body)), None)
            if fault:
                fault.times -= 1
                if fault.times == 0:
                    self.faults.remove(fault)
            return fault

    def answer(self, request: Request) -> Response:
        if slow := self.take("slow", request):
            self.stopping.wait(slow.seconds)
        if fail := self.take("fail", request):
            return fail.response
        try:
            if "transfer-encoding" in request.headers:
                raise HubError(411, "hub_server reads bodies of a given Content-Length only")
            with self._lock:
                return dispatch(self, request)
        except HubError as error:
            plain = json_response({"error": str(error)}, error.status)
            return replace(plain, headers={**plain.headers, **error.headers})
        except Exception:
            self.errors.append(f"{request.method} {request.path}\n{traceback.format_exc()}")
            return json_response({"error": self.errors[-1]}, 501)


Endpoint = Callable[[HubServer, Request], Response]
_ENDPOINTS: list[tuple[str, re.Pattern[str], Endpoint]] = []
_KIND = "(?P<kind>models|datasets|spaces)"
_REPO_ID = "(?P<repo_id>[^/]+(?:/[^/]+)?)"
_API = f"/api/{_KIND}/{_REPO_ID}"
_PAGE = f"/(?:(?P<kind>datasets|spaces)/)?{_REPO_ID}"


def endpoint(method: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
    def register(function: Endpoint) -> Endpoint:
        _ENDPOINTS.append((method, re.compile(pattern), function))
        return function

    return register


def dispatch(hub: HubServer, request: Request) -> Response:
    method = "GET" if request.method == "HEAD" else request.method
    for wanted, pattern, function in _ENDPOINTS:
        match = pattern.fullmatch(urlsplit(request.path).path)
        if wanted == method and match:
            args = {name: unquote(value) for name, value in match.groupdict(default="").items()}
            if "kind" in args:
                args["kind"] = args["kind"] or "models"
            return function(hub, replace(request, args=args))
    raise HubError(501, f"hub_server has no endpoint {request.method} {request.path}")


@endpoint("GET", "/api/whoami-v2")
def whoami(hub: HubServer, request: Request) -> Response:
    user = hub.user(request)
    if user is None:
        raise HubError(401, "Invalid username or password.")
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
    return json_response({"type": "user", "id": sha1(user.encode())[:24], "name": user, "orgs": [], "auth": token})


def named_repo(hub: HubServer, request: Request) -> tuple[str, str]:
    """Kind and id of the repo that the body of `repos/create` or `repos/delete` names, if the user may do so."""
    user, body = hub.user(request), request.json()
    if user is None:
        raise HubError(401, "A token is needed to create or delete a repo")
    owner = body.get("organization") or user
    if owner != user:
        raise HubError(403, f"You don't have the rights to create or delete a repo under the namespace {owner!r}")
    return PLURALS[body.get("type") or "model"], f"{owner}/{body['name']}"


@endpoint("POST", "/api/repos/create")
def create_repo(hub: HubServer, request: Request) -> Response:
    kind, repo_id = named_repo(hub, request)
    answer = {"url": hub.page(kind, repo_id), "name": repo_id}
    if (kind, repo_id) in hub.repos:
        return json_response({**answer, "error": f"You already created this repo: {repo_id}"}, 409)
    hub.create(kind, repo_id, private=is_private(request.json()))
    return json_response(answer)


@endpoint("DELETE", "/api/repos/delete")
def delete_repo(hub: HubServer, request: Request) -> Response:
    if hub.repos.pop(named_repo(hub, request), None) is None:
        raise HubError(404, "Repository not found", code="RepoNotFound")
    return Response()


@endpoint("POST", "/api/validate-yaml")
def validate_yaml(hub: HubServer, request: Request) -> Response:
    empty = not front_matter(request.json()["content"])
    warnings = [{"message": "empty or missing yaml metadata in repo card"}] if empty else []
    return json_response({"errors": [], "warnings": warnings})


def repo_info(hub: HubServer, repo: Repo, commit: Commit) -> dict[str, Any]:
    card = hub.card(commit)
    return {
        "id": repo.id,
        "author": repo.owner,
        "sha": commit.oid,
        "createdAt": next(iter(repo.commits.values())).date,
        "lastModified": commit.date,
        "private": repo.private,
        "gated": repo.gated,
        "tags": card_tags(card),
        "cardData": card,
        **{key: card[key] for key in ("library_name", "pipeline_tag") if key in card},
    }


@endpoint("GET", f"/api/{_KIND}")
def list_repos(hub: HubServer, request: Request) -> Response:
    if unknown := set(request.query) - LIST_PARAMETERS:
        raise HubError(501, f"hub_server cannot list by {sorted(unknown)}, only by {sorted(LIST_PARAMETERS)}")
    user, found = hub.user(request), []
    author, search = (request.query.get(name, [""])[0] for name in ("author", "search"))
    wanted = {*request.query.get("filter", []), *request.query.get("pipeline_tag", [])}
    for (kind, repo_id), repo in sorted(hub.repos.items()):
        visible = kind == request.args["kind"] and (not repo.private or user == repo.owner)
        if visible and author in ("", repo.owner) and search.lower() in repo_id.lower():
            content = repo_info(hub, repo, repo.commit_at("main"))
            found += [content] if wanted <= set(content["tags"]) else []
    return json_response(found[: int(request.query.get("limit", [str(len(found))])[0])])


@endpoint("GET", f"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
def tree(hub: HubServer, request: Request) -> Response:
    found, folder = entries(hub.readable(request).commit_at(request.args["revision"]).files), request.args["folder"]
    if folder and found.get(folder, {}).get("type") != "directory":
        raise HubError(404, f"{folder} does not exist on {request.args['revision']}", code="EntryNotFound")
    below = {path: entry for path, entry in found.items() if not folder or path.startswith(f"{folder}/")}
    here = [entry for path, entry in below.items() if request.flag("recursive") or path.rpartition("/")[0] == folder]
    return json_response(here)


@endpoint("POST", f"{_API}/paths-info/(?P<revision>[^/]+)")
def paths_info(hub: HubServer, request: Request) -> Response:
    found = entries(hub.readable(request).commit_at(request.args["revision"]).files)
    paths = parse_qs(request.body.decode()).get("paths", [])
    return json_response([found[path.rstrip("/")] for path in paths if path.rstrip("/") in found])


@endpoint("GET", f"{_API}/refs")
def refs(hub: HubServer, request: Request) -> Response:
    repo = hub.readable(request)
    named = {"heads": repo.branches, "tags": repo.tags}
    branches, tags = (
        [{"name": name, "ref": f"refs/{space}/{name}", "targetCommit": oid} for name, oid in where.items()]
        for space, where in named.items()
    )
    return json_response({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


@endpoint("GET", f"{_API}(?:/revision/(?P<revision>[^/]+))?")
def info(hub: HubServer, request: Request) -> Response:
    repo = hub.readable(request)
    commit = repo.commit_at(request.args["revision"] or "main")
    blobs, files = request.flag("blobs"), sorted(commit.files.items())
    siblings = [{"rfilename": path, **(file.describe() if blobs else {})} for path, file in files]
    return json_response({**repo_info(hub, repo, commit), "siblings": siblings})


@endpoint("GET", f"{_API}/commits/(?P<revision>[^/]+)")
def commits(hub: HubServer, request: Request) -> Response:
    repo, history = hub.readable(request), []
    commit: Commit | None = repo.commit_at(request.args["revision"])
    while commit:
        entry = {"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.date}
        history.append({**entry, "authors": [{"user": repo.owner}]})
        commit = commit.parent
    return json_response(history)


@endpoint("POST", f"{_API}/branch/(?P<name>[^/]+)")
def create_branch(hub: HubServer, request: Request) -> Response:
    repo, name = hub.writable(request), request.args["name"]
    if name in repo.branches:
        raise HubError(409, f"Reference already exists: refs/heads/{name}")
    repo.branches[name] = repo.commit_at(request.json().get("startingPoint", "main")).oid
    return Response()


@endpoint("POST", f"{_API}/tag/(?P<revision>[^/]+)")
def create_tag(hub: HubServer, request: Request) -> Response:
    repo, name = hub.writable(request), request.json()["tag"]
    if name in repo.tags:
        raise HubError(409, f"Tag reference exists already: refs/tags/{name}")
    repo.tags[name] = repo.commit_at(request.args["revision"]).oid
    return Response()


@endpoint("DELETE", f"{_API}/(?P<space>branch|tag)/(?P<name>[^/]+)")
def delete_ref(hub: HubServer, request: Request) -> Response:
    repo, name, space = hub.writable(request), request.args["name"], request.args["space"]
    if (space, name) == ("branch", "main"):
        raise HubError(403, "The branch main cannot be deleted")
    if (repo.branches if space == "branch" else repo.tags).pop(name, None) is None:
        raise HubError(404, f"There is no {space} {name!r}", code="RevisionNotFound")
    return Response()


@endpoint("PUT", f"{_API}/settings")
def settings(hub: HubServer, request: Request) -> Response:
    repo, body = hub.writable(request), request.json()
    repo.gated = body.get("gated", repo.gated)
    if "visibility" in body or "private" in body:
        repo.private = is_private(body)
    return json_response({"private": repo.private, "gated": repo.gated})


@endpoint("POST", f"{_API}/preupload/(?P<revision>[^/]+)")
def preupload(hub: HubServer, request: Request) -> Response:
    present = hub.writable(request).commit_at(request.args["revision"]).files

    def mode(path: str, size: int) -> dict[str, Any]:
        oid = present[path].etag if path in present else None
        upload_mode = "lfs" if goes_to_lfs(path, size) else "regular"
        return {"path": path, "uploadMode": upload_mode, "shouldIgnore": False, "oid": oid}

    return json_response({"files": [mode(file["path"], file["size"]) for file in request.json()["files"]]})


@endpoint("POST", f"{_PAGE}.git/info/lfs/objects/batch")
def lfs_batch(hub: HubServer, request: Request) -> Response:
    hub.writable(request)
    objects = []
    for wanted in request.json()["objects"]:
        href = f"{hub.url}/lfs/{wanted['oid']}"
        actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        objects.append({**wanted, "actions": actions} if hub.size(wanted["oid"]) is None else wanted)
        hub.announced.add(wanted["oid"])
    return json_response({"transfer": "basic", "objects": objects})


@endpoint("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
def lfs_put(hub: HubServer, request: Request) -> Response:
    oid, came = request.args["oid"], sha256(request.body)
    if oid not in hub.announced:
        raise HubError(403, f"No batch request announced the object {oid}")
    if came != oid:
        raise HubError(400, f"Content of sha256 {oid} was announced, content of sha256 {came} came")
    hub.store(request.body)
    return Response()


@endpoint("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify")
def lfs_verify(hub: HubServer, request: Request) -> Response:
    check_lfs_object(hub, request.args["oid"], request.json()["size"])
    return Response()


def check_lfs_object(hub: HubServer, oid: str, size: int | None) -> int:
    """The size of an uploaded object; a copy within the Hub names no size of its own."""
    stored = hub.size(oid)
    if stored is None:
        raise HubError(400, f"The LFS object {oid} was never uploaded")
    if size not in (None, stored):
        raise HubError(400, f"The LFS object {oid} has {stored} bytes, not {size}")
    return stored


def apply_operation(hub: HubServer, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    """Change a snapshot by one line of a commit."""
    path = checked_path(value["path"].removesuffix("/") if key == "deletedFolder" else value["path"])
    if key == "file":
        content = base64.b64decode(value["content"], validate=True)
        hub.store(content)
        files[path] = regular_file(content)
    elif key == "lfsFile":
        files[path] = lfs_file(value["oid"], check_lfs_object(hub, value["oid"], value.get("size")))
    elif key in ("deletedFile", "deletedFolder"):
        gone = [name for name in files if (name == path if key == "deletedFile" else name.startswith(f"{path}/"))]
        if not gone:
            raise HubError(404, f"A file with this name doesn't exist: {path}", code="EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise HubError(400, f"Unknown operation {key!r}: file, lfsFile, deletedFile or deletedFolder is expected")


@endpoint("POST", f"{_API}/commit/(?P<branch>[^/]+)")
def push_commit(hub: HubServer, request: Request) -> Response:
    repo, branch = hub.writable(request), request.args["branch"]
    if request.flag("create_pr"):
        raise HubError(403, "hub_server has no pull requests: commit to a branch")
    if branch not in repo.branches:
        raise HubError(404, f"There is no branch {branch!r}", code="RevisionNotFound")
    head = repo.commit_at(branch)
    try:
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        if not lines or lines[0]["key"] != "header":
            raise HubError(400, "The first line of a commit must be its header")
        header = lines[0]["value"]
        if header.get("parentCommit", head.oid) != head.oid:
            raise HubError(412, f"{branch} is at {head.oid}, not at {header['parentCommit']}: refresh and try again")
        files = dict(head.files)
        for line in lines[1:]:
            apply_operation(hub, files, line["key"], line["value"])
        title, message = header["summary"], header.get("description", "")
    except (KeyError, ValueError) as error:
        raise HubError(400, f"Malformed commit: {error!r}") from error
    oid = repo.add_commit(branch, files, title=title, message=message).oid
    page = hub.page(repo.kind, repo.id)
    return json_response({"success": True, "commitOid": oid, "commitUrl": f"{page}/commit/{oid}"})


@endpoint("GET", f"{_PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(hub: HubServer, request: Request) -> Response:
    repo = hub.readable(request)
    hub.check_gate(repo, request)
    at, path = repo.commit_at(request.args["revision"]), request.args["path"]
    if path not in at.files:
        raise HubError(404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": at.oid})
    file = at.files[path]
    headers = {"X-Repo-Commit": at.oid, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    if file.pointer_size is not None:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    content = hub.read(file.sha256)
    if "range" not in request.headers:
        return Response(200, content, headers)
    start, stop = byte_range(request.headers["range"], file.size)
    return Response(206, content[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{file.size}"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def serve(self) -> None:
        hub = self.server.hub
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, parse_qs(urlsplit(self.path).query), headers, body)
        response = hub.answer(request)
        cut = hub.take("cut", request, response.body)
        hub.requests.append(Recorded(request.method, request.path, response.status))
        self.send_response(response.status)
        for name, value in {**response.headers, "Content-Length": str(len(response.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body[: cut.after_bytes] if cut else response.body)
        self.close_connection |= cut is not None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(socketserver.ThreadingTCPServer):
    request_queue_size = 64
    allow_reuse_address = True

    def __init__(self, hub: HubServer) -> None:
        self.hub = hub
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """End the kept-alive connections, or a client's pool would go on talking to a hub that has stopped."""
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            self.hub.errors.append(traceback.format_exc())
