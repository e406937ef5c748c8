"""Floor 5. A `tickwheel.v1.Job` as it was sent → `command.Prepared`: checked, normalised, compiled, hashed.

All that is wrong is told at once. Three steps, in this order:

    digest      a hash of what the user said, before any default or any clock touched it: so a create that is repeated
                after an upgrade, or a minute later with a delay, is still the same create
    normalise   defaults made explicit, times rounded up to milliseconds, in place
    encode      the normalised message, deterministically: what is stored (`spec`)

Must never import: rooms below but `codec`, `command`, `errors`, `model`, `schedule`, `spec`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, cast

from tickwheel.server.api.mask import copy_paths
from tickwheel.server.api.messages import read_message
from tickwheel.server.api.shapes import Key, Shapes, digest_of
from tickwheel.server.api.times import ms_up
from tickwheel.server.api.timing import check_jitter, check_when
from tickwheel.server.api.validate import (
    TargetChecks,
    TargetValidator,
    Violations,
    check_policies,
    check_texts,
)
from tickwheel.server.codec import encode_labels
from tickwheel.server.command import Prepared
from tickwheel.server.errors import InvalidArgument, NotYetSupported, Violation
from tickwheel.server.spec import encode_spec, parse_spec
from tickwheel.v1 import job_pb2, schedule_pb2

SPEC_FIELDS: Final = frozenset(
    [
        "schedule",
        "http_target",
        "worker_target",
        "window",
        "max_executions",
        "jitter",
        "misfire",
        "expire_after",
        "overlap_policy",
        "retry_policy",
        "delivery",
        "on_success",
        "on_failure",
        "flow_control",
        "labels",
        "description",
        "retention",
    ]
)
"""What a user may say of a job; every other field of the message identifies it or is only read."""

_OTHER_FIELDS: Final = tuple(
    field.name for field in job_pb2.Job.DESCRIPTOR.fields if field.name not in SPEC_FIELDS
)


class Converter:
    """Turns jobs into what the scheduler takes; remembers verdicts on URLs and headers."""

    def __init__(self, checks: TargetChecks, *, body_bytes_max: int) -> None:
        self._target = TargetValidator(checks, body_bytes_max)
        self._shapes = Shapes(body_bytes_max)

    def prepare(self, job: job_pb2.Job, now_ms: int) -> Prepared:
        """The job as sent, for a create. It is changed in place. Raises InvalidArgument with all that is wrong."""
        look = self._shapes.look(job)
        if isinstance(look, Prepared):
            return look
        found: Violations = []
        prepared = self.examine(job, now_ms, found)
        if prepared is None:
            raise refusal(found)
        if isinstance(look, Key):
            self._shapes.remember(look, prepared)
        return prepared

    def prepare_bytes(self, job: bytes, now_ms: int) -> Prepared:
        """As `prepare`, of a job's bytes, which are read only if its shape is not known."""
        return self._shapes.known(job) or self.prepare(read_message(job_pb2.Job, job), now_ms)

    def merge(
        self, stored: bytes, change: job_pb2.Job, paths: Sequence[str], now_ms: int
    ) -> Prepared:
        """The stored spec with the fields of `paths` taken from `change`; `*` takes all. Raises InvalidArgument."""
        if "*" in paths:
            merged = job_pb2.Job()
            merged.CopyFrom(change)
        else:
            merged = parse_spec(stored)
            copy_paths(change, merged, paths)
        return self.prepare(merged, now_ms)

    def examine(self, job: job_pb2.Job, now_ms: int, found: Violations) -> Prepared | None:
        """As `prepare`, but what is wrong is added to `found`, and then the answer is None."""
        clear = cast(Callable[[str], None], job.ClearField)
        for name in _OTHER_FIELDS:
            clear(name)
        sent = job.SerializeToString(deterministic=True)
        digest = digest_of(sent)
        window = job.window if job.HasField("window") else None
        when = check_when(job.schedule, window, now_ms, found, "job.")
        once = job.schedule.WhichOneof("kind") == "once"
        self._target.check(job, found)
        check_policies(job, found, once=once)
        labels = dict(job.labels)
        if labels or job.description:
            check_texts(job, labels, found)
        jitter_ms = ms_up(job.jitter) if job.HasField("jitter") else 0
        if jitter_ms and when is not None:
            check_jitter(when, jitter_ms, now_ms, found)
        if found or when is None:
            return None
        past_ok = once and job.schedule.once.past_policy == schedule_pb2.PAST_POLICY_FIRE_NOW
        text = encode_labels(labels)
        return Prepared(encode_spec(job), digest, when.plan, once, jitter_ms, text, past_ok)


def refusal(found: Iterable[Violation]) -> InvalidArgument:
    """The error that names all violations; NotYetSupported when nothing else is wrong."""
    violations = list(found)
    if all(violation.reason == NotYetSupported.default_reason for violation in violations):
        return NotYetSupported.of(violations)
    return InvalidArgument.of(violations)
