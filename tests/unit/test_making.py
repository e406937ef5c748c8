"""Making jobs: a run of plain creates makes what the same creates make one by one."""

import pytest
from tests.unit.shard_kit import HOUR, MINUTE, NAMESPACE, NOW, Bench, creation, every, once

from tickwheel.server import codec
from tickwheel.server.command import Cancel, ChangeReply, Create, Delete, JobView, Moved, Reply
from tickwheel.server.errors import AlreadyExists, InvalidArgument, TickwheelError
from tickwheel.server.making import PAST_GRACE_MS, RUN_MIN
from tickwheel.server.model import JobState, Status

COUNT = 20


def plain(count: int = COUNT) -> list[Create]:
    return [creation(f"j{n}", once(NOW + n * MINUTE)) for n in range(count)]


def columned(replies: list[Reply | TickwheelError]) -> bool:
    """Whether they were made together: then the answer to each is a job's parts."""
    return all(type(reply) is tuple for reply in replies)


def test_a_run_makes_what_its_creates_make_one_by_one() -> None:
    together, apart = Bench(), Bench()
    assert columned(together.batch(*plain()))
    views = [apart.view(command) for command in plain()]
    found = [together.view(command) for command in plain()]
    assert [view.status for view in found] == [view.status for view in views]
    assert [(v.row, v.job._replace(uid=b"")) for v in found] == [
        (v.row, v.job._replace(uid=b"")) for v in views
    ]
    uids = {view.job.uid for view in found}
    assert len(uids) == COUNT
    assert {uid[:6] for uid in uids} == {NOW.to_bytes(6, "big")}


def test_the_answer_is_what_is_kept() -> None:
    bench = Bench()
    replies = bench.batch(*plain())
    views = [bench.view(command) for command in plain()]
    assert replies == [view.job for view in views]
    assert all(view.status == codec.decode_status(view.job.status) for view in views)


def test_what_a_run_made_fires() -> None:
    bench = Bench()
    bench.batch(*plain())
    assert len(bench.tick(HOUR)) == COUNT


def test_few_are_made_one_by_one() -> None:
    bench = Bench()
    assert not columned(bench.batch(*plain(RUN_MIN - 1)))
    assert columned(bench.batch(*plain()[RUN_MIN:]))


@pytest.mark.parametrize("flushed", [False, True])
def test_a_repeated_run_meets_its_jobs(flushed: bool) -> None:
    bench = Bench()
    first = bench.batch(*plain())
    if flushed:
        bench.flush()
    index = bench.index
    again = bench.batch(*plain())
    assert bench.index == index
    assert [reply.job for reply in again if isinstance(reply, JobView)] == first
    assert not columned(again)


ODD = {
    "a name twice": creation("j0", once(NOW + HOUR)),
    "recurring": creation("odd", every(HOUR)),
    "with jitter": creation("odd", once(NOW + HOUR), jitter_ms=MINUTE),
    "only tried": creation("odd", once(NOW + HOUR))._replace(validate_only=True),
    "of another namespace": creation("odd", once(NOW + HOUR))._replace(namespace="other"),
    "in the past": creation("odd", once(NOW - PAST_GRACE_MS - 1)),
    "in the past, which is welcome": creation("odd", once(NOW - HOUR), past_ok=True),
    "moved": creation("odd", once(NOW + HOUR))._replace(
        moved=Moved(b"u" * 16, Status(JobState.SCHEDULED, 3, 0, 0, NOW + HOUR))
    ),
}


@pytest.mark.parametrize("odd", ODD)
def test_one_that_is_not_plain_is_answered_as_if_it_were_alone(odd: str) -> None:
    together, apart = Bench(), Bench()
    commands = [*plain(), ODD[odd]]
    replies = together.batch(*commands)
    alone = [apart.batch(command)[0] for command in commands]
    for reply, single in zip(replies, alone, strict=True):
        assert type(reply) is type(single)
        if isinstance(reply, JobView) and isinstance(single, JobView):
            uid = single.job.uid
            assert reply == single._replace(job=single.job._replace(uid=reply.job.uid)), uid
    refused = {"a name twice": AlreadyExists, "in the past": InvalidArgument}
    assert isinstance(replies[-1], refused.get(odd, JobView))


def test_a_later_command_of_the_batch_sees_what_the_run_made() -> None:
    bench = Bench()
    *made, cancelled = bench.batch(*plain(), Cancel(NAMESPACE, "j3"))
    assert columned(list(made))
    assert isinstance(cancelled, ChangeReply)
    assert bench.status("j3").state == JobState.CANCELLED
    assert len(bench.tick(HOUR)) == COUNT - 1


def test_a_name_that_was_freed_is_given_again() -> None:
    bench = Bench()
    bench.batch(*plain())
    old = bench.row("j3")
    _, *made = bench.batch(Delete(NAMESPACE, "j3"), *plain()[3:4], *[
        creation(f"k{n}", once(NOW + HOUR)) for n in range(COUNT)
    ])  # fmt: skip
    assert all(isinstance(reply, JobView) for reply in made)
    assert bench.row("j3") > old


def test_new_statuses_are_what_one_status_would_be() -> None:
    times, origins = [NOW, NOW + 1, 1 << 45], [bytes([n]) * 16 for n in range(3)]
    assert codec.encode_new_statuses(NOW, times, origins) == [
        codec.encode_status(
            Status(JobState.SCHEDULED, 1, NOW, NOW, next_ms=ms, due_ms=ms, origin=origin)
        )
        for ms, origin in zip(times, origins, strict=True)
    ]
