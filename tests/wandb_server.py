"""A W&B server on loopback: what W&B's public API answers for artifacts, aliases and registries, and what it takes of a
run, so that the real client, unpatched, can be run against it, well or badly.

The queries are those that wandb 0.31 sends (its `sdk/artifacts/_generated/operations.py`, and wandb-core's own), the
answers
have the shape that the client's typed models ask for. An operation that is not known here is answered with an error
that names it, as GraphQL servers do: a new client that asks something else fails the tests and does not pass by luck.

    with WandbServer() as server:
        server.handlers["SomeOperation"] = lambda variables: {"data": ...}
        server.fault = "hang"
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import quote, unquote

API_KEY = "0123456789abcdef" * 2 + "01234567"
"""Forty characters, as W&B's are; of nobody."""
ENTITY, PROJECT, ORGANIZATION, ORG_ENTITY = "birders", "models", "Birders Ltd", "birders-ltd"

Handler = Callable[[Mapping[str, Any]], Any]
"""From an operation's variables to its `data`. May raise `Refused`."""
Fault = Literal["none", "hang", "error-500", "refuse-key", "hang-files", "cut-files", "wrong-files", "hang-uploads"]
"""Every request is never answered, answered 500, or 401; files alone are never answered, end too soon, or are others;
uploads of files are never answered."""

_OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")


class Refused(Exception):
    """GraphQL's `errors`."""


@dataclass(slots=True)
class Version:
    """One artifact."""

    id: str
    type: str
    digest: str
    index: int
    """In the collection that it was logged to."""
    metadata: str | None = None
    state: str = "PENDING"
    manifest: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.files.values()))


@dataclass(slots=True)
class Collection:
    """Versions under one name: where artifacts are logged (a sequence), or linked to (a portfolio, in a registry)."""

    entity: str
    project: str
    name: str
    portfolio: bool = False
    members: list[Version] = field(default_factory=list)
    aliases: dict[str, int] = field(default_factory=dict)

    def find(self, alias: str) -> int | None:
        """The index of the member that an alias or `vN` names; committed ones alone."""
        number = self.aliases.get(alias)
        if number is None and re.fullmatch(r"v\d+", alias):
            number = int(alias[1:])
        if number is None or number >= len(self.members) or self.members[number].state != "COMMITTED":
            return None
        return number


class WandbServer:
    """Listens on 127.0.0.1. Use as a context manager."""

    def __init__(self) -> None:
        self.fault: Fault = "none"
        self.asked: list[str] = []
        """Names of the operations so far, and methods and paths of other requests."""
        self.defects: list[str] = []
        """What this server did not understand. Empty, or a test is wrong."""
        self.keys: set[str] = set()
        """API keys that were shown."""
        self.collections: dict[tuple[str, str, str], Collection] = {}
        self.artifacts: dict[str, Version] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.handlers: dict[str, Handler] = {
            "Viewer": self._viewer,
            "GetDefaultEntity": self._viewer,
            "ServerFeaturesQuery": lambda _: {"serverInfo": {"features": _FEATURES}},
            "FetchOrgInfoFromEntity": self._organization,
            "FetchOrgEntityFromEntity": self._organization,
            "OrganizationCoreWeaveOrganizationID": lambda _: {
                "entity": {"organization": {"coreWeaveOrganizationId": None}}
            },
            "XXHashDigestsEnabled": lambda _: {"entity": {"xxhashDigestsEnabled": False}},
            "ArtifactMembershipByName": self._membership_by_name,
            "ArtifactType": self._artifact_type,
            "ArtifactByID": lambda asked: {"artifact": self._artifact(self.artifacts[asked["id"]])},
            "ProjectArtifacts": self._project_artifacts,
            "ArtifactCreatedBy": lambda _: {"artifact": {"createdBy": None}},
            "FetchArtifactManifest": self._manifest,
            "ArtifactManifest": self._manifest,
            "GetArtifactMembershipFileUrls": self._file_urls,
            "AddAliases": self._add_aliases,
            "DeleteAliases": self._delete_aliases,
            "UpdateArtifact": self._update_artifact,
            "LinkArtifact": self._link,
            "IsProjectReadOnly": lambda _: {"project": {"readOnly": False}},
            "CreateArtifact": self._create_artifact,
            "CreateArtifactManifest": self._create_manifest,
            "UpdateArtifactManifest": self._update_manifest,
            "CreateArtifactFiles": self._create_files,
            "CommitArtifact": self._commit,
            "ClientIDMapping": self._client_id,
            "UseArtifact": lambda asked: {"useArtifact": {"artifact": {"id": asked["input"]["artifactID"]}}},
            "RunResumeStatus": lambda _: {"model": None},
            "UpsertBucket": self._upsert_run,
            "CreateRunFiles": self._run_files,
            "RunState": lambda _: {"project": {"run": {"id": "R", "state": "running"}}},
        }
        self._clients: dict[str, str] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._http = _Http(("127.0.0.1", 0), _Request)
        self._http.owner = self
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)

    def add(self, name: str, files: Mapping[str, bytes], *, metadata: Mapping[str, Any] | None = None) -> Version:
        """A version that others logged to ENTITY/PROJECT/name; `latest` and all."""
        collection = self._collection(ENTITY, PROJECT, name)
        made = self._new_version("model", _md5(repr(sorted(files.items())).encode()).hex(), collection)
        made.files = dict(files)
        made.metadata = json.dumps(dict(metadata or {}))
        contents = {
            path: {"digest": base64.b64encode(_md5(body)).decode(), "size": len(body)} for path, body in files.items()
        }
        made.manifest = json.dumps(
            {
                "version": 1,
                "storagePolicy": "wandb-storage-policy-v1",
                "storagePolicyConfig": {"storageLayout": "V2"},
                "contents": contents,
            }
        ).encode()
        made.state = "COMMITTED"
        collection.aliases["latest"] = made.index
        return made

    # --- who asks ---------------------------------------------------------------------------------------------------

    def _viewer(self, _asked: Mapping[str, Any]) -> Any:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        who = {"id": "VXNlcjox", "entity": ENTITY, "username": "birder", "email": "", "flags": "{}", "teams": teams}
        return {"viewer": who}

    def _organization(self, _asked: Mapping[str, Any]) -> Any:
        return {
            "entity": {"organization": {"name": ORGANIZATION, "orgEntity": {"name": ORG_ENTITY}}, "user": None},
        }

    # --- reading ----------------------------------------------------------------------------------------------------

    def _collection(self, entity: str, project: str, name: str, *, portfolio: bool = False) -> Collection:
        key = entity, project, name
        return self.collections.setdefault(key, Collection(entity, project, name, portfolio))

    def _project_info(self, collection: Collection) -> Any:
        project = collection.project
        return {"id": f"P-{project}", "internalId": f"I-{project}", "name": project, "entity": _name(collection.entity)}

    def _collection_info(self, collection: Collection) -> Any:
        kind = "ArtifactPortfolio" if collection.portfolio else "ArtifactSequence"
        return {"__typename": kind, "name": collection.name, "project": self._project_info(collection)}

    def _artifact(self, version: Version) -> Any:
        home = next(each for each in self.collections.values() if not each.portfolio and version in each.members)
        aliases = [
            _alias(alias) | {"artifactCollection": self._collection_info(collection)}
            for collection in self.collections.values()
            for alias, index in collection.aliases.items()
            if collection.members[index] is version
        ]
        return {
            "__typename": "Artifact",
            "id": version.id,
            "artifactSequence": self._collection_info(home),
            "versionIndex": version.index,
            "artifactType": _name(version.type),
            "description": None,
            "metadata": version.metadata,
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": version.state,
            "size": version.size,
            "digest": version.digest,
            "commitHash": None,
            "fileCount": len(version.files),
            "createdAt": _CREATED_AT,
            "updatedAt": None,
            "aliases": aliases,
        }

    def _membership(self, collection: Collection, index: int) -> Any:
        return {
            "__typename": "ArtifactCollectionMembership",
            "id": f"M-{collection.name}-{index}",
            "versionIndex": index,
            "createdAt": _CREATED_AT,
            "aliases": [_alias(alias) for alias, at in collection.aliases.items() if at == index],
            "artifactCollection": self._collection_info(collection),
            "artifact": self._artifact(collection.members[index]),
        }

    def _membership_by_name(self, asked: Mapping[str, Any]) -> Any:
        if not any(key[:2] == (asked["entity"], asked["project"]) for key in self.collections):
            return {"project": None}
        name, _, alias = asked["name"].partition(":")
        collection = self.collections.get((asked["entity"], asked["project"], name))
        index = collection.find(alias or "latest") if collection else None
        found = None if collection is None or index is None else self._membership(collection, index)
        return {"project": {"artifactCollectionMembership": found}}

    def _artifact_type(self, asked: Mapping[str, Any]) -> Any:
        membership = self._membership_by_name(asked)["project"]
        found = membership and membership["artifactCollectionMembership"]
        return {"project": membership and {"artifact": found and {"artifactType": found["artifact"]["artifactType"]}}}

    def _project_artifacts(self, asked: Mapping[str, Any]) -> Any:
        collection = self.collections.get((asked["entity"], asked["project"], asked["collection"]))
        if collection is None:
            return {"project": {"artifactType": {"artifactCollection": None}}}
        found = [
            {"version": f"v{index}", "node": self._artifact(version)}
            for index, version in reversed(list(enumerate(collection.members)))
            if version.state == "COMMITTED" and version.type == asked["type"]
        ]
        listed = {"totalCount": len(found), "pageInfo": _ONE_PAGE, "edges": found}
        kind = self._collection_info(collection)["__typename"]
        return {"project": {"artifactType": {"artifactCollection": {"__typename": kind, "artifacts": listed}}}}

    def _manifest(self, asked: Mapping[str, Any]) -> Any:
        found = asked.get("id") or asked["artifact_id"]
        return {"artifact": {"currentManifest": {"file": {"directUrl": f"{self.url}/manifests/{found}"}}}}

    def _file_urls(self, asked: Mapping[str, Any]) -> Any:
        collection = self.collections[asked["entity"], asked["project"], asked["collection"]]
        index = collection.find(asked["alias"])
        assert index is not None
        version = collection.members[index]
        nodes = [
            {"__typename": "File", "name": path, "directUrl": f"{self.url}/files/{version.id}/{quote(path)}"}
            for path in version.files
        ]
        files = {"pageInfo": _ONE_PAGE, "edges": [{"node": node} for node in nodes]}
        kind = self._collection_info(collection)["__typename"]
        return {"project": {"artifactCollection": {"__typename": kind, "artifactMembership": {"files": files}}}}

    # --- changing ---------------------------------------------------------------------------------------------------

    def _add_aliases(self, asked: Mapping[str, Any]) -> Any:
        version = self.artifacts[asked["input"]["artifactID"]]
        for each in asked["input"]["aliases"]:
            collection = self.collections[each["entityName"], each["projectName"], each["artifactCollectionName"]]
            collection.aliases[each["alias"]] = _index(collection, version)
        return {"result": {"success": True}}

    def _delete_aliases(self, asked: Mapping[str, Any]) -> Any:
        version = self.artifacts[asked["input"]["artifactID"]]
        for each in asked["input"]["aliases"]:
            collection = self.collections[each["entityName"], each["projectName"], each["artifactCollectionName"]]
            if collection.aliases.get(each["alias"]) == _index(collection, version):
                del collection.aliases[each["alias"]]
        return {"result": {"success": True}}

    def _update_artifact(self, asked: Mapping[str, Any]) -> Any:
        version = self.artifacts[asked["input"]["artifactID"]]
        version.metadata = asked["input"]["metadata"]
        return {"result": {"artifact": self._artifact(version)}}

    def _link(self, asked: Mapping[str, Any]) -> Any:
        said = asked["input"]
        version = self.artifacts[said["artifactID"]]
        collection = self._collection(
            said["entityName"], said["projectName"], said["artifactPortfolioName"], portfolio=True
        )
        if version not in collection.members:
            collection.members.append(version)
        index = _index(collection, version)
        for alias in ["latest", *(each["alias"] for each in said["aliases"] or [])]:
            collection.aliases[alias] = index
        return {"result": {"versionIndex": index, "artifactMembership": self._membership(collection, index)}}

    # --- logging ----------------------------------------------------------------------------------------------------

    def _new_version(self, kind: str, digest: str, collection: Collection) -> Version:
        made = Version(f"QXJ0aWZhY3Q6{len(self.artifacts) + 1}", kind, digest, len(collection.members))
        self.artifacts[made.id] = made
        collection.members.append(made)
        return made

    def _create_artifact(self, asked: Mapping[str, Any]) -> Any:
        said = asked["input"]
        name = said["artifactCollectionName"]
        collection = self._collection(said["entityName"], said["projectName"], name)
        # The same contents are no new version.
        found = next((each for each in collection.members if each.digest == said["digest"]), None)
        if found is None:
            found = self._new_version(said["artifactTypeName"], said["digest"], collection)
            found.metadata = said.get("metadata")
        for each in [{"alias": "latest"}, *(said.get("aliases") or [])]:
            collection.aliases[each["alias"]] = found.index
        self._clients[said["clientID"]] = found.id
        latest = {"latestArtifact": {"id": found.id} if found.state == "COMMITTED" else None}
        return {"createArtifact": {"artifact": {"id": found.id, "state": found.state, "artifactSequence": latest}}}

    def _create_manifest(self, asked: Mapping[str, Any]) -> Any:
        return {"createArtifactManifest": {"artifactManifest": self._manifest_file(asked["artifactID"])}}

    def _update_manifest(self, asked: Mapping[str, Any]) -> Any:
        artifact = asked["artifactManifestID"].removeprefix("manifest-")
        return {"updateArtifactManifest": {"artifactManifest": self._manifest_file(artifact)}}

    def _manifest_file(self, artifact: str) -> Any:
        file = {"id": f"F-{artifact}", "uploadUrl": f"{self.url}/manifests/{artifact}", "uploadHeaders": []}
        return {"id": f"manifest-{artifact}", "file": file}

    def _create_files(self, asked: Mapping[str, Any]) -> Any:
        nodes: list[Any] = [
            {
                "storagePath": f"wandb_artifacts/{each['artifactID']}/{each['name']}",
                "uploadUrl": f"{self.url}/files/{each['artifactID']}/{quote(each['name'])}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": each["artifactID"]},
            }
            for each in asked["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _commit(self, asked: Mapping[str, Any]) -> Any:
        version = self.artifacts[asked["artifactID"]]
        assert version.manifest, "committed before its manifest is there"
        version.state = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": version.id, "digest": version.digest}}}

    def _client_id(self, asked: Mapping[str, Any]) -> Any:
        return {"clientIDMapping": {"serverID": self._clients[asked["clientID"]]}}

    # --- runs -------------------------------------------------------------------------------------------------------

    def _upsert_run(self, asked: Mapping[str, Any]) -> Any:
        name = asked.get("name") or asked.get("id") or "run"
        inserted = name not in self.runs
        run = self.runs.setdefault(name, {})
        run.update({key: value for key, value in asked.items() if value is not None})
        project = {
            "id": "P-1",
            "name": run.get("project", PROJECT),
            "entity": {"id": "E-1", "name": run.get("entity", ENTITY)},
        }
        bucket = {
            "id": f"R-{name}",
            "name": name,
            "displayName": name,
            "description": None,
            "config": run.get("config", "{}"),
            "sweepName": None,
            "project": project,
            "historyLineCount": 0,
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _run_files(self, asked: Mapping[str, Any]) -> Any:
        files = [{"name": name, "uploadUrl": f"{self.url}/run-files/{quote(name)}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": f"R-{asked['run']}", "uploadHeaders": [], "files": files}}

    # --- HTTP -------------------------------------------------------------------------------------------------------

    def graphql(self, body: Mapping[str, Any]) -> Any:
        """The answer to one GraphQL request."""
        found = _OPERATION.search(body["query"])
        name = found[1] if found else ""
        with self._lock:
            self.asked.append(name)
            handler = self.handlers.get(name)
            if handler is None:
                self.defects.append(f"no such operation: {name}")
                return {"data": None, "errors": [{"message": f"the server of the tests knows no {name!r}"}]}
            try:
                return {"data": handler(body.get("variables") or {})}
            except Refused as error:
                return {"data": None, "errors": [{"message": str(error)}]}
            except Exception as error:  # the client's words are not ours: a test sees it
                self.defects.append(f"{name}: {error!r}")
                return {"data": None, "errors": [{"message": f"{name}: {error!r}"}]}

    def wait(self) -> None:
        """Until the server closes: what hangs."""
        self._closing.wait()


_CREATED_AT = "2026-11-27T09:30:00Z"
_ONE_PAGE = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
_FEATURES = [
    {"name": name, "isEnabled": True}
    for name in ("PROJECT_ARTIFACT_COLLECTION_MEMBERSHIP", "ARTIFACT_MEMBERSHIP_IN_LINK_ARTIFACT_RESPONSE")
]


def _md5(body: bytes) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


def _name(name: str) -> Any:
    return {"name": name}


def _alias(alias: str) -> dict[str, Any]:
    return {"__typename": "ArtifactAlias", "id": f"A-{alias}", "alias": alias}


def _index(collection: Collection, version: Version) -> int:
    return next(index for index, each in enumerate(collection.members) if each is version)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    owner: WandbServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed in the midst is what some tests are about."""


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def log_message(self, *_: object) -> None:
        """Silence."""

    def do_POST(self) -> None:
        body = self._begin()
        if body is None:
            return
        if self.path == "/graphql":
            self._answer(json.dumps(self.server.owner.graphql(json.loads(body))).encode())
        else:  # run files' stream, telemetry
            self._answer(b"{}")

    def do_PUT(self) -> None:
        body = self._begin()
        if body is None:
            return
        kind, _, rest = self.path.lstrip("/").partition("/")
        artifact, _, path = rest.partition("/")
        owner = self.server.owner
        if kind == "files":
            if owner.fault == "hang-uploads":
                owner.wait()
            owner.artifacts[artifact].files[unquote(path)] = body
        elif kind == "manifests":
            owner.artifacts[artifact].manifest = body
        self._answer(b"")

    def do_GET(self) -> None:
        if self._begin() is None:
            return
        kind, _, rest = self.path.lstrip("/").partition("/")
        artifact, _, path = rest.partition("/")
        owner = self.server.owner
        if kind == "manifests":
            self._answer(owner.artifacts[artifact].manifest)
        elif kind == "files":
            self._file(owner.artifacts[artifact].files[unquote(path)])
        else:
            self._answer(b"", 404)

    def _file(self, body: bytes) -> None:
        fault = self.server.owner.fault
        if fault == "hang-files":
            self.server.owner.wait()
        elif fault == "cut-files":
            self._answer(body[: len(body) // 2], claimed=len(body))
            self.close_connection = True
        else:
            self._answer(bytes(len(body)) if fault == "wrong-files" else body)

    def _begin(self) -> bytes | None:
        """The request's body; None where a fault has answered, or never will."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        owner = self.server.owner
        if self.path != "/graphql":
            owner.asked.append(f"{self.command} {self.path}")
        scheme, _, shown = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            owner.keys.add(base64.b64decode(shown).decode().partition(":")[2])
        if owner.fault == "hang":
            owner.wait()
            return None
        if owner.fault == "error-500":
            self._answer(b'{"error": "internal"}', 500)
            return None
        if owner.fault == "refuse-key":
            self._answer(b'{"errors": [{"message": "user is not logged in"}]}', 401)
            return None
        return body

    def _answer(self, body: bytes, status: int = 200, *, claimed: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if claimed is None else claimed))
        self.end_headers()
        self.wfile.write(body)
