"""Floor 5. WatchExecutions: executions as they change, of all shards concerned, whoever leads them.

    positions {shard: index}      one question at a time to each leader ("scatter/WatchExecutions", or this node itself):
                                  "what came after?", which waits up to a second for something to come
    answer ──► executions out, positions on ──► the next question

The log's own order makes it right: a position is an index of a shard's log, and moves on only with an answer that holds
everything up to there. Who answers does not matter, so a fail-over is a question that is asked again. What goes out
between two answers carries the token from before: a watch that goes on there sees some again, and misses none.

A watch holds no changes: while a client reads slowly nothing is asked, and one that takes nothing for `SLOW_S` is ended.

Must never import: rooms below but `command`, `errors`, `placement`, `query`, `topology`; nothing of a transport.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final, NamedTuple

from tickwheel.internal.v1.scatter_pb2 import WatchAnswer, WatchQuestion
from tickwheel.server.api import names
from tickwheel.server.api.filter import execution_query
from tickwheel.server.api.limits import WATCHES_MAX
from tickwheel.server.api.messages import read_message
from tickwheel.server.api.resume import decode_resume, encode_resume
from tickwheel.server.api.route import AGAIN_S, NOT_TAKEN, PATIENCE_S
from tickwheel.server.api.times import set_ms
from tickwheel.server.api.views import execution_message
from tickwheel.server.command import Scheduler
from tickwheel.server.errors import NotLeader, ResourceExhausted, TickwheelError, Unavailable
from tickwheel.server.model import Ms
from tickwheel.server.placement import shard_of
from tickwheel.server.query import ExecutionQuery, Read
from tickwheel.server.topology import ClusterPort, NodeName
from tickwheel.v1 import job_service_pb2 as pb
from tickwheel.v1.execution_pb2 import Execution

WATCH: Final = "scatter/WatchExecutions"
WAIT_MS: Final = 1_000
ANSWER_S: Final = WAIT_MS / 1000 + 3.0
"""A leader that has not answered by then is asked again."""

SILENCE_S: Final = 15.0
SLOW_S: Final = 10.0
"""So much shorter than a token is valid that a slow reader can go on from its own."""

PASSING: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})
"""Codes after which a leader is asked again: a question changes nothing."""

SHOWN: Final = 50
"""Executions made into messages in one go: about 1 ms."""

QUESTIONS_MAX: Final = 256
"""Of other nodes' watches under way here: the rest of what a node takes from others is for calls."""

Write = Callable[[pb.WatchExecutionsResponse], Awaitable[None]]


class Answer(NamedTuple):
    """What a leader said: executions, and how far it read its shards."""

    executions: Sequence[Execution]
    reads: Sequence[Read]


class Watches:
    """The watches of this node's clients, and its answers to the watches of other nodes."""

    def __init__(self, cluster: ClusterPort, scheduler: Scheduler) -> None:
        self._cluster = cluster
        self._scheduler = scheduler
        self._count = 0
        self._questions = 0
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End every watch: the node is leaving."""
        self._closing.set()

    async def serve(self, request: pb.WatchExecutionsRequest, write: Write) -> None:
        """Watch until the client goes. Raises ResourceExhausted for one that reads too slowly, Unavailable at the end."""
        async with aclosing(self.watch(request)) as responses:
            async for response in responses:
                try:
                    async with asyncio.timeout(SLOW_S):
                        await write(response)
                except TimeoutError:
                    raise _too_slow() from None

    async def watch(
        self, request: pb.WatchExecutionsRequest
    ) -> AsyncGenerator[pb.WatchExecutionsResponse]:
        """The messages of one watch."""
        following = Following(self._cluster, self._ask, request)
        if self._count >= WATCHES_MAX:
            raise _too_many()
        self._count += 1
        try:
            async with aclosing(following.messages(self._closing)) as messages:
                async for message in messages:
                    yield message
        finally:
            self._count -= 1
            following.stop()

    async def answer(self, request: bytes) -> bytes:
        """What another node's watch asks of this one. Raises TickwheelError."""
        if self._questions >= QUESTIONS_MAX:
            raise ResourceExhausted("too many watches ask this node", reason="WATCH_QUESTIONS_MAX")
        self._questions += 1
        try:
            found = await self._here(read_message(WatchQuestion, request))
        finally:
            self._questions -= 1
        answer = WatchAnswer(executions=[e.SerializeToString() for e in found.executions])
        for shard, index, read_ms in found.reads:
            answer.read.add(shard=shard, index=index, read_ms=read_ms)
        return answer.SerializeToString()

    async def _ask(self, leader: NodeName, question: WatchQuestion) -> Answer:
        if not leader:
            return await self._here(question)
        try:
            async with asyncio.timeout(ANSWER_S):
                data = await self._cluster.forward(leader, WATCH, question.SerializeToString())
        except TimeoutError:
            raise Unavailable("a leader does not answer", reason="PEER_UNREACHABLE") from None
        answer = WatchAnswer.FromString(data)
        reads = [Read(read.shard, read.index, read.read_ms) for read in answer.read]
        return Answer([Execution.FromString(e) for e in answer.executions], reads)

    async def _here(self, question: WatchQuestion) -> Answer:
        after = {p.shard: p.index if p.HasField("index") else None for p in question.after}
        found, reads = await self._scheduler.changes(
            query_of(question.parent, question.filter), after, wait_ms=question.wait_ms
        )
        shown: list[Execution] = []
        for execution in found:
            shown.append(execution_message(execution, last_attempt_only=True))
            if not len(shown) % SHOWN:
                await asyncio.sleep(0)  # what is due must not wait for them
        return Answer(shown, reads)


class Following:
    """One watch: how far it has read each shard, and the questions that are under way."""

    def __init__(
        self,
        cluster: ClusterPort,
        ask: Callable[[NodeName, WatchQuestion], Coroutine[Any, Any, Answer]],
        request: pb.WatchExecutionsRequest,
    ) -> None:
        """Raises InvalidArgument."""
        self._cluster = cluster
        self._ask = ask
        self._parent, self._filter = request.parent, request.filter
        self._arguments = ("WatchExecutions", request.parent, request.filter)
        query = query_of(request.parent, request.filter)
        shards: Iterable[int] = range(cluster.shard_count)
        if query.job:
            shards = [shard_of(query.namespace, query.job, cluster.shard_count)]
        self._at: dict[int, int | None] = dict.fromkeys(shards)
        if request.resume_token:
            found = decode_resume(request.resume_token, len(self._at), *self._arguments)
            self._at = dict(zip(self._at, found, strict=True))
        self._read_ms: dict[int, Ms] = dict.fromkeys(self._at, 0)
        self._not_before_s: dict[int, float] = dict.fromkeys(self._at, 0.0)
        self._asked: dict[asyncio.Task[Answer], tuple[NodeName, list[int]]] = {}
        self._token = request.resume_token
        self._read_until_ms: Ms = 0
        self._now_s = asyncio.get_running_loop().time
        self._opened = False

    def stop(self) -> None:
        """Ask nothing more."""
        for question in self._asked:
            if question.done() and not question.cancelled():
                question.exception()  # nobody will ask for it
            question.cancel()

    async def messages(self, closing: asyncio.Event) -> AsyncGenerator[pb.WatchExecutionsResponse]:
        """Everything that is to be sent, as it comes. Raises TickwheelError; never ends by itself."""
        closed = asyncio.create_task(closing.wait())
        begun_s = spoke_s = self._now_s()
        try:
            while not closing.is_set():
                self._ask_leaders()
                for message in await self._news(closed, spoke_s + SILENCE_S):
                    yield message
                    spoke_s = self._now_s()
                if not self._opened and self._now_s() > begun_s + PATIENCE_S:
                    raise _leaderless()
        finally:
            closed.cancel()
        raise Unavailable("this node is stopping; go on at another", reason="NODE_STOPPING")

    # --- questions ---

    def _ask_leaders(self) -> None:
        """One question to each leader that has none: about its shards that nobody is asked about."""
        asked = {shard for _, shards in self._asked.values() for shard in shards}
        busy = {leader for leader, _ in self._asked.values()}
        now_s = self._now_s()
        groups: defaultdict[NodeName, list[int]] = defaultdict(list)
        for shard in sorted(self._wanted(), key=self._read_ms.__getitem__):
            if shard in asked or self._not_before_s[shard] > now_s:
                continue
            try:
                groups[self._cluster.leader_of(shard)].append(shard)
            except NotLeader:
                self._not_before_s[shard] = now_s + AGAIN_S
        for leader, shards in groups.items():
            if leader not in busy:
                question = asyncio.create_task(self._ask(leader, self._question(shards)))
                self._asked[question] = leader, shards

    def _wanted(self) -> Iterable[int]:
        """All shards; before the watch is open only those whose beginning is not known."""
        return self._at if self._opened else [s for s, index in self._at.items() if index is None]

    def _question(self, shards: Iterable[int]) -> WatchQuestion:
        question = WatchQuestion(parent=self._parent, filter=self._filter, wait_ms=WAIT_MS)
        for shard in shards:
            question.after.add(shard=shard, index=self._at[shard])
        return question

    # --- answers ---

    async def _news(
        self, closed: "asyncio.Task[bool]", silent_s: float
    ) -> list[pb.WatchExecutionsResponse]:
        """Wait for the next answer, or for silence; what is to be said then."""
        if not self._opened and None not in self._at.values():
            self._opened = True
            self._move_on()
            return [self._message()]
        again_s = silent_s if self._all_asked() else self._now_s() + AGAIN_S
        limit_s = max(min(again_s, silent_s) - self._now_s(), 0.0)
        await asyncio.wait(
            [closed, *self._asked], timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
        )
        messages: list[pb.WatchExecutionsResponse] = []
        for question in [question for question in self._asked if question.done()]:
            _, shards = self._asked.pop(question)
            messages += self._heard(question, shards)
        if not messages and self._opened and self._now_s() >= silent_s:
            messages.append(self._message())
        return messages

    def _all_asked(self) -> bool:
        asked = sum(len(shards) for _, shards in self._asked.values())
        return asked == len(list(self._wanted()))

    def _heard(
        self, question: "asyncio.Task[Answer]", shards: Sequence[int]
    ) -> list[pb.WatchExecutionsResponse]:
        """Move on by what a leader answered; what it did not answer for is asked again, of whoever leads it then."""
        later_s = self._now_s() + AGAIN_S
        try:
            answer = question.result()
        except TickwheelError as error:
            if error.reason not in NOT_TAKEN and error.code not in PASSING:
                raise
            answer = Answer((), ())
        self._not_before_s.update(dict.fromkeys(shards, later_s))
        messages = [self._message(execution) for execution in answer.executions[:-1]]
        for shard, index, read_ms in answer.reads:
            self._at[shard], self._read_ms[shard] = index, read_ms
            self._not_before_s[shard] = 0.0
        self._move_on()
        messages += [self._message(execution) for execution in answer.executions[-1:]]
        return messages

    def _move_on(self) -> None:
        """What is sent from now on is behind all that was read so far."""
        indexes = [index for index in self._at.values() if index is not None]
        if len(indexes) == len(self._at):
            self._token = encode_resume(indexes, *self._arguments)
        self._read_until_ms = min(self._read_ms.values())

    def _message(self, execution: Execution | None = None) -> pb.WatchExecutionsResponse:
        message = pb.WatchExecutionsResponse(execution=execution, resume_token=self._token)
        if self._read_until_ms:
            set_ms(message.read_time, self._read_until_ms)
        return message


def query_of(parent: str, where: str) -> ExecutionQuery:
    """What is watched. Raises InvalidArgument."""
    return execution_query(where, ExecutionQuery(*names.parse_jobs(parent)))


def _too_slow() -> ResourceExhausted:
    return ResourceExhausted(
        f"nothing was read for {SLOW_S:.0f} s; go on from the last resume token, and read faster or filter more",
        reason="READER_TOO_SLOW",
        retry_after_ms=1_000,
    )


def _too_many() -> ResourceExhausted:
    return ResourceExhausted(
        f"{WATCHES_MAX} watches are open on this node; share one, or ask another node",
        reason="WATCHES_MAX",
        metadata={"watches_max": str(WATCHES_MAX)},
        retry_after_ms=5_000,
    )


def _leaderless() -> NotLeader:
    return NotLeader(
        "a shard has no leader at this moment, so that nothing can be said of it",
        reason="LEADERLESS",
        retry_after_ms=round(1000 * AGAIN_S),
    )
