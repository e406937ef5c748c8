"""Floor 3. Copies the files of a shard's snapshot from one node to another, and goes on after a broken connection.

    directory/
      head.part            what the source said it would send: by it a later call knows what is there already
      shard-0007.db        whole: its digest was right, it was made durable, then it got its name
      x-day-20657.db.part  as far as it came
      manifest.json        last of all: everything is there

The source says what it sends before it sends it, and each file is held against its digest before it gets its name. The
order of the files decides where to go on: the first one without its name, from the end of its part. A digest that is
wrong after that is met by fetching the file once more from its beginning, since an interrupted machine may have kept
a part with a hole.

Reading, writing and hashing happen in threads of the loop's executor: a disk that is busy must not stop the beats.

Must never import: another room of the cluster but `peer_port`.
"""

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final, ParamSpec, Protocol, TypeVar

from google.protobuf.message import DecodeError

from tickwheel.internal.v1 import peer_service_pb2 as pb
from tickwheel.server.cluster.peer_port import (
    MANIFEST,
    SnapshotFile,
    SnapshotFiles,
    Verify,
)
from tickwheel.server.errors import FailedPrecondition, ResourceExhausted, Unavailable
from tickwheel.server.files import sync_directory

P = ParamSpec("P")
T = TypeVar("T")

CHUNK_BYTES: Final = 512 << 10
FILES_MAX: Final = 10_000
MANIFEST_BYTES_MAX: Final = 1 << 20
SERVED_MAX: Final = 4
"""Snapshots sent at the same time: more would only make each slower."""

FAILURES_MAX: Final = 6
"""So many attempts in a row that brought nothing end a fetch."""

HEAD: Final = "head.part"
PART: Final = ".part"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SHA256_BYTES: Final = 32

OpenSnapshot = Callable[[int], Awaitable[SnapshotFiles]]
Write = Callable[[bytes], Awaitable[None]]


class Run(Protocol):
    """Carries out what waits for a disk; `asyncio.to_thread` where there are threads."""

    async def __call__(self, work: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T:
        """Return what the work returns, or raise what it raises."""
        ...


# --- sending ---------------------------------------------------------------------------------


class Throttle:
    """Lets at most so many bytes a second through, for all who share it. 0: as many as come."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0

    async def take(self, size: int) -> None:
        """Wait for the turn of these bytes."""
        if not self._bytes_per_s:
            return
        now_s = asyncio.get_running_loop().time()
        begin_s = max(now_s, self._free_s)
        self._free_s = begin_s + size / self._bytes_per_s
        if begin_s > now_s:
            await asyncio.sleep(begin_s - now_s)


class SnapshotSource:
    """Serves snapshots of this node."""

    def __init__(self, open_snapshot: OpenSnapshot, bytes_per_s: int = 0) -> None:
        self._open = open_snapshot
        self._throttle = Throttle(bytes_per_s)
        self._served = 0

    async def serve(self, request: pb.SnapshotRequest, write: Write) -> None:
        """Send the head, then the chunks. Raises what `open_snapshot` raises, ResourceExhausted, Unavailable."""
        if self._served >= SERVED_MAX:
            raise ResourceExhausted(
                f"{SERVED_MAX} snapshots are being sent",
                reason="SNAPSHOTS_MAX",
                retry_after_ms=1_000,
            )
        self._served += 1
        try:
            files = await self._open(request.shard)
            try:
                await self._send(files, request, write)
            except OSError as error:
                why = f"a file of the snapshot can't be read: {error}"
                raise Unavailable(why, reason="SNAPSHOT_UNREADABLE") from error
            finally:
                files.close()
        finally:
            self._served -= 1

    async def _send(self, files: SnapshotFiles, request: pb.SnapshotRequest, write: Write) -> None:
        head = make_head(files)
        if request.manifest_sha256 == digest_of(files.manifest):
            head.file, head.offset = request.file, request.offset
        await write(pb.SnapshotResponse(head=head).SerializeToString())
        offset = head.offset
        for number in range(head.file, len(files.files)):
            while offset < files.files[number].bytes:
                size = min(CHUNK_BYTES, files.files[number].bytes - offset)
                await self._throttle.take(size)
                data = await files.read(number, offset, size)
                assert len(data) == size, "a file of a snapshot is shorter than it says"
                chunk = pb.SnapshotChunk(file=number, offset=offset, data=data)
                await write(pb.SnapshotResponse(chunk=chunk).SerializeToString())
                offset += size
            offset = 0


def make_head(files: SnapshotFiles) -> pb.SnapshotHead:
    """What a snapshot consists of, from its beginning."""
    return pb.SnapshotHead(
        manifest=files.manifest,
        files=[
            pb.SnapshotFile(name=f.name, bytes=f.bytes, sha256=bytes.fromhex(f.sha256))
            for f in files.files
        ],
    )


def digest_of(manifest: bytes) -> bytes:
    """By which both sides know that they speak of the same snapshot."""
    return hashlib.sha256(manifest).digest()


# --- receiving -------------------------------------------------------------------------------


async def fetch(
    download: "Download", attempt: Callable[[], Awaitable[bytes]], pause_s: Callable[[int], float]
) -> bytes:
    """Attempt again, with pauses, as long as attempts bring something. Raises Unavailable when they do not."""
    failures, before_bytes = 0, 0
    while True:
        try:
            return await attempt()
        except (Unavailable, ResourceExhausted, ConnectionError) as error:
            failures = 1 if download.received_bytes > before_bytes else failures + 1
            before_bytes = download.received_bytes
            if failures >= FAILURES_MAX:
                why = f"the snapshot does not come: {error}"
                raise Unavailable(why, reason="SNAPSHOT_NOT_FETCHED") from error
        await asyncio.sleep(pause_s(failures))


class Download:
    """A directory that a snapshot is fetched into. One at a time a directory; after an error, begin a new one."""

    def __init__(
        self, directory: Path, verify: Verify | None = None, run: Run = asyncio.to_thread
    ) -> None:
        self._directory = directory
        self._verify = verify
        self._run = run
        self._head: pb.SnapshotHead | None = None
        self._there = (0, 0)
        self._doubtful: set[str] = set()
        self.received_bytes = 0

    async def where(self) -> tuple[bytes, int, int]:
        """Where to go on: digest of the manifest, number of the file, offset in it; nothing there: b"", 0, 0."""
        await self._run(self._load)
        if self._head is None:
            self._there = (0, 0)
            return b"", 0, 0
        self._there = await self._run(self._reached, self._head)
        return digest_of(self._head.manifest), *self._there

    async def take(self, responses: AsyncIterator[bytes]) -> bytes:
        """Write what comes until everything is there; returns the manifest. Raises FailedPrecondition, OSError."""
        head = await self._begin(responses)
        number, offset = head.file, head.offset
        number = await self._finish_whole(head, number, offset)
        if number != head.file:
            offset = 0
        async for data in responses:
            chunk = _response(data).chunk
            if number >= len(head.files) or (chunk.file, chunk.offset) != (number, offset):
                raise _damaged("a piece came that does not belong there")
            offset += len(chunk.data)
            if not chunk.data or offset > head.files[number].bytes:
                raise _damaged("a file is longer than was said")
            await self._run(self._append, head.files[number].name, chunk.offset, chunk.data)
            self.received_bytes += len(chunk.data)
            after = await self._finish_whole(head, number, offset)
            if after != number:
                number, offset = after, 0
        if number < len(head.files):
            raise ConnectionError("the peer ended before everything was sent")
        await self._run(self._complete, head)
        return head.manifest

    async def _begin(self, responses: AsyncIterator[bytes]) -> pb.SnapshotHead:
        first = await anext(aiter(responses), b"")
        head = _response(first).head
        _check_head(head)
        if self._head is None or head.manifest != self._head.manifest:
            self._there = (0, 0)
            await self._run(self._start, head)
        if (head.file, head.offset) > self._there:
            raise _damaged("it begins behind what is there")
        self._head = head
        return head

    async def _finish_whole(self, head: pb.SnapshotHead, number: int, offset: int) -> int:
        """Finish the file if it is whole, and those behind it that are empty; returns the one to go on with."""
        while number < len(head.files) and offset == head.files[number].bytes:
            await self._finish(head.files[number])
            number, offset = number + 1, 0
        return number

    async def _finish(self, file: pb.SnapshotFile) -> None:
        part = self._directory / (file.name + PART)
        if not file.bytes:
            await self._run(self._append, file.name, 0, b"")
        if await self._run(_sha256, part) != file.sha256:
            await self._run(part.unlink)
            if file.name in self._doubtful:
                raise _damaged(f"the digest of {file.name} is wrong")
            self._doubtful.add(file.name)
            raise ConnectionError(f"the digest of {file.name} is wrong; it is fetched once more")
        if self._verify is not None:
            await self._verify(part, SnapshotFile(file.name, file.bytes, file.sha256.hex()))
        await self._run(self._name, file.name)

    # --- what waits for the disk ---

    def _load(self) -> None:
        path = self._directory / HEAD
        try:
            self._head = pb.SnapshotHead.FromString(path.read_bytes())
            _check_head(self._head)
        except (FileNotFoundError, DecodeError, FailedPrecondition):
            self._head = None

    def _reached(self, head: pb.SnapshotHead) -> tuple[int, int]:
        for number, file in enumerate(head.files):
            if (self._directory / file.name).exists():
                continue
            part = self._directory / (file.name + PART)
            offset = part.stat().st_size if part.exists() else 0
            if offset <= file.bytes:
                return number, offset
            part.unlink()
            return number, 0
        return len(head.files), 0

    def _start(self, head: pb.SnapshotHead) -> None:
        """Clear the directory of what an earlier snapshot left, and remember what this one consists of."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self._directory.iterdir():
            path.unlink()
        kept = pb.SnapshotHead(manifest=head.manifest, files=head.files)
        _write_durably(self._directory / HEAD, kept.SerializeToString())
        sync_directory(self._directory)

    def _append(self, name: str, offset: int, data: bytes) -> None:
        descriptor = os.open(
            self._directory / (name + PART), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        with os.fdopen(descriptor, "wb") as file:
            file.seek(offset)
            file.write(data)

    def _name(self, name: str) -> None:
        part = self._directory / (name + PART)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(self._directory / name)

    def _complete(self, head: pb.SnapshotHead) -> None:
        draft = self._directory / (MANIFEST + PART)
        _write_durably(draft, head.manifest)
        sync_directory(self._directory)
        draft.rename(self._directory / MANIFEST)
        (self._directory / HEAD).unlink(missing_ok=True)
        sync_directory(self._directory)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _response(data: bytes) -> pb.SnapshotResponse:
    try:
        return pb.SnapshotResponse.FromString(data)
    except DecodeError:
        raise _damaged("the peer sent what is no part of a snapshot") from None


def _check_head(head: pb.SnapshotHead) -> None:
    """Refuse what could reach outside the directory, or never end."""
    names = [file.name for file in head.files]
    if not names or len(names) > FILES_MAX or len(head.manifest) > MANIFEST_BYTES_MAX:
        raise _damaged(f"it has {len(names)} files and a manifest of {len(head.manifest)} bytes")
    for file in head.files:
        plain = _NAME.fullmatch(file.name) and not file.name.endswith(PART)
        if not plain or file.name == MANIFEST or len(file.sha256) != _SHA256_BYTES:
            raise _damaged(f"{file.name[:100]!r} is no name of a file, or has no digest")
    if len(set(names)) != len(names):
        raise _damaged("it names a file twice")


def _damaged(why: str) -> FailedPrecondition:
    return FailedPrecondition(f"the snapshot can't be used: {why}", reason="SNAPSHOT_DAMAGED")
