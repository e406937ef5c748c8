"""Floor 2, pure. Making jobs: one by one, and a run of plain ones by column.

    one by one    what has been made before, has jitter, recurs, comes from another server, or is refused
    by column     new one-offs yet to come, which is what a bulk load is:

                  names    ─╮                    uids, statuses ─╮
                  specs    ─┤  nothing to look   rows           ─┤──► jobs, in a few calls of the interpreter's own C,
                  digests  ─┤  at in any of them                ─┤    not a few dozen of ours a job
                  times    ─╯                    labels         ─╯

Both make the same jobs; only which random bits a uid gets differs.

Must never import: any driver, `store`, `table`, `wheel`; no I/O, no clock; chance comes from the draft's `Random`.
"""

from collections.abc import Sequence

from tickwheel.server import schedule
from tickwheel.server.codec import encode_new_statuses, encode_status
from tickwheel.server.command import Cancellation, Create, JobView, Moved, Prepared, Reply
from tickwheel.server.draft import Draft
from tickwheel.server.errors import AlreadyExists, InvalidArgument, TickwheelError, Violation
from tickwheel.server.model import JobRow, JobState, Ms, Row, Status
from tickwheel.server.spec import decode_spec
from tickwheel.server.steps import armed, known_job, pack_answer, settle, view_of

PAST_GRACE_MS = 60_000
"""A one-off may be this late when it is created, unless the request says that the past is welcome."""

RUN_MIN = 3
"""Creates that are worth making together."""


def create_all(draft: Draft, commands: Sequence[Create]) -> list[Reply | TickwheelError] | None:
    """Make them all, if they are new one-offs yet to come; None, and nothing is changed, if they must be looked at."""
    if len(commands) < RUN_MIN:
        return None
    namespaces, names, prepared, _, validate_only, moved = zip(*commands, strict=True)
    if any(validate_only) or moved.count(None) < len(moved) or len({*namespaces}) > 1:
        return None
    specs, origins, plans, once, jitters_ms, labels, _ = zip(*prepared, strict=True)
    if any(jitters_ms) or not all(once):
        return None
    times_ms = [plan.next_after(0) or 0 for plan in plans]
    if min(times_ms) < draft.now_ms - PAST_GRACE_MS or not draft.all_new(namespaces[0], names):
        return None
    uids = _new_uids(draft, len(commands))
    statuses = encode_new_statuses(draft.now_ms, times_ms, origins)
    jobs = list(zip(namespaces, names, uids, specs, statuses, labels, strict=True))
    draft.create_all(jobs)
    return list(jobs)


def _new_uids(draft: Draft, count: int) -> list[bytes]:
    """So many new ids: 48 bits of the batch's time in ms, then 80 random ones, so that they sort by age."""
    stamp = draft.now_ms.to_bytes(6, "big")
    noise = draft.rng.getrandbits(80 * count).to_bytes(10 * count, "big")
    return [stamp + noise[at : at + 10] for at in range(0, 10 * count, 10)]


def create(draft: Draft, command: Create) -> JobView:
    """Make one job, or find that it was made before. Raises AlreadyExists, InvalidArgument."""
    namespace, name, prepared, fresh, validate_only, moved = command
    row = 0 if fresh else draft.find(namespace, name)
    if row:
        return _created_before(draft, row, command)
    if moved is not None:
        uid, status = moved.uid, _moved_status(draft, prepared, moved)
    else:
        now_ms = draft.now_ms
        (uid,) = _new_uids(draft, 1)
        first_ms = due_ms = _first_occurrence(now_ms, prepared)
        if prepared.jitter_ms:
            due_ms += schedule.jitter(uid, first_ms, prepared.jitter_ms)
        origin = prepared.digest
        status = Status(JobState.SCHEDULED, 1, now_ms, now_ms, first_ms, due_ms, origin=origin)
    job = JobRow(namespace, name, uid, prepared.spec, encode_status(status), prepared.labels)
    return JobView(0 if validate_only else draft.create(job), job, status)


def _moved_status(draft: Draft, prepared: Prepared, moved: Moved) -> Status:
    """A job of another server goes on where it was; what fell due on the way is for its policies."""
    spec, now_ms = decode_spec(prepared.spec), draft.now_ms
    status = moved.status._replace(create_ms=now_ms, update_ms=now_ms)
    if status.state in {JobState.SCHEDULED, JobState.PAUSED}:
        return settle(armed(status, moved.uid, spec), spec, now_ms)
    if status.state == JobState.CANCELLED:
        status = status._replace(cancel=pack_answer(Cancellation.DISPATCH_UNKNOWN, 0))
    elif status.state == JobState.DISABLED and not prepared.once:
        status = status._replace(next_ms=prepared.plan.next_after(now_ms) or 0)
    return status._replace(due_ms=now_ms + spec.retention_ms)


def _created_before(draft: Draft, row: Row, command: Create) -> JobView:
    job, status = known_job(draft, row, command)
    if status.origin != command.origin:
        raise AlreadyExists(
            f"job {command.name!r} exists with other content; choose another job_id, or update it",
            metadata={"job": command.name, "namespace": command.namespace, "uid": job.uid.hex()},
        )
    return view_of(draft, row, job, status)


def _first_occurrence(now_ms: Ms, prepared: Prepared) -> Ms:
    once = prepared.once
    first_ms = prepared.plan.next_after(0 if once else now_ms)
    if first_ms is None:
        text = "no occurrence lies ahead; check end_time and excluded_times"
        raise InvalidArgument.of([Violation("job.schedule", text, "NEVER_FIRES")])
    if once and first_ms < now_ms - PAST_GRACE_MS and not prepared.past_ok:
        late_s = (now_ms - first_ms) // 1000
        text = f"its time passed {late_s} s ago; give a later time, or say past_policy = FIRE_NOW"
        raise InvalidArgument.of([Violation("job.schedule.once", text, "PAST_TIME")])
    return first_ms
