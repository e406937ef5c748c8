"""Floor 5. Lists and counts: request → query of the store → a page and the token of the next.

    ask           what the request means: a query, its limit, the arguments that its page token is bound to
    part          what this node's shards answer: items with their keys, in the order of the list
    page          the parts of all nodes, merged and cut: alone, the one part there is

A page ends early when it grows too large for a client's message limit: its token goes on from there.

Must never import: rooms below but `command`, `errors`, `model`, `query`; nothing of a transport.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple, cast

from google.protobuf.message import Message

from tickwheel.server.api import limits, names
from tickwheel.server.api.filter import execution_query, job_query
from tickwheel.server.api.paging import decode_token, encode_token, page_size
from tickwheel.server.api.times import ms_up, set_ms, timestamp
from tickwheel.server.api.views import execution_message, job_message
from tickwheel.server.command import Scheduler
from tickwheel.server.errors import InvalidArgument, Violation
from tickwheel.server.model import Ms
from tickwheel.server.query import (
    ExecutionQuery,
    GroupBy,
    Grouping,
    JobQuery,
    Key,
)
from tickwheel.v1 import execution_pb2, job_pb2
from tickwheel.v1 import job_service_pb2 as pb


class Item(NamedTuple):
    """One item of a page, as the API shows it, and where it stands in the whole list."""

    key: Key
    message: Message


class Part(NamedTuple):
    """What some shards answer, at most as many items as asked for, and the time that it speaks of."""

    items: list[Item]
    read_ms: Ms


class Lists:
    """What is answered from the stores, at most a second old."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    # --- jobs ---

    async def list_jobs(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        """A page of jobs of this node's shards."""
        return jobs_page(request, [await self.jobs_part(request)])

    async def jobs_part(self, request: pb.ListJobsRequest) -> Part:
        """What this node's shards have for a page."""
        namespace = names.parse_namespaces(request.parent)
        limit = page_size(request.page_size)
        after = decode_token(request.page_token, *_jobs_arguments(request))
        query = job_query(request.filter, JobQuery(namespace, limit=limit, after=after))
        views, hits, read_ms = await self._scheduler.list_jobs(query, consistent=request.consistent)
        full = request.view == job_pb2.JOB_VIEW_FULL
        pairs = zip(hits, views, strict=True)
        return Part([Item(hit.key, job_message(view, full=full)) for hit, view in pairs], read_ms)

    # --- executions ---

    async def list_executions(self, request: pb.ListExecutionsRequest) -> pb.ListExecutionsResponse:
        """A page of executions of one job, or of all jobs of a namespace (`jobs/-`), on this node's shards."""
        return executions_page(request, [await self.executions_part(request)])

    async def executions_part(self, request: pb.ListExecutionsRequest) -> Part:
        """What this node's shards have for a page."""
        namespace, job = names.parse_jobs(request.parent)
        limit = page_size(request.page_size)
        after = decode_token(request.page_token, *_executions_arguments(request))
        base = ExecutionQuery(namespace, job, limit=limit, after=after)
        query = execution_query(request.filter, base)
        found, read_ms = await self._scheduler.list_executions(query, consistent=request.consistent)
        items = [
            Item(hit.key, execution_message(execution, last_attempt_only=True))
            for hit, execution in found
        ]
        return Part(items, read_ms)

    # --- counts ---

    async def count_jobs(self, request: pb.CountJobsRequest) -> pb.CountJobsResponse:
        """Jobs by group."""
        namespace = names.parse_namespaces(request.parent)
        grouping = _grouping(request)
        query = job_query(request.filter, JobQuery(namespace))
        counts, read_ms = await self._scheduler.count_jobs(
            query, grouping, consistent=request.consistent
        )
        total = sum(counts.values())
        response = pb.CountJobsResponse(read_time=timestamp(read_ms), total_count=total)
        groups = [
            (key, count) for key, count in counts.items() if count and _is_group(grouping, key)
        ]
        check_groups(len(groups))
        for key, count in sorted(groups, key=lambda group: (isinstance(group[0], str), group[0])):
            _add_group(response, grouping, key, count)
        return response


def jobs_page(request: pb.ListJobsRequest, parts: Sequence[Part]) -> pb.ListJobsResponse:
    """One page of the parts of all nodes, oldest first."""
    items = merge((part.items for part in parts), key=attrgetter("key"))
    response = pb.ListJobsResponse(read_time=timestamp(min(part.read_ms for part in parts)))
    shown, token = _cut(items, page_size(request.page_size), _jobs_arguments(request))
    response.jobs.extend(cast("list[job_pb2.Job]", shown))
    response.next_page_token = token
    return response


def executions_page(
    request: pb.ListExecutionsRequest, parts: Sequence[Part]
) -> pb.ListExecutionsResponse:
    """One page of the parts of all nodes, newest first."""
    items = merge((part.items for part in parts), key=attrgetter("key"), reverse=True)
    response = pb.ListExecutionsResponse(read_time=timestamp(min(part.read_ms for part in parts)))
    shown, token = _cut(items, page_size(request.page_size), _executions_arguments(request))
    response.executions.extend(cast("list[execution_pb2.Execution]", shown))
    response.next_page_token = token
    return response


def _jobs_arguments(request: pb.ListJobsRequest) -> tuple[str, ...]:
    view, consistent = str(request.view), str(request.consistent)
    return "ListJobs", request.parent, request.filter, view, consistent


def _executions_arguments(request: pb.ListExecutionsRequest) -> tuple[str, ...]:
    return "ListExecutions", request.parent, request.filter, str(request.consistent)


def merge(
    parts: Iterable[Sequence[Item]], *, key: Callable[[Item], Key], reverse: bool = False
) -> Iterator[Item]:
    """Items of all parts in the order of the list. One that moved between two reads is there once."""
    last: Key | None = None
    for item in heapq.merge(*parts, key=key, reverse=reverse):
        if item.key != last:
            yield item
        last = item.key


def _cut(
    items: Iterator[Item], limit: int, arguments: tuple[str, ...]
) -> tuple[list[Message], str]:
    """At most `limit` items and as many as a message may hold; the token is empty when that is all there is."""
    shown: list[Message] = []
    size_bytes, last = 0, None
    for item in items:
        size_bytes += item.message.ByteSize()
        if last is not None and (len(shown) == limit or size_bytes > limits.PAGE_BYTES_MAX):
            return shown, encode_token(last, *arguments)
        shown.append(item.message)
        last = item.key
    return shown, encode_token(last, *arguments) if last and len(shown) == limit else ""


def check_groups(count: int) -> None:
    """Raise InvalidArgument for more groups than an answer holds."""
    if count > limits.COUNT_GROUPS_MAX:
        text = f"makes {count:,} groups, at most {limits.COUNT_GROUPS_MAX:,} are answered"
        raise InvalidArgument.of([Violation("group_by", text, "TOO_MANY_GROUPS")])


def _grouping(request: pb.CountJobsRequest) -> Grouping:
    try:
        by = GroupBy(request.group_by)
    except ValueError:
        raise _refused("group_by", "is no way to group", "ENUM_UNKNOWN") from None
    if by == GroupBy.LABEL:
        if not request.label_key:
            raise _refused("label_key", "must be set with LABEL", "REQUIRED")
    elif request.label_key:
        raise _refused("label_key", "goes with group_by LABEL only", "ONLY_WITH_LABEL")
    if by != GroupBy.NEXT_TIME:
        if request.HasField("bucket"):
            raise _refused("bucket", "goes with group_by NEXT_TIME only", "ONLY_WITH_NEXT_TIME")
        return Grouping(by, label=request.label_key)
    bucket_ms = ms_up(request.bucket) if request.HasField("bucket") else limits.BUCKET_MS_DEFAULT
    if not limits.BUCKET_MS_MIN <= bucket_ms <= limits.BUCKET_MS_MAX:
        raise _refused("bucket", "must be 1 s to 366 days", "OUT_OF_RANGE")
    return Grouping(by, bucket_ms=bucket_ms)


def _is_group(grouping: Grouping, key: int | str) -> bool:
    """Jobs without the label, or without a next time, are in no group."""
    return bool(key) or grouping.by not in {GroupBy.LABEL, GroupBy.NEXT_TIME}


def _add_group(
    response: pb.CountJobsResponse, grouping: Grouping, key: int | str, count: int
) -> None:
    group = response.counts.add(count=count)
    if isinstance(key, str):
        group.label_value = key
    elif grouping.by == GroupBy.STATE:
        group.state = key  # type: ignore[assignment]  # equal numbers, held by a test
    elif grouping.by == GroupBy.LAST_OUTCOME:
        group.last_outcome = key  # type: ignore[assignment]
    elif grouping.by == GroupBy.NEXT_TIME:
        set_ms(group.bucket_time, key)


def _refused(field: str, text: str, reason: str) -> InvalidArgument:
    return InvalidArgument.of([Violation(field, text, reason)])
