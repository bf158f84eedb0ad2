"""A tiny stand-in for the Hugging Face Hub on this machine, for the requests that push and fetch folders."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest


class FakeHub(ThreadingHTTPServer):
    """Repositories in memory: ``branches["org/name"]["main"]`` is a commit, ``commits[commit]`` its files."""

    daemon_threads = True

    def __init__(self, handler: type[Handler] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str, branch: str, files: dict[str, bytes]) -> str:
        """Put a state of a repository on a branch."""
        text = json.dumps([len(self.commits), sorted(files)])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = files
        self.branches.setdefault(repo, {})[branch] = sha
        return sha

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch."""
        return self.commits[self.branches[repo][branch]]


class Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, body: object, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def parts(self) -> list[str]:
        self.server.requests.append(f"{self.command} {urlsplit(self.path).path}")
        self.server.tokens.add(self.headers.get("Authorization"))
        return urlsplit(self.path).path.strip("/").split("/")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match self.parts():
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
                new = repo not in self.server.branches
                if new:
                    self.server.commit(repo, "main", {})
                self.answer({"url": f"{self.server.endpoint}/{repo}", "id": repo}, 200 if new else 409)
            case ["api", "validate-yaml"]:
                self.answer({"errors": [], "warnings": []})
            case ["api", "models", org, name, "branch", branch]:
                branches = self.server.branches[f"{org}/{name}"]
                branches.setdefault(branch, branches["main"])
                self.answer({})
            case ["api", "models", org, name, "preupload", _]:
                files = [each["path"] for each in json.loads(body)["files"]]
                modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
                self.answer({"files": modes})
            case ["api", "models", org, name, "commit", branch]:
                repo = f"{org}/{name}"
                files = dict(self.server.files(repo, branch))
                for line in body.splitlines():
                    each = json.loads(line)
                    if each["key"] == "file":
                        files[each["value"]["path"]] = base64.b64decode(each["value"]["content"])
                sha = self.server.commit(repo, branch, files)
                url = f"{self.server.endpoint}/{repo}/commit/{sha}"
                self.answer({"commitUrl": url, "commitOid": sha, "success": True})
            case _:
                self.answer({"error": "unknown"}, 404)

    def do_GET(self) -> None:
        match self.parts():
            case ["api", "models", org, name, *rest]:
                sha = self.sha(f"{org}/{name}", rest[-1] if rest else "main")
                if sha is None:
                    return
                files = self.server.commits[sha]
                if rest[:1] == ["tree"]:
                    listed = [(path, hashlib.sha1(data).hexdigest(), len(data)) for path, data in files.items()]
                    self.answer([{"type": "file", "path": p, "oid": oid, "size": size} for p, oid, size in listed])
                else:
                    self.answer({"id": f"{org}/{name}", "sha": sha, "siblings": [{"rfilename": p} for p in files]})
            case [org, name, "resolve", revision, *path]:
                sha = self.sha(f"{org}/{name}", revision)
                data = self.server.commits[sha].get("/".join(path)) if sha is not None else None
                if sha is None:
                    return
                if data is None:
                    self.answer({"error": "no such file"}, 404, X_Error_Code="EntryNotFound")
                else:
                    etag = f'"{hashlib.sha1(data).hexdigest()}"'
                    self.answer(data, ETag=etag, X_Repo_Commit=sha)
            case _:
                self.answer({"error": "unknown"}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def sha(self, repo: str, revision: str) -> str | None:
        branches = self.server.branches.get(repo)
        if branches is None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return None
        sha = revision if revision in self.server.commits else branches.get(revision)
        if sha is None:
            self.answer({"error": "Revision not found"}, 404, X_Error_Code="RevisionNotFound")
        return sha


@contextlib.contextmanager
def fake_hub(folder: Path, handler: type[Handler] | None = None) -> Iterator[FakeHub]:
    """Let huggingface_hub of this process ask a fake Hub, with an empty cache in the folder."""
    constants = huggingface_hub.constants
    with FakeHub(handler) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.endpoint)  # of functions such as file_exists
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub_cache"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN", "hf_of_the_test")
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
