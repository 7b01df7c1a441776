"""A model's versions in a bucket, in the layout of `layout.py`, by obstore.

A bucket has no rename. A version is there once its manifest is, which is written last; the number is taken by creating
`model.toml`, which is written first, on the condition that nobody has. Aliases are written on the condition that they
are still what was read.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from consumer.adapters.models.manifest import MANIFEST, manifest_digest, verify
from consumer.adapters.models.model_file import MODEL_FILE, gate_status
from consumer.adapters.registries.layout import (
    ALIASES_FILE,
    NEWEST,
    Aliases,
    check_alias,
    find_version,
    is_bare,
    is_number,
    listing_state,
)
from consumer.adapters.stores.object_errors import error_for
from consumer.errors import ImageNotFound, ModelNotFound, ModelsUnavailable, NotAuthorized, ReferenceRefused
from consumer.ports import BytesMoved, ModelVersion

if TYPE_CHECKING:
    from obstore.store import S3Store

_PIECE_BYTES = 1024 * 1024
_AT_ONCE = 8
_ALIAS_ATTEMPTS = 30
_NOT_MANY_BYTES = 4 * 1024 * 1024
_Found = TypeVar("_Found")


@dataclass(slots=True)
class _Objects:
    """What a listing shows of one version."""

    sizes: dict[str, int] = field(default_factory=dict)
    """By name below the version."""
    tags: dict[str, str] = field(default_factory=dict)
    """By the same; another one after each write."""
    changed_at: str = ""

    @property
    def has_manifest(self) -> bool:
        return MANIFEST in self.sizes

    @property
    def state(self) -> str:
        return listing_state((name, size, self.tags[name]) for name, size in self.sizes.items())

    @property
    def is_version(self) -> bool:
        return self.has_manifest or is_bare(name.partition("/")[0] for name in self.sizes)


class S3Registry:
    """Fulfils `ports.ModelRegistry` for `s3://bucket/prefix`.

    Args:
        open_client: the bucket's client; called for each question, connects to nothing yet.
        bucket, prefix: where `1/`, `2/`, ... lie.
        question_s: seconds that a question may take.
        transfer_s: seconds that moving a version may take.
    """

    def __init__(
        self,
        open_client: "Callable[[str], S3Store]",
        bucket: str,
        prefix: str,
        *,
        question_s: float,
        transfer_s: float,
        forget_credentials: Callable[[], None] = lambda: None,
    ) -> None:
        self._open_client = open_client
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/"
        self._where = f"s3://{bucket}/{prefix.strip('/')}"
        self._question_s = question_s
        self._transfer_s = transfer_s
        self._forget_credentials = forget_credentials

    # --- the port ---------------------------------------------------------------------------------------------------

    def versions(self) -> Sequence[ModelVersion]:
        """See `ports.ModelRegistry`."""
        return self._answer(self._versions, self._question_s)

    def resolve(self, alias: str) -> ModelVersion:
        """See `ports.ModelRegistry`. Four small requests at most."""
        return self._answer(lambda client: self._resolve(client, alias), self._question_s)

    def download(self, version: ModelVersion, into: Path, moved: BytesMoved) -> None:
        """See `ports.ModelRegistry`."""
        self._answer(lambda client: self._download(client, version, into, moved), self._transfer_s)

    def upload(self, folder: Path, *, aliases: Sequence[str], moved: BytesMoved) -> ModelVersion:
        """See `ports.ModelRegistry`. What was written of an upload that fails is taken away, as far as can be."""
        for alias in aliases:
            check_alias(alias)
        digest = verify(folder)
        paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        number = self._answer(lambda client: self._upload(client, paths, digest, moved), self._transfer_s)
        for alias in aliases:
            self.point(alias, number)
        return self.resolve(number)

    def point(self, alias: str, version: str) -> str:
        """See `ports.ModelRegistry`."""
        check_alias(alias)

        async def point(client: "S3Store") -> str:
            await self._existing(client, version)
            before, _ = await self._change_aliases(client, lambda found: found.pointed(alias, version))
            return before.stands_for(alias)

        return self._answer(point, self._question_s)

    def roll_back(self, alias: str) -> ModelVersion:
        """See `ports.ModelRegistry`."""

        check_alias(alias)

        async def roll_back(client: "S3Store") -> ModelVersion:
            before, _ = await self._aliases(client)
            await self._existing(client, before.rolled_back(alias).stands_for(alias))
            _, after = await self._change_aliases(client, lambda found: found.rolled_back(alias))
            return await self._resolve(client, after.stands_for(alias))

        return self._answer(roll_back, self._question_s)

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _listed(self, client: "S3Store", below: str = "") -> dict[str, _Objects]:
        """What lies in each folder that is named like a version."""
        import obstore

        found: dict[str, _Objects] = {}
        async for page in obstore.list(client, self._prefix + below):
            for each in page:
                number, _, name = str(each["path"]).removeprefix(self._prefix).partition("/")
                if is_number(number) and name:
                    objects = found.setdefault(number, _Objects())
                    objects.sizes[name] = each["size"]
                    objects.tags[name] = each["e_tag"] or each["last_modified"].isoformat()
                    changed = each["last_modified"].strftime("%Y-%m-%dT%H:%M:%SZ")
                    objects.changed_at = max(objects.changed_at, changed)
        return found

    async def _versions(self, client: "S3Store") -> Sequence[ModelVersion]:
        (aliases, _), listed = await asyncio.gather(self._aliases(client), self._listed(client))
        numbers = sorted((number for number, each in listed.items() if each.is_version), key=int, reverse=True)
        if not listed and not aliases.history:
            raise ModelNotFound(f"{self._where}: nothing lies there", remedy="correct the reference")
        return await _gathered([self._version(client, number, listed[number], aliases) for number in numbers])

    async def _version(self, client: "S3Store", number: str, objects: _Objects, aliases: Aliases) -> ModelVersion:
        digest, gate = "", "original"
        if objects.has_manifest:
            manifest, said = await asyncio.gather(
                self._small(client, f"{number}/{MANIFEST}"), self._small(client, f"{number}/{MODEL_FILE}")
            )
            digest = manifest_digest((manifest or b"").decode(errors="replace"))
            gate = gate_status((said or b"").decode(errors="replace"))
        return ModelVersion(
            number,
            digest=digest,
            state=objects.state,
            aliases=aliases.of(number),
            created_at=objects.changed_at,
            size_bytes=sum(objects.sizes.values()),
            gate=gate,
        )

    async def _resolve(self, client: "S3Store", alias: str) -> ModelVersion:
        import obstore

        aliases, _ = await self._aliases(client)
        if meant := aliases.stands_for(alias) or (alias if is_number(alias) else ""):
            listed = await self._listed(client, meant + "/")
        elif alias in {"", NEWEST}:
            folders = (await obstore.list_with_delimiter_async(client, self._prefix))["common_prefixes"]
            numbers = {str(path).removeprefix(self._prefix).strip("/") for path in folders}
            listed = {}
            for number in sorted(filter(is_number, numbers), key=int, reverse=True):
                listed = await self._listed(client, number + "/")
                if listed.get(number, _Objects()).is_version:
                    break
        else:
            listed = await self._listed(client)  # for the message
        numbers_there = [number for number, each in listed.items() if each.is_version]
        if meant and not numbers_there:
            raise self._no_version(alias)
        number = find_version(alias, numbers_there, aliases, self._where)
        return await self._version(client, number, listed[number], aliases)

    async def _existing(self, client: "S3Store", version: str) -> _Objects:
        listed = await self._listed(client, version + "/") if is_number(version) else {}
        if version not in listed or not listed[version].is_version:
            raise self._no_version(version)
        return listed[version]

    def _no_version(self, version: str) -> ModelNotFound:
        return ModelNotFound(f"{self._where} has no version {version!r}", remedy="ouzel model list shows them")

    async def _small(self, client: "S3Store", name: str) -> bytes | None:
        """None where there is no such object."""
        return (await self._tagged(client, name))[0]

    async def _tagged(self, client: "S3Store", name: str) -> tuple[bytes | None, str]:
        import obstore

        try:
            answer = await obstore.get_async(client, self._prefix + name)
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise
            return None, ""
        if answer.meta["size"] > _NOT_MANY_BYTES:
            raise ModelNotFound(f"{self._where}/{name}: too large to be one", remedy="look at what was put there")
        return (await answer.bytes_async()).to_bytes(), answer.meta["e_tag"] or ""

    # --- moving -----------------------------------------------------------------------------------------------------

    async def _download(self, client: "S3Store", meant: ModelVersion, into: Path, moved: BytesMoved) -> None:
        import obstore

        version = meant.version
        sizes = (await self._existing(client, version)).sizes
        done, total = 0, sum(sizes.values())
        moved(0, total)
        for name in sorted(sizes):
            if ".." in PurePosixPath(name).parts or name.startswith("/"):
                raise ModelNotFound(f"{self._where}/{version}: {name!r} leads out of it", remedy="remove the object")
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            answer = await obstore.get_async(client, f"{self._prefix}{version}/{name}")
            with target.open("wb") as file:
                async for piece in answer.stream(min_chunk_size=_PIECE_BYTES):
                    file.write(piece)
                    done += len(piece)
                    moved(done, total)
        # No manifest would say what is missing.
        if not meant.digest and (await self._existing(client, version)).state != meant.state:
            raise ModelsUnavailable(f"{self._where}/{version} is still being written: it changed while it was read")

    async def _upload(self, client: "S3Store", paths: Mapping[str, Path], digest: str, moved: BytesMoved) -> str:
        import obstore

        listed = await self._listed(client)
        for number, objects in listed.items():
            if objects.has_manifest and await self._digest_of(client, number) == digest:
                return number
        done, total = 0, sum(path.stat().st_size for path in paths.values())
        number = await self._take_number(client, listed, paths[MODEL_FILE].read_bytes())
        written = [MODEL_FILE]
        try:
            for name in [*(name for name in paths if name not in {MODEL_FILE, MANIFEST}), MANIFEST]:
                await obstore.put_async(client, f"{self._prefix}{number}/{name}", paths[name])
                written.append(name)
                done += paths[name].stat().st_size
                moved(done, total)
        except BaseException:
            await self._take_away(client, number, written)
            raise
        moved(total, total)
        return number

    async def _digest_of(self, client: "S3Store", number: str) -> str:
        return manifest_digest((await self._small(client, f"{number}/{MANIFEST}") or b"").decode(errors="replace"))

    async def _take_number(self, client: "S3Store", listed: dict[str, _Objects], model_file: bytes) -> str:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        number = 1 + max(map(int, listed), default=0)
        while True:
            try:
                await obstore.put_async(client, f"{self._prefix}{number}/{MODEL_FILE}", model_file, mode="create")
            except AlreadyExistsError:
                number += 1
            else:
                return str(number)

    async def _take_away(self, client: "S3Store", number: str, names: Sequence[str]) -> None:
        """The number last: until then nobody writes there."""
        import obstore

        with suppress(Exception):
            for name in reversed(names):
                await obstore.delete_async(client, f"{self._prefix}{number}/{name}")

    # --- aliases ----------------------------------------------------------------------------------------------------

    async def _aliases(self, client: "S3Store") -> tuple[Aliases, str]:
        """With the tag of the object that they were read from; empty where there is none."""
        text, tag = await self._tagged(client, ALIASES_FILE)
        if text is None:
            return Aliases({}), ""
        return Aliases.read(text.decode(errors="replace"), f"{self._where}/{ALIASES_FILE}"), tag

    async def _change_aliases(self, client: "S3Store", change: Callable[[Aliases], Aliases]) -> tuple[Aliases, Aliases]:
        """Before and after. Whoever else changes them at the same time loses nothing."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        for _ in range(_ALIAS_ATTEMPTS):
            before, tag = await self._aliases(client)
            after = change(before)
            if after == before:
                return before, after
            mode: Any = {"e_tag": tag} if tag else "create"
            try:
                await obstore.put_async(client, self._prefix + ALIASES_FILE, after.text().encode(), mode=mode)
            except (AlreadyExistsError, PreconditionError):
                await asyncio.sleep(random.uniform(0, 0.2))  # noqa: S311 - so that two do not meet again
            else:
                return before, after
        raise ModelsUnavailable(f"{self._where}/{ALIASES_FILE} is changed by others again and again")

    # --- asking -----------------------------------------------------------------------------------------------------

    def _answer(self, ask: "Callable[[S3Store], Coroutine[Any, Any, _Found]]", deadline_s: float) -> _Found:
        """On a loop of its own, where whatever is under way is broken off at the deadline."""

        async def bounded() -> _Found:
            async with asyncio.timeout(deadline_s):
                return await ask(self._open_client(self._bucket))

        try:
            return asyncio.run(bounded())
        except TimeoutError:
            raise ModelsUnavailable(f"{self._where}: no answer within {deadline_s:g} s") from None
        except (ModelNotFound, ModelsUnavailable, NotAuthorized):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk here
            found = error_for(error, self._where, bucket_is_named=False)
            if found.credentials_refused:
                self._forget_credentials()
            # The client's text repeats the store's answer, which can carry key ids and what was signed: not chained.
            if found.denied or found.credentials_refused:
                raise NotAuthorized(str(found.error), remedy=_RIGHTS) from None
            if isinstance(found.error, ImageNotFound | ReferenceRefused):
                raise ModelNotFound(str(found.error), remedy="correct the bucket or the prefix") from None
            raise ModelsUnavailable(str(found.error)) from None


async def _gathered(asked: "Sequence[Awaitable[_Found]]") -> list[_Found]:
    """All answers, in order; a few at once."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(each: "Awaitable[_Found]") -> _Found:
        async with room:
            return await each

    return list(await asyncio.gather(*map(one, asked)))


_RIGHTS = (
    "give these credentials ([stores.s3]) s3:GetObject and s3:ListBucket; to register and promote, s3:PutObject and"
    " s3:DeleteObject too"
)
