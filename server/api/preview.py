"""Floor 5. PreviewSchedule: what a schedule would do, occurrence by occurrence.

An expression may be sparse (29 February on a Monday) and the search for the next occurrence then takes milliseconds, so
a preview is made in slices and yields to the event loop between them: firing must not wait for it.

Must never import: rooms below but `command`, `errors`, `model`, `schedule`, `spec`.
"""

import asyncio
from typing import Final, NamedTuple

from tickwheel.server import schedule as schedules
from tickwheel.server.api import limits, names
from tickwheel.server.api.convert import refusal
from tickwheel.server.api.times import set_ms
from tickwheel.server.api.timing import When, check_when
from tickwheel.server.api.validate import Violations, instant, length, number
from tickwheel.server.command import Scheduler
from tickwheel.server.errors import InvalidArgument, Violation
from tickwheel.server.model import MS_PER_DAY, Ms
from tickwheel.server.spec import parse_spec
from tickwheel.v1 import job_pb2
from tickwheel.v1 import job_service_pb2 as pb

_SLICE: Final = 10
_DROPPED_MAX: Final = 1_000
_DROPPED_AHEAD_MS: Final = 3_653 * MS_PER_DAY
"""Where occurrences run out, dropped ones are looked for this far ahead."""


class _Asked(NamedTuple):
    """A preview to make. `uid` is empty unless a job's own jitter is shown."""

    when: When
    after_ms: Ms
    wanted: int
    jitter_ms: int
    uid: bytes


async def preview(
    scheduler: Scheduler, request: pb.PreviewScheduleRequest
) -> pb.PreviewScheduleResponse:
    """The next occurrences, and the civil times among them that are none."""
    asked = await _asked(scheduler, request)
    plan = asked.when.plan
    response = pb.PreviewScheduleResponse(tzdata_version=schedules.tz_version())
    last_ms = asked.after_ms
    while len(response.occurrences) < asked.wanted:
        part = min(_SLICE, asked.wanted - len(response.occurrences))
        found = plan.occurrences(last_ms, part)
        for occurrence in found:
            _add(response, occurrence, asked)
        if len(found) < part:
            last_ms += _DROPPED_AHEAD_MS
            break
        last_ms = found[-1].scheduled_ms
        await asyncio.sleep(0)
    for dropped in plan.dropped(asked.after_ms, last_ms, _DROPPED_MAX):
        response.dropped.add(
            local_time=dropped.civil,
            reason=int(dropped.reason),  # equal numbers, held by a test
        )
    return response


async def _asked(scheduler: Scheduler, request: pb.PreviewScheduleRequest) -> _Asked:
    namespace = names.parse_namespace(request.parent)
    base, uid = job_pb2.Job(), b""
    if request.job:
        owner, name = names.parse_job(request.job, "job")
        if owner != namespace:
            text = f"must be a job of {request.parent}"
            raise InvalidArgument.of([Violation("job", text, "PARENT_MISMATCH")])
        view = await scheduler.get_job(owner, name)
        base, uid = parse_spec(view.job.spec), view.job.uid
    elif not request.HasField("schedule"):
        raise InvalidArgument.of([Violation("schedule", "must be set, or job", "REQUIRED")])
    now_ms = scheduler.now_ms()
    found: Violations = []
    schedule = request.schedule if request.HasField("schedule") else base.schedule
    window = request.window if request.HasField("window") else base.window
    jitter = request.jitter if request.HasField("jitter") else base.jitter
    when = check_when(schedule, window, now_ms, found)
    number(request.count, "count", found, low=0, high=limits.PREVIEW_MAX)
    after_ms = now_ms
    if request.HasField("after_time"):
        after_ms = instant(request.after_time, "after_time", found)
    jitter_ms = length(jitter, "jitter", found, low=0, high=limits.JITTER_MS_MAX)
    if found or when is None:
        raise refusal(found)
    own = uid if not request.HasField("jitter") else b""
    return _Asked(when, after_ms, request.count or limits.PREVIEW_DEFAULT, jitter_ms, own)


def _add(
    response: pb.PreviewScheduleResponse, occurrence: schedules.Occurrence, asked: _Asked
) -> None:
    ms, offset_s, note = occurrence
    shown = response.occurrences.add(
        utc_offset=_offset_text(offset_s),
        local_time=schedules.civil_text(ms + offset_s * 1_000),
        dst_note=int(note),  # equal numbers, held by a test
    )
    set_ms(shown.scheduled_time, ms)
    late_ms = schedules.jitter(asked.uid, ms, asked.jitter_ms) if asked.uid else asked.jitter_ms
    set_ms(shown.latest_due_time, ms + late_ms)


def _offset_text(offset_s: int) -> str:
    """`+02:00`; with seconds for the local mean times of old.

    >>> _offset_text(-5400), _offset_text(3208)
    ('-01:30', '+00:53:28')
    """
    minutes, seconds = divmod(abs(offset_s), 60)
    text = f"{'-' if offset_s < 0 else '+'}{minutes // 60:02}:{minutes % 60:02}"
    return f"{text}:{seconds:02}" if seconds else text
