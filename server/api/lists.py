"""Floor 5. Lists and counts: request → query of the store → a page and the token of the next.

A page ends early when it grows too large for a client's message limit: its token goes on from there.

Must never import: rooms below but `command`, `errors`, `model`, `query`; nothing of a transport.
"""

from tickwheel.server.api import limits, names
from tickwheel.server.api.filter import execution_query, job_query
from tickwheel.server.api.paging import decode_token, encode_token, page_size
from tickwheel.server.api.times import ms_up, set_ms, timestamp
from tickwheel.server.api.views import execution_message, job_message
from tickwheel.server.command import Scheduler
from tickwheel.server.errors import InvalidArgument, Violation
from tickwheel.server.query import (
    ExecutionQuery,
    GroupBy,
    Grouping,
    JobQuery,
    Key,
)
from tickwheel.v1 import job_pb2
from tickwheel.v1 import job_service_pb2 as pb


class Lists:
    """What is answered from the stores, at most a second old."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    async def list_jobs(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        """A page of jobs."""
        namespace = names.parse_namespaces(request.parent)
        arguments = (
            "ListJobs",
            request.parent,
            request.filter,
            str(request.view),
            str(request.consistent),
        )
        limit = page_size(request.page_size)
        after = decode_token(request.page_token, *arguments)
        query = job_query(request.filter, JobQuery(namespace, limit=limit, after=after))
        views, hits, read_ms = await self._scheduler.list_jobs(query, consistent=request.consistent)
        response = pb.ListJobsResponse(read_time=timestamp(read_ms))
        full = request.view == job_pb2.JOB_VIEW_FULL
        size_bytes, last = 0, None
        for view, hit in zip(views, hits, strict=True):
            message = job_message(view, full=full)
            size_bytes += message.ByteSize()
            if last is not None and size_bytes > limits.PAGE_BYTES_MAX:
                break
            response.jobs.append(message)
            last = hit.key
        response.next_page_token = _next_token(
            last, len(response.jobs), len(hits), limit, arguments
        )
        return response

    async def list_executions(self, request: pb.ListExecutionsRequest) -> pb.ListExecutionsResponse:
        """A page of executions of one job, or of all jobs of a namespace (`jobs/-`)."""
        namespace, job = names.parse_jobs(request.parent)
        arguments = ("ListExecutions", request.parent, request.filter, str(request.consistent))
        limit = page_size(request.page_size)
        after = decode_token(request.page_token, *arguments)
        base = ExecutionQuery(namespace, job, limit=limit, after=after)
        query = execution_query(request.filter, base)
        found, read_ms = await self._scheduler.list_executions(query, consistent=request.consistent)
        response = pb.ListExecutionsResponse(read_time=timestamp(read_ms))
        size_bytes, last = 0, None
        for hit, execution in found:
            message = execution_message(execution, last_attempt_only=True)
            size_bytes += message.ByteSize()
            if last is not None and size_bytes > limits.PAGE_BYTES_MAX:
                break
            response.executions.append(message)
            last = hit.key
        shown = len(response.executions)
        response.next_page_token = _next_token(last, shown, len(found), limit, arguments)
        return response

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
        if len(groups) > limits.COUNT_GROUPS_MAX:
            text = f"makes {len(groups):,} groups, at most {limits.COUNT_GROUPS_MAX:,} are answered"
            raise InvalidArgument.of([Violation("group_by", text, "TOO_MANY_GROUPS")])
        for key, count in sorted(groups, key=lambda group: (isinstance(group[0], str), group[0])):
            _add_group(response, grouping, key, count)
        return response


def _next_token(
    last: Key | None, shown: int, found: int, limit: int, arguments: tuple[str, ...]
) -> str:
    """Empty when the store had less than asked for, and all of it is shown."""
    if last is None or (shown == found and found < limit):
        return ""
    return encode_token(last, *arguments)


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
