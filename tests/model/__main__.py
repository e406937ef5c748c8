"""Explore the model of the cluster's protocol. `make model ARGS='--variant two --walks 5000'`.

    python -m tests.model                            every variant for --seconds each, results into the file
    python -m tests.model --variant log --seed 7 --walks 1 --trace      one walk, move by move
    python -m tests.model --mutation no_joint        a broken rule: the counterexample, shortened
    python -m tests.model --mutation all             every broken rule; exit code 1 if one is not caught
    python -m tests.model --exhaustive               every reachable state of the small scopes (names begin with x-)

A line of the results: {commit, variant, mutation, how, walks or states, depth, seeds, verdict, length, seconds}.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.model.explore import Found, Tally, replay, search, shorten, walk
from tests.model.log_moves import Move
from tests.model.mutations import MUTATIONS, Mutation
from tests.model.scopes import SEARCHES, VARIANTS
from tests.model.state import Breach, Node, State
from tests.model.world import World

RESULTS = Path(__file__).parent / "results" / "campaign.ndjson"
STATES_MAX = 4_000_000
Line = dict[str, object]


@dataclass(frozen=True)
class Options:
    """How long, from which seed on, and where the results go."""

    walks: int
    seconds: float
    seed: int
    results: Path
    trace: bool


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def commit_now() -> str:
    """The commit under test; a `+` says that the model differs from it."""
    changed = _git("status", "--porcelain", "--", "tests/model/*.py")
    return (_git("rev-parse", "--short=12", "HEAD") or "none") + ("+" if changed else "")


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], capture_output=True, text=True, check=False
    ).stdout.strip()


def world_of(variant: str, mutation: str = "") -> World:
    """The world of a variant or small scope, with a rule broken perhaps."""
    scope = VARIANTS[variant] if variant in VARIANTS else SEARCHES[variant]
    masked = frozenset(MUTATIONS[mutation].masked) if mutation else frozenset[str]()
    return World(scope, mutation, masked)


def walk_many(world: World, options: Options) -> tuple[Line, Found | None]:
    """Walks until one finds a breach, or walks or seconds are used up."""
    tally, start, seed = Tally(), time.monotonic(), options.seed
    found: Found | None = None
    while seed < options.seed + options.walks and time.monotonic() - start < options.seconds:
        found = walk(world, seed, tally)
        seed += 1
        if found:
            break
    line: Line = {
        "how": "walks",
        "walks": seed - options.seed,
        "seeds": f"{options.seed}-{seed - 1}",
    }
    if not found:
        line |= {"steps": tally.steps, "committed_max": tally.committed_max}
        line |= {"epochs_max": tally.epochs_max, "never": never(world, tally)}
    return line, found


def never(world: World, tally: Tally) -> list[str]:
    """The kinds of moves that no walk made: what a silent campaign says nothing about."""
    return sorted(
        k for k, w in world.scope.weights.items() if w and not tally.moves[k] and k != "arm"
    )


def search_all(world: World, options: Options) -> tuple[Line, Found | None]:
    """Breadth first, until everything was seen or the seconds are used up."""
    start = time.monotonic()
    stop: Callable[[], bool] = lambda: time.monotonic() - start > options.seconds  # noqa: E731
    kinds = [kind for kind in world.scope.weights if kind in world.kinds]
    result = search(world, STATES_MAX, kinds, stop)
    line: Line = {"how": "search", "states": result.states, "depth": result.depth}
    return line | {"whole": result.whole}, result.found


def run(variant: str, mutation: str, options: Options) -> Found | None:
    """One line of the results, and the counterexample on the screen."""
    world, start = world_of(variant, mutation), time.monotonic()
    line, found = (search_all if variant in SEARCHES else walk_many)(world, options)
    if found:
        found = shorten(world, found)
    verdict = str(found.breach) if found else "no violation"
    line = {"commit": commit_now(), "variant": variant, "mutation": mutation or None, **line}
    line |= {"verdict": verdict, "length": len(found.moves) if found else None}
    line["seconds"] = round(time.monotonic() - start, 1)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    say(json.dumps(line))
    if found and options.trace:
        say("\n".join(told(world, found.moves)))
    return found


# --- a counterexample one can read ------------------------------------------------------------------


def told(world: World, moves: list[Move]) -> Iterator[str]:
    """Each move, and the nodes that it changed."""
    before = world.start()
    yield "   start  " + "; ".join(
        told_node(n, node) for n, node in zip(world.names, before.nodes, strict=True)
    )
    number = 0
    try:
        for number, (move, after) in enumerate(replay(world, moves), 1):
            yield f"{number:4}  {told_move(move)}"
            yield from changes(world, before, after)
            before = after
    except Breach as breach:
        yield f"{number + 1:4}  {told_move(moves[number])}"
        yield f"      BREACH {breach}"


def told_move(move: Move) -> str:
    """A move in words."""
    msg, txn = move.msg, move.txn
    words = [move.kind, move.node, f"-> {move.peer}" if move.peer else "", move.how, move.voters]
    if msg:
        words.append(
            f"{msg.kind} {msg.src}->{msg.dst} epoch {msg.epoch} index {msg.idx} age {msg.age}"
        )
    if txn:
        words.append(f"{txn.kind} by {txn.by}: epoch {txn.epoch}, voters {txn.voters}")
    if move.first or move.many:
        words.append(f"{move.first}+{move.many}")
    return " ".join(word for word in words if word)


def changes(world: World, old: State, new: State) -> Iterator[str]:
    """What a move has changed."""
    for name, before, after in zip(world.names, old.nodes, new.nodes, strict=True):
        if before != after:
            yield f"        {told_node(name, after)}"
    if old.rec != new.rec:
        rec = new.rec
        state = "released" if rec.released else "held" if rec.held else "session gone"
        yield f"        etcd: epoch {rec.epoch}, leader {rec.leader} ({state}), voters {rec.voters}"


def told_node(name: str, node: Node) -> str:
    """A node in one line: synced entries, then `|`, then those not synced."""
    log = node.mem.log
    entries = [f"{entry.epoch}{entry.kind}{entry.by}" for entry in log]
    synced = sum(a == b for a, b in zip(log, node.disk.log, strict=False))
    text = f"{name}: promise {node.mem.promise}, [{' '.join(entries[:synced])} | {' '.join(entries[synced:])}]"
    text += f", commit {node.commit}, hold {node.hold}"
    lead = node.lead
    if lead:
        role = "leads" if lead.leading else "fences"
        text += f", {role} {lead.epoch} with {lead.cfg}{'+' + lead.want if lead.want else ''}"
        text += f", match {lead.match}, lease {lead.left}"
    return text


# --- the command -----------------------------------------------------------------------------------


def catch(mutation: Mutation, variant: str, options: Options) -> bool:
    """Is the broken rule caught?"""
    return run(variant or mutation.variant, mutation.name, options) is not None


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.model", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--walks", type=int, default=1_000_000, help="at most so many walks a variant"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="at most so long a variant")
    parser.add_argument("--seed", type=int, default=0, help="the first walk's seed")
    parser.add_argument("--variant", default="", help=", ".join([*VARIANTS, *SEARCHES]))
    parser.add_argument("--mutation", default="", help="a broken rule's name, or all")
    parser.add_argument("--exhaustive", action="store_true", help="the small scopes, every state")
    parser.add_argument("--trace", action="store_true", help="tell the counterexample")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    options = Options(given.walks, given.seconds, given.seed, given.results, given.trace)
    if given.mutation:
        names = list(MUTATIONS) if given.mutation == "all" else [given.mutation]
        caught = [catch(MUTATIONS[name], given.variant, options) for name in names]
        return 0 if all(caught) else 1
    variants = (
        [given.variant] if given.variant else list(SEARCHES if given.exhaustive else VARIANTS)
    )
    breaches = [run(variant, "", options) for variant in variants]
    return 1 if any(breaches) else 0


if __name__ == "__main__":
    sys.exit(main())
