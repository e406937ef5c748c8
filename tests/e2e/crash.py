"""The crash campaign: a node under load is killed again and again, and a judge looks for anything that was lost.

One leg: a fresh data directory; workers create one-offs and recurring jobs, cancel some and move some, all due within
seconds, so that creates, fires, outcomes, cancels and updates are always under way; at random moments the node gets
`kill -9` and is started again (at times killed once more while it recovers). When all is acknowledged and due, what the
target saw is held against what the node answered (`bench.checker`), and the node's own count of jobs against the model.

Variants: `plain`; `wipe` also deletes every `*.db-wal` and `*.db-shm` before each restart, as if the operating system had
lost what SQLite did not fsync: the journal alone must bring it back.

A campaign is many legs, each with a seed of its own; each appends one line to the results file. It can be stopped at
any time and goes on where the file ends:

    make crash                                   100,000 acknowledged jobs and 20 kills, of each variant
    make crash ARGS='--legs 50 --variant wipe'   until the file holds 50 legs of that variant
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from bench import calls
from bench.checker import History, Job, Operation, Outage, Report, check
from bench.node import Node, Sink
from bench.report import commit

from tickwheel.v1 import job_service_pb2 as js
from tickwheel.v1.job_pb2 import Job as Message

RESULTS = Path(__file__).parent / "results" / "crash.ndjson"
VARIANTS = ("plain", "wipe")
BATCH = 50
WORKERS = 8
OPERATIONS_A_BATCH = 5
HORIZON_MS = 6_000
SETTLE_S = 3.0
QUIET_S = 60.0
LIE_SAMPLES = 300
KILL_IN_RECOVERY = 0.2


@dataclass(frozen=True, slots=True)
class Leg:
    """What one leg does. `acknowledged` one-offs at about `rate` a second, `kills` at random moments among them."""

    seed: int
    acknowledged: int
    kills: int
    rate: int = 1_500
    recurring: int = 40
    wipe: bool = False


@dataclass(slots=True)
class Story:
    """What happened in a leg, as the driver knows it."""

    jobs: list[Job] = field(default_factory=list[Job])
    acknowledged: int = 0
    outages: list[Outage] = field(default_factory=list[Outage])
    faults: list[str] = field(default_factory=list[str])
    repeats: int = 0
    at_most_once: int = 0


class Driver:
    """The load of one leg."""

    def __init__(self, leg: Leg, node: Node, sink: Sink) -> None:
        self.leg = leg
        self.node = node
        self.sink = sink
        self.rng = random.Random(leg.seed)
        self.story = Story()
        self.api = calls.Api(node.target)
        self.asked = 0
        self.at_most_once = False
        self.others = 0
        """Jobs that the node holds besides."""

        self.progress = asyncio.Condition()

    async def run(self) -> Report:
        """The whole leg; the report of the judge."""
        self.at_most_once = await self.api.takes_at_most_once()
        await self.create_recurring()
        load = [asyncio.create_task(self.work(k)) for k in range(WORKERS)]
        killer = asyncio.create_task(self.kill_now_and_then())
        await asyncio.gather(*load, killer)
        horizon_ms = calls.now_ms() + HORIZON_MS + 500
        await asyncio.sleep((horizon_ms - calls.now_ms()) / 1_000 + SETTLE_S)
        await self.wait_quiet()
        await self.compare_state()
        excuses = await self.api.excuses()
        self.story.repeats = self.api.repeats
        await self.api.close()
        return check(
            History(self.story.jobs, self.sink.records(), horizon_ms, excuses, self.story.outages)
        )

    # --- load ---

    async def create_recurring(self) -> None:
        """Jobs of 1 to 3 s; every fourth has a target that answers after 0.8 s, so that kills find it in flight."""
        for k in range(self.leg.recurring):
            period = self.rng.randrange(1_000, 3_001)
            anchor = calls.now_ms() + self.rng.randrange(500, 3_000)
            job = Job(f"every-{k}", "", anchor, period)
            url = self.sink.url("/slow?ms=800" if k % 4 == 0 else "/ok")
            self.story.jobs.append(job)
            job.uid = (await self.api.create(job.name, calls.every(url, period, anchor))).uid

    async def work(self, number: int) -> None:
        """Create batches at this worker's share of the rate; cancel and move a few of what is due soon."""
        pause_s = BATCH * WORKERS / self.leg.rate
        next_s = time.monotonic() + pause_s * number / WORKERS
        while self.asked < self.leg.acknowledged:
            self.asked += BATCH
            await asyncio.sleep(max(next_s - time.monotonic(), 0))
            next_s += pause_s
            batch = [self.make() for _ in range(BATCH)]
            await self.create([job for job, _ in batch], [request for _, request in batch])
            await asyncio.gather(*(self.disturb(job) for job in self.pick(batch)))

    def make(self) -> tuple[Job, js.CreateJobRequest]:
        """One one-off of a random kind, due at once or within some seconds."""
        delay_ms = 0 if self.rng.random() < 0.1 else self.rng.randrange(HORIZON_MS)
        kind = self.rng.random()
        path = "/fail?times=1" if kind < 0.05 else "/slow?ms=300" if kind < 0.08 else "/ok"
        job = Job(
            f"once-{len(self.story.jobs)}",
            "",
            calls.now_ms() + delay_ms,
            at_most_once=self.at_most_once and kind > 0.9,
        )
        self.story.jobs.append(job)
        self.story.at_most_once += job.at_most_once
        message: Message = calls.once(
            self.sink.url(path), job.due_ms, body=b"x" * 100, at_most_once=job.at_most_once
        )
        return job, calls.request(job.name, message)

    async def create(self, jobs: Sequence[Job], requests: Sequence[js.CreateJobRequest]) -> None:
        try:
            uids = await self.api.create_many(requests)
        except calls.GaveUp as error:
            self.story.faults.append(f"a create was never answered: {error}")
            return
        for job, uid in zip(jobs, uids, strict=True):
            job.uid = uid
        async with self.progress:
            self.story.acknowledged += len(jobs)
            self.progress.notify_all()

    def pick(self, batch: Sequence[tuple[Job, js.CreateJobRequest]]) -> list[Job]:
        """Some just created, some older ones that fall due about now."""
        now = calls.now_ms()
        recent = self.story.jobs[-self.leg.rate * HORIZON_MS // 1_000 :]
        older = self.rng.sample(recent, min(50, len(recent)))
        soon = [j for j in older if -50 < j.due_ms - now < 300 and not j.period_ms]
        fresh = self.rng.sample([job for job, _ in batch], 2)
        mine = [j for j in (soon + fresh) if j.uid and not j.operations]
        return list({j.name: j for j in mine}.values())[:OPERATIONS_A_BATCH]

    async def disturb(self, job: Job) -> None:
        """Cancel it, or give it another time. The model learns the answer; without one, that it is unknown."""
        move = self.rng.random() < 0.5
        sent = calls.now_ms()
        due = sent + self.rng.randrange(200, HORIZON_MS) if move else 0
        kind = "update" if move else "cancel"
        place = len(job.operations)  # others may append meanwhile
        job.operations.append(Operation(kind, sent, due_ms=due))
        try:
            call = self.api.move(job.name, due) if move else self.api.cancel(job.name)
            answer = await call
            job.operations[place] = calls.operation(kind, sent, answer, due)
        except calls.GaveUp:
            return
        except grpc.aio.AioRpcError as error:
            if move and error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                return  # the first try took effect, its answer was lost, and it has fired since
            what = f"{kind} of the acknowledged {job.name}: {error.code().name} {error.details()}"
            self.story.faults.append(what)

    # --- trouble ---

    async def kill_now_and_then(self) -> None:
        """`kills` times, each when a random share of all jobs is acknowledged."""
        moments = sorted(self.rng.random() for _ in range(self.leg.kills))
        for moment in moments:
            wanted = int(moment * self.leg.acknowledged)
            async with self.progress:
                await self.progress.wait_for(partial(self.reached, wanted))
            await asyncio.sleep(self.rng.random() * 0.2)
            await asyncio.to_thread(self.kill_once)

    def reached(self, count: int) -> bool:
        """Whether so many are acknowledged."""
        return self.story.acknowledged >= count

    def kill_once(self) -> None:
        """Kill, perhaps more often while it recovers, and bring it back. Each kill is an outage of its own."""
        kills = [self.kill()]
        while self.rng.random() < KILL_IN_RECOVERY:
            self.node.spawn()
            time.sleep(self.rng.random() * 1.5)
            kills.append(self.kill())
        self.node.start()
        self.story.outages += [Outage(kill_ms, calls.now_ms()) for kill_ms in kills]

    def kill(self) -> int:
        """`kill -9`; the moment after it, when nothing more is sent."""
        self.node.kill()
        self.wipe()
        return calls.now_ms()

    def wipe(self) -> None:
        """Lose what SQLite has not fsynced."""
        if self.leg.wipe:
            for pattern in ("*.db-wal", "*.db-shm"):
                for path in self.node.data_dir.rglob(pattern):
                    path.unlink()

    # --- the end ---

    async def wait_quiet(self) -> None:
        """Until each one-off that must arrive has, or a minute is over (what is missing then is lost)."""
        until = time.monotonic() + QUIET_S
        before = -1
        while time.monotonic() < until:
            missing = check(
                History(self.story.jobs, self.sink.records(), calls.now_ms() - 5_000)
            ).counts["lost"]
            if not missing or missing == before:
                return
            before = missing
            await asyncio.sleep(10.0)

    async def compare_state(self) -> None:
        """The node's own view against the model: how many jobs there are, and a sample of them one by one."""
        known = [job for job in self.story.jobs if job.uid]
        count = await self.api.count() - self.others
        if not len(known) <= count <= len(self.story.jobs):
            self.story.faults.append(f"the node counts {count} jobs, {len(known)} are acknowledged")
        for job in self.rng.sample(known, min(LIE_SAMPLES, len(known))):
            try:
                found = await self.api.get(job.name)
            except grpc.aio.AioRpcError as error:
                self.story.faults.append(f"get of the acknowledged {job.name}: {error.code().name}")
                continue
            if found.uid != job.uid:
                self.story.faults.append(f"{job.name} has the uid {found.uid}, not {job.uid}")


async def run_leg(leg: Leg, directory: Path) -> tuple[Report, Story]:
    """One leg in a directory of its own."""
    with Sink() as sink, Node(directory / "data") as node:
        node.start()
        driver = Driver(leg, node, sink)
        try:
            return await driver.run(), driver.story
        except BaseException as error:
            error.add_note(node.tail())
            raise


def line(leg: Leg, report: Report, story: Story, wall_s: float) -> dict[str, Any]:
    """What a leg leaves in the results file."""
    down = sorted(o.end_ms - o.start_ms for o in story.outages)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "variant": VARIANTS[leg.wipe],
        "seed": leg.seed,
        "kills": len(story.outages),
        "clean": report.clean and not story.faults,
        **report.summary(),
        "faults": story.faults[:10],
        "repeats": story.repeats,
        "at_most_once_jobs": story.at_most_once,
        "down_ms": {"p50": down[len(down) // 2], "max": down[-1]} if down else {},
        "wall_s": round(wall_s, 1),
    }


def legs_done(results: Path, variant: str) -> int:
    """How many legs of a variant the file holds."""
    if not results.exists():
        return 0
    rows = (json.loads(row) for row in results.read_text().splitlines())
    return sum(row["variant"] == variant for row in rows)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make crash", description=__doc__)
    parser.add_argument("--legs", type=int, default=1, help="of each variant, in the file")
    parser.add_argument("--variant", choices=VARIANTS, action="append")
    parser.add_argument("--acknowledged", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rate", type=int, default=1_500)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="put the data directories there, and leave them")
    asked = parser.parse_args()
    clean = True
    for variant in asked.variant or VARIANTS:
        for number in range(legs_done(asked.results, variant), asked.legs):
            leg = Leg(number, asked.acknowledged, asked.kills, asked.rate, wipe=variant == "wipe")
            clean &= one(leg, asked.results, asked.keep)
    return 0 if clean else 1


def one(leg: Leg, results: Path, keep: Path | None) -> bool:
    """Run a leg and append its line."""
    with tempfile.TemporaryDirectory(prefix="tickwheel-crash-") as temporary:
        directory = Path(temporary)
        if keep is not None:
            directory = keep / f"{VARIANTS[leg.wipe]}-{leg.seed}"
            directory.mkdir(parents=True)
        start = time.monotonic()
        report, story = asyncio.run(run_leg(leg, directory))
    row = line(leg, report, story, time.monotonic() - start)
    results.parent.mkdir(exist_ok=True)
    with results.open("a") as out:
        out.write(json.dumps(row) + "\n")
    sys.stdout.write(json.dumps(row, indent=1) + "\n")
    for kind, examples in report.examples.items():
        sys.stderr.write("\n  ".join([kind, *examples]) + "\n")
    return bool(row["clean"])


if __name__ == "__main__":
    sys.exit(main())
