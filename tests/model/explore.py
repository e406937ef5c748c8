"""Walks at random, searches exhaustively, and makes counterexamples short.

A walk is named by its seed. Each walk draws its own weights (a quarter as likely, as it is, or thrice), so that walks
differ in style and not only in luck: one may be all crashes and no heartbeats, the next the reverse.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random

from tests.model.invariants import judge
from tests.model.log_moves import Move
from tests.model.state import Breach, State
from tests.model.world import World

STYLES = (0.25, 1.0, 3.0)
DRAWS = 6  # kinds tried blindly for a step, before those that are possible are listed


@dataclass
class Found:
    """A breach and the moves that lead to it."""

    breach: Breach
    moves: list[Move]


@dataclass
class Tally:
    """What a campaign has seen, so that silence is not mistaken for safety."""

    steps: int = 0
    moves: Counter[str] = field(default_factory=Counter[str])
    committed_max: int = 0
    epochs_max: int = 0

    def note(self, state: State, moves: Sequence[Move]) -> None:
        """Count one walk."""
        self.steps += len(moves)
        self.moves.update(move.kind for move in moves)
        self.committed_max = max(self.committed_max, len(state.ghost.committed))
        self.epochs_max = max(self.epochs_max, len(state.ghost.led))


def step(world: World, state: State, move: Move) -> State:
    """Carry a move out and judge the result."""
    after = world.after(state, move)
    judge(world, state, after)
    return after


def walk(world: World, seed: int, tally: Tally | None = None) -> Found | None:
    """One walk; what it found."""
    chance = Random(seed)
    kinds = [kind for kind, weight in world.scope.weights.items() if weight and kind in world.kinds]
    styled = (world.scope.weights[kind] * chance.choice(STYLES) for kind in kinds)
    weights = list(accumulate(styled))
    state, moves = world.start(), list[Move]()
    for _ in range(world.scope.steps):
        move = _draw(world, state, chance, kinds, weights)
        if move is None:
            break
        moves.append(move)
        try:
            state = step(world, state, move)
        except Breach as breach:
            return Found(breach, moves)
    if tally is not None:
        tally.note(state, moves)
    return None


def _draw(
    world: World, state: State, chance: Random, kinds: list[str], weights: list[float]
) -> Move | None:
    for kind in chance.choices(kinds, cum_weights=weights, k=DRAWS):
        options = world.options(state, kind)
        if options:
            return chance.choice(options)
    possible = [(kind, world.options(state, kind)) for kind in kinds]
    possible = [(kind, options) for kind, options in possible if options]
    if not possible:
        return None
    return chance.choice(
        chance.choices(
            [options for _, options in possible],
            [world.scope.weights[kind] for kind, _ in possible],
        )[0]
    )


def replay(world: World, moves: Sequence[Move]) -> Iterator[tuple[Move, State]]:
    """Go through moves that must all be possible; yields each state; raises Breach where the walk did."""
    state = world.start()
    for move in moves:
        if move not in world.options(state, move.kind):
            raise ValueError(f"not possible here: {move}")
        state = step(world, state, move)
        yield move, state


def breaks(world: World, moves: Sequence[Move], name: str) -> int:
    """After how many of the moves the invariant breaks; 0: it does not, or they are not possible."""
    done = 0
    try:
        for _ in replay(world, moves):
            done += 1
    except Breach as breach:
        return done + 1 if breach.name == name else 0
    except ValueError:
        return 0
    return 0


def shorten(world: World, found: Found) -> Found:
    """Leave out what the breach does not need, in halving pieces, until no single move can go."""
    moves = list(found.moves)
    size = max(1, len(moves) // 2)
    while True:
        smaller = _without(world, moves, size, found.breach.name)
        if smaller is not None:
            moves = smaller
        elif size == 1:
            return Found(found.breach, moves)
        else:
            size //= 2


def _without(world: World, moves: list[Move], size: int, name: str) -> list[Move] | None:
    for first in range(len(moves) - size, -1, -1):
        fewer = moves[:first] + moves[first + size :]
        length = breaks(world, fewer, name)
        if length:
            return fewer[:length]
    return None


@dataclass
class Search:
    """The result of an exhaustive search."""

    states: int
    depth: int
    whole: bool  # every reachable state of the scope was seen
    found: Found | None


def search(world: World, states_max: int, kinds: Sequence[str], stop: Callable[[], bool]) -> Search:
    """Breadth first over every reachable state, each kept as a 61-bit hash; the first breach is a shortest one."""
    start = world.start()
    seen = {hash(start)}
    parents, depth = array("q", [-1]), 0
    taken: list[Move] = [Move("start")]
    layer: list[tuple[int, State]] = [(0, start)]
    while layer:
        following: list[tuple[int, State]] = []
        for place, state in layer:
            for move in (m for kind in kinds for m in world.options(state, kind)):
                try:
                    after = step(world, state, move)
                except Breach as breach:
                    moves = [*_path(parents, taken, place), move]
                    return Search(len(seen), depth + 1, False, Found(breach, moves))
                key = hash(after)
                if key not in seen:
                    seen.add(key)
                    parents.append(place)
                    taken.append(move)
                    following.append((len(taken) - 1, after))
            if len(seen) >= states_max or stop():
                return Search(len(seen), depth, False, None)
        layer = following
        depth += bool(layer)
    return Search(len(seen), depth, True, None)


def _path(parents: "array[int]", taken: list[Move], place: int) -> list[Move]:
    moves: list[Move] = []
    while place > 0:
        moves.append(taken[place])
        place = parents[place]
    return moves[::-1]
