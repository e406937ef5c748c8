"""Programs in Node.js, Go and Java on generated stubs: the same story against three nodes, one of which is killed.

Each program of `examples/languages` creates, reads, lists, cancels and watches jobs, and checks what it was answered;
here it is built with its language's own tools, a node is killed when it says so (the one that serves its watch), and what
it says of its jobs is held against what the target saw, against the shards as Python computes them, and against the
executions that must have been watched. `make languages` runs this.
"""

import os
import shlex
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from bench import calls
from bench.checker import BEFORE_DISPATCH, Job, Operation, Outage
from bench.cluster import Cluster
from bench.etcd import find_etcd
from bench.node import ROOT, Sink, wait_until
from google.api import annotations_pb2
from tests.e2e.harness import SETTLE_S, assert_clean, judge

HERE = ROOT / "examples" / "languages"
GENERATOR = ROOT / ".tools" / "gen" / "bin" / "python"
SHARDS = 16
JOBS = 240
CANCELLED = 48
BUILD_S = 400.0
RUN_S = 180.0
FAIL_OVER_S = 30.0
READY = "ready to lose a node"
DONE = "every check holds"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(700),
    pytest.mark.skipif(
        find_etcd() is None, reason="no etcd on this machine, and none in the environment"
    ),
]


class Language(NamedTuple):
    """How a program is built and run, in its own directory; what that needs on the PATH, and whether a protoc too."""

    name: str
    needs: tuple[str, ...]
    build: tuple[str, ...]
    run: tuple[str, ...]
    protoc: bool = True


LANGUAGES = (
    Language(
        "node",
        ("node", "npm"),
        ("npm ci --no-audit --no-fund --loglevel=error", "npm run generate"),
        ("node", "scenario.mjs"),
    ),
    Language(
        "go", ("go",), ("sh generate.sh", "go build -o build/scenario ."), ("build/scenario",)
    ),
    Language(
        "java",
        ("java", "javac", "mvn"),
        ("mvn --quiet --batch-mode package",),
        ("java", "-cp", "build/classes:build/lib/*", "tickwheel.example.Scenario"),
        protoc=False,
    ),
)


def environment() -> dict[str, str]:
    """This process's, with a protoc and the protos of google/api in reach of the builds."""
    protos = Path(annotations_pb2.__file__).parents[2]
    protoc = shlex.join([str(GENERATOR), "-m", "grpc_tools.protoc"])
    return {"PROTOC": protoc, "GOOGLEAPIS": str(protos), **os.environ}


def missing(language: Language) -> str:
    """Why the program cannot be built here. Empty when it can."""
    absent = [tool for tool in language.needs if shutil.which(tool) is None]
    if absent:
        return f"this machine has no {' and no '.join(absent)} on its PATH"
    if language.protoc and "PROTOC" not in os.environ and not GENERATOR.exists():
        return "no protoc: set PROTOC, or let `make languages` bring one"
    return ""


def build(language: Language) -> None:
    """Generate the stubs and build the program in place (below its `build`, which git ignores)."""
    for command in language.build:
        done = subprocess.run(
            shlex.split(command), cwd=HERE / language.name, env=environment(), timeout=BUILD_S,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-4_000:]}"


@dataclass
class Story:
    """What a program said, line by line: jobs, cancels, what was watched, numbers, all else."""

    jobs: dict[str, Job] = field(default_factory=dict[str, Job])
    shards: dict[str, int] = field(default_factory=dict[str, int])
    seen: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    numbers: dict[str, int] = field(default_factory=dict[str, int])
    rest: list[str] = field(default_factory=list[str])

    def enter(self, line: str) -> None:
        """Take one line; examples/languages/README.md says what they are."""
        match line.split():
            case ["job", name, uid, due_ms, shard]:
                assert name not in self.jobs, f"{name} was told twice"
                self.jobs[name] = Job(name, uid, int(due_ms))
                self.shards[name] = int(shard)
            case ["cancel", name, sent_ms, answered_ms, answer]:
                told = Operation("cancel", int(sent_ms), int(answered_ms), answer)
                self.jobs[name].operations.append(told)
            case ["seen", name, execution, state]:
                self.seen.append((name, execution, state))
            case ["repeats" | "watches" as what, number]:
                self.numbers[what] = int(number)
            case _:
                self.rest.append(line)


def tell(language: Language, arguments: list[str], ready: Callable[[], None], log: Path) -> Story:
    """Run the program to its end; call `ready` when it says that it is. It must end well."""
    story = Story()
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [*language.run, *arguments], cwd=HERE / language.name, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=errors, text=True,
        ) as program,
    ):  # fmt: skip
        assert program.stdout is not None
        try:
            for line in program.stdout:
                story.enter(line.strip())
                if line.strip() == READY:
                    ready()
            code = program.wait(RUN_S)
        finally:
            program.kill()
    assert code == 0, "\n".join([f"exit code {code}", *story.rest, log.read_text()[-4_000:]])
    assert READY in story.rest
    assert DONE in story.rest
    return story


def lose_the_busiest(cluster: Cluster, outages: list[Outage]) -> None:
    """Kill -9 the node that leads most, and wait until its shards are led again."""
    leads = cluster.leads()
    victim = max(cluster.nodes, key=lambda node: leads[node.name])
    assert leads[victim.name] > 0
    dead_ms = calls.now_ms()
    victim.kill()
    wait_until(lambda: cluster.leads()[victim.name] == 0, FAIL_OVER_S, "the dead node to lead none")
    cluster.wait_served(FAIL_OVER_S)
    outages.append(Outage(dead_ms, calls.now_ms()))


def hold_shards(told: Mapping[str, int], namespace: str) -> None:
    """The shards that the program computed are those of zlib."""
    expected = {name: zlib.crc32(f"{namespace}/{name}".encode()) % SHARDS for name in told}
    assert told == expected
    assert len(set(expected.values())) == SHARDS, "too few jobs to meet every shard"


def hold_watch(story: Story) -> None:
    """Each job but the cancelled ones was seen to succeed, as the execution that its uid and its time make, and no other."""
    assert {state for _, _, state in story.seen} <= {"PENDING", "RUNNING", "RETRYING", "SUCCEEDED"}
    expected = {(j.name, f"{j.uid}:{j.due_ms}") for j in story.jobs.values() if not j.operations}
    assert {(name, execution) for name, execution, _ in story.seen} == expected
    assert {(name, e) for name, e, state in story.seen if state == "SUCCEEDED"} == expected


@pytest.mark.parametrize("language", LANGUAGES, ids=[language.name for language in LANGUAGES])
def test_the_program_outlives_a_leader(language: Language, tmp_path: Path, sink: Sink) -> None:
    why = missing(language)
    if why:
        pytest.skip(why)
    build(language)
    outages: list[Outage] = []
    with Cluster(tmp_path, options=["--shards", str(SHARDS)]) as cluster:
        cluster.start()
        leads = cluster.leads()  # the busiest first: there the program opens its watches
        nodes = sorted(cluster.nodes, key=lambda node: -leads[node.name])
        arguments = [",".join(node.target for node in nodes), sink.url(), language.name]
        story = tell(
            language, arguments, lambda: lose_the_busiest(cluster, outages), tmp_path / "errors"
        )
        numbers = [f"{what} {number}" for what, number in story.numbers.items()]
        sys.stdout.write("\n".join([*story.rest, *numbers, ""]))
        jobs = list(story.jobs.values())
        horizon_ms = max(job.due_ms for job in jobs) + 2_500
        wait_until(lambda: calls.now_ms() > horizon_ms, 60.0, "the last cancelled job's time")
        wait_until(lambda: sink.count() >= JOBS - CANCELLED, SETTLE_S, "all requests")
        report = judge(jobs, sink, outages)
    assert_clean(report)
    assert len(jobs) == len({job.uid for job in jobs}) == JOBS
    assert report.executions == JOBS - CANCELLED
    answers = [operation.answer for job in jobs for operation in job.operations]
    assert answers == [BEFORE_DISPATCH] * CANCELLED
    hold_shards(story.shards, language.name)
    hold_watch(story)
    assert story.numbers["repeats"] > 0, "no call met the dead node: nothing was shown"
    assert story.numbers["watches"] > 1, "the watch outlived its node: nothing was resumed"
