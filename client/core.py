"""What every part of the asynchronous client shares: the links, the namespace, the time a call may take.

Names: `nightly` means `namespaces/{namespace}/jobs/nightly`; a whole name is taken as it is.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Generic, TypeVar

import grpc
import grpc.aio

from tickwheel.client.channel import Answer, Links, Request, addresses_of
from tickwheel.client.errors import InvalidArgument
from tickwheel.client.gather import Gatherer
from tickwheel.client.shards import key_of
from tickwheel.client.values import ANY, JobRef

if TYPE_CHECKING:
    from tickwheel.v1.job_service_pb2_grpc import JobServiceAsyncStub

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some items of a list. `next_token` continues after them, and is empty at the end."""

    items: tuple[Item, ...]
    next_token: str
    read_time: datetime


class Core:
    """The links to the servers of one namespace; bound to the event loop that first uses it."""

    def __init__(
        self,
        servers: str | Sequence[str],
        *,
        namespace: str,
        timeout_s: float,
        api_key: str | None,
        credentials: grpc.ChannelCredentials | None,
        follow: bool = True,
    ) -> None:
        if timeout_s <= 0:
            raise InvalidArgument(f"timeout_s={timeout_s} leaves no time", reason="INVALID_OPTION")
        metadata = [("authorization", f"Bearer {api_key}")] if api_key else []
        self.links = Links(
            addresses_of(servers), credentials=credentials, metadata=metadata, follow=follow
        )
        self.namespace = namespace
        self.parent = f"namespaces/{namespace}"
        self.timeout_s = timeout_s
        self._gatherer: Gatherer | None = None

    def gatherer_on(self, loop: asyncio.AbstractEventLoop) -> Gatherer:
        """The gatherer of creates, made when first asked for; from then on it belongs to `loop`."""
        if self._gatherer is None:
            self._gatherer = Gatherer(self.links, self.namespace, loop)
        return self._gatherer

    async def call(
        self,
        pick: "Callable[[JobServiceAsyncStub], grpc.aio.UnaryUnaryMultiCallable[Request, Answer]]",
        request: Request,
        timeout_s: float | None,
        *,
        about: str = "",
        repeatable: bool = True,
    ) -> Answer:
        """Call, with this client's time-out unless the call has its own. `about`: the job's name, if it is of one."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        leader = self.links.leader_of(key_of(about)) if self.links.follows else ""
        return await self.links.call(
            pick, request, timeout_s=limit, repeatable=repeatable, leader=leader
        )

    def job_name(self, job: JobRef) -> str:
        """The whole name of a job. InvalidArgument for an empty one."""
        text = job if isinstance(job, str) else job.name
        if not text:
            raise InvalidArgument("the name of the job is empty", reason="INVALID_NAME")
        return text if text.startswith("namespaces/") else f"{self.parent}/jobs/{text}"

    def execution_name(self, execution: str, job: JobRef | None = None) -> str:
        """The whole name of an execution, whose own part alone is not enough: it says nothing of its job."""
        if execution.startswith("namespaces/"):
            return execution
        if job is None:
            raise InvalidArgument(
                f"{execution!r} names no job: give the whole name, or the job too",
                reason="INVALID_NAME",
            )
        return f"{self.job_name(job)}/executions/{execution}"

    def jobs_parent(self, *, all_namespaces: bool) -> str:
        return f"namespaces/{ANY}" if all_namespaces else self.parent

    async def close(self) -> None:
        """End everything under way and the connections."""
        if self._gatherer is not None:
            await self._gatherer.close()
        await self.links.close()


def new_request_id() -> str:
    """What makes a request safe to repeat: 128 bits of the system's chance, for the library's own survives no fork."""
    return os.urandom(16).hex()


async def items_of(pages: AsyncIterator[Page[Item]]) -> AsyncIterator[Item]:
    """The items of all pages, one after the other."""
    async for page in pages:
        for item in page.items:
            yield item
