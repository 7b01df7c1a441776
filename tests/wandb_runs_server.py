"""A server that takes runs as W&B does, as far as its client asks: recorded from `wandb-core` 0.31 against a local one.

What it is told it keeps; how it misbehaves is a switch.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

Mood = Literal["well", "hangs", "fails", "drops", "refuses", "nonsense"]
"""`nonsense`: answers what ends `wandb-core` 0.31.0 by a nil pointer (run files without their addresses)."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed: nothing to tell."""


class RunsServer:
    """On a port of 127.0.0.1, until the `with` block is left."""

    def __init__(self, mood: Mood = "well") -> None:
        self.mood: Mood = mood
        self.asked = threading.Event()
        """Set once anybody asked."""
        self.runs: list[dict[str, Any]] = []
        """The variables of each request that begins or changes a run."""
        self.used: list[str] = []
        """Ids of artifacts that a run says it used: `entity/project/name:alias` here."""
        self.lines: dict[str, list[dict[str, Any]]] = {}
        """By file of the run (`wandb-history.jsonl`): its lines."""
        self.keys: set[str] = set()
        """The `Authorization` headers."""
        self._let_go = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """For WANDB_BASE_URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go.set()
        self._server.shutdown()
        self._server.server_close()

    def history(self) -> list[dict[str, Any]]:
        """The run's figures, a dictionary a line."""
        return self.lines.get("wandb-history.jsonl", [])

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args: object) -> None:
                pass

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                server.asked.set()
                server.keys.add(self.headers.get("authorization") or "")
                if server.mood == "hangs":
                    server._let_go.wait()
                if server.mood in {"hangs", "drops"}:
                    self.close_connection = True
                    return
                if server.mood == "fails":
                    self._say(500, {"error": "no"})
                elif server.mood == "refuses":
                    self._say(401, {"errors": [{"message": "user is not logged in"}]})
                elif self.path == "/graphql":
                    self._say(200, server._answer(json.loads(body)))
                elif self.path.endswith("/file_stream"):
                    server._take_lines(json.loads(body))
                    self._say(200, {"exitcode": None, "limits": {}})
                else:
                    self._say(200, {})

            def _say(self, status: int, what: object) -> None:
                body = json.dumps(what).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self._serve()

            def do_POST(self) -> None:
                self._serve()

            def do_PUT(self) -> None:
                self._serve()

        return Handler

    def _take_lines(self, body: dict[str, Any]) -> None:
        for name, part in body.get("files", {}).items():
            self.lines.setdefault(name, []).extend(json.loads(line) for line in part["content"])

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        query, variables = question["query"], question.get("variables") or {}
        if "upsertBucket" in query:
            self.runs.append(variables)
            project = {"id": "project", "name": variables["project"], "entity": {"id": "entity", "name": "team"}}
            bucket = {
                "id": "run",
                "name": variables["name"],
                "displayName": variables.get("displayName") or "",
                "description": "",
                "config": "{}",
                "sweepName": None,
                "project": project,
                "historyLineCount": 0,
            }
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "createRunFiles" in query and self.mood != "nonsense":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}}
        if "useArtifact" in query:
            self.used.append(variables["artifactID"])
            return {"data": {"useArtifact": {"artifact": {"id": variables["artifactID"]}}}}
        if "artifactCollectionMembership" in query:
            return {"data": {"project": {"artifactCollectionMembership": _membership(variables)}}}
        if "serverInfo" in query:
            return {"data": {"serverInfo": {"features": []}}}
        if "viewer" in query:
            viewer = {
                "id": "user",
                "entity": "team",
                "username": "someone",
                "name": "Someone",
                "email": "",
                "flags": "{}",
            }
            rest: dict[str, Any] = {"admin": False, "deletedAt": None, "teams": {"edges": []}, "apiKeys": {"edges": []}}
            return {"data": {"viewer": viewer | rest}}
        return {"data": {}}


def _membership(asked: dict[str, Any]) -> dict[str, Any]:
    """An artifact by its name, as W&B describes one."""
    name, _, alias = asked["name"].partition(":")
    project = {"id": "project", "internalId": "1", "name": asked["project"], "entity": {"name": asked["entity"]}}
    collection = {"name": name, "project": project}
    artifact = {
        "__typename": "Artifact",
        "id": f"{asked['entity']}/{asked['project']}/{name}:{alias}",
        "artifactSequence": {"__typename": "ArtifactSequence", **collection},
        "versionIndex": 1,
        "artifactType": {"name": "model"},
        "description": None,
        "metadata": None,
        "ttlDurationSeconds": -2,
        "ttlIsInherited": False,
        "tags": [],
        "historyStep": None,
        "state": "COMMITTED",
        "size": 1,
        "digest": "0" * 32,
        "commitHash": "0" * 20,
        "fileCount": 1,
        "createdAt": "2026-01-31T09:30:00Z",
        "updatedAt": None,
        "aliases": [],
    }
    return {
        "__typename": "ArtifactCollectionMembership",
        "id": "membership",
        "versionIndex": 1,
        "createdAt": "2026-01-31T09:30:00Z",
        "aliases": [],
        "artifactCollection": {"__typename": "ArtifactSequence", **collection},
        "artifact": artifact,
    }
