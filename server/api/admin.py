"""Floor 5. AdminService, as far as this version has it: backups.

Must never import: rooms below but `errors`; of a transport only what `Exchange` names.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from tickwheel.server.api.names import valid_part
from tickwheel.server.errors import InvalidArgument, Violation
from tickwheel.v1 import admin_service_pb2 as pb


class Progress(Protocol):
    """How far a backup is."""

    @property
    def directory(self) -> str:
        """Where it is, or will be."""
        ...

    @property
    def shard_count(self) -> int:
        """Shards to copy."""
        ...

    @property
    def done_count(self) -> int:
        """Shards copied."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes written so far."""
        ...

    @property
    def complete(self) -> bool:
        """It is whole and durable."""
        ...


class Backups(Protocol):
    """Who makes backups of this node."""

    def create(self, name: str) -> AsyncGenerator[Progress, None]:
        """Make one; "" lets its maker choose a name."""
        ...


class Exchange(Protocol):
    """The writing half of a stream."""

    async def write(self, message: pb.CreateBackupResponse, /) -> None:
        """Send one message; returns when there is room for the next."""
        ...


async def create_backup(
    backups: Backups, request: pb.CreateBackupRequest, exchange: Exchange
) -> None:
    """Make a backup and tell of it. A caller who goes away ends it. Raises InvalidArgument, and what `create` does."""
    if request.backup_id and not valid_part(request.backup_id):
        text = "must be a directory's name of a-z, 0-9, '.', '_' and '-', as that of a job"
        raise InvalidArgument.of([Violation("backup_id", text, "BACKUP_ID_INVALID")])
    async with aclosing(backups.create(request.backup_id)) as steps:
        async for step in steps:
            await exchange.write(
                pb.CreateBackupResponse(
                    directory=step.directory,
                    shard_count=step.shard_count,
                    done_count=step.done_count,
                    size_bytes=step.size_bytes,
                    complete=step.complete,
                )
            )
