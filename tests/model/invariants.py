"""What must hold after every move. The moves themselves judge L1, L4, L5, L9, I4, I5 and I8."""

from tests.model.state import Breach, Log, Node, State
from tests.model.world import World


def judge(world: World, old: State, new: State) -> None:
    """Raise Breach if a step has broken an invariant."""
    for place, (before, after) in enumerate(zip(old.nodes, new.nodes, strict=True)):
        if before is not after:
            _monotone(world, place, before, after)
            if before.mem.log is not after.mem.log:
                _matching(world, new, place)
    _one_right(world, new)


def _monotone(world: World, place: int, old: Node, new: Node) -> None:
    """L2 and L6: promises and epochs never go back; nothing known to be committed is cut."""
    name = world.names[place]
    rotted = new.life != old.life and (new.mute or not new.disk.log)
    if new.disk.promise < old.disk.promise and not rotted and "L2" not in world.masked:
        raise Breach("L2", f"{name} forgets a promise")
    if new.mem.log is old.mem.log or new.life != old.life:
        return
    if any(a.epoch > b.epoch for a, b in zip(new.mem.log, new.mem.log[1:], strict=False)):
        raise Breach("L2", f"{name} holds epochs out of order")
    if new.mem.log[: old.commit] != old.mem.log[: old.commit]:
        raise Breach("L6", f"{name} cuts its log below its own commit")


def _matching(world: World, state: State, place: int) -> None:
    """L3: the same index and epoch mean the same prefix."""
    mine = state.nodes[place].mem.log
    for other, node in enumerate(state.nodes):
        if other != place and not _prefixes_match(mine, node.mem.log):
            raise Breach(
                "L3", f"{world.names[place]} and {world.names[other]} differ below a match"
            )


def _prefixes_match(one: Log, two: Log) -> bool:
    for index in range(min(len(one), len(two)), 0, -1):
        if one[index - 1].epoch == two[index - 1].epoch:
            return one[:index] == two[:index]
    return True


def _one_right(world: World, state: State) -> None:
    """L7 and reads: one holder of the right at an instant, and it has applied all that anybody acknowledged."""
    holders = [n for n, node, _ in world.leaders(state) if world.rules.entitled(node, n)]
    if not world.scope.hold:
        return
    if len(holders) > 1:
        raise Breach("P3", f"{' and '.join(holders)} hold the right to fire at the same time")
    for name in holders:
        known = state.ghost.committed
        if world.applied(state, name)[: len(known)] != known:
            raise Breach("READ", f"{name} may answer a read without all acknowledged writes")
