"""Floor 5. StreamCreateJobs: bulk load over one stream, with credits.

    server   window {8}                        result 1   result 2 …        each result gives one credit back
    client             message 1 … message 8                       message 9 …

Messages are carried at the same time and answered as they become durable, in any order; the credits bound what one
stream can have in memory. What ends the stream is only what the client can't have meant (no parent, credits overdrawn);
a full queue is the result of the message that met it.

Must never import: rooms below but `errors`; of a transport only what `Exchange` names.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from tickwheel.internal.v1.unread_pb2 import UnreadStreamMessage
from tickwheel.server.api.creates import Batches
from tickwheel.server.api.errors import to_status
from tickwheel.server.api.limits import STREAM_WINDOW_MESSAGES
from tickwheel.server.errors import (
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    Violation,
)
from tickwheel.v1 import job_service_pb2 as pb


class Exchange(Protocol):
    """The writing half of a stream."""

    async def write(self, message: pb.StreamCreateJobsResponse, /) -> None:
        """Send one message; returns when there is room for the next."""
        ...


class CreateStream:
    """One stream, from its opening to its end."""

    def __init__(self, batches: Batches, exchange: Exchange) -> None:
        self._batches = batches
        self._exchange = exchange
        self._writing = asyncio.Lock()
        self._open: set[int] = set()
        self._parent = ""

    async def serve(self, messages: AsyncIterator[UnreadStreamMessage]) -> None:
        """Answer all messages. Raises InvalidArgument for a client that breaks the rules of the stream."""
        window = pb.StreamWindow(messages=STREAM_WINDOW_MESSAGES)
        await self._exchange.write(pb.StreamCreateJobsResponse(window=window))
        try:
            async with asyncio.TaskGroup() as group:
                async for message in messages:
                    self._admit(message)
                    group.create_task(self._answer(message))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def _admit(self, message: UnreadStreamMessage) -> None:
        if message.parent and self._parent and message.parent != self._parent:
            raise _refused("parent", f"must stay {self._parent} in this stream", "PARENT_MISMATCH")
        self._parent = self._parent or message.parent
        if len(self._open) >= STREAM_WINDOW_MESSAGES:
            text = f"at most {STREAM_WINDOW_MESSAGES} messages may be unanswered"
            raise _refused("sequence", text, "WINDOW_EXCEEDED")
        if message.sequence in self._open:
            raise _refused("sequence", "is in use by a message not answered yet", "SEQUENCE_IN_USE")
        self._open.add(message.sequence)

    async def _answer(self, message: UnreadStreamMessage) -> None:
        response = pb.StreamCreateJobsResponse()
        result = response.result
        result.sequence = message.sequence
        try:
            await self._batches.batch(
                self._parent, message.requests, result.results, view=message.view
            )
        except (ResourceExhausted, Unavailable) as error:
            status = to_status(error)
            for _ in message.requests:
                result.results.add().error.CopyFrom(status)
        async with self._writing:
            self._open.discard(message.sequence)
            await self._exchange.write(response)


def _refused(field: str, text: str, reason: str) -> InvalidArgument:
    return InvalidArgument.of([Violation(field, text, reason)])
