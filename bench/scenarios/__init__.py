"""The scenarios of `python -m bench`: each a function of a rig that returns rows of figures."""

from collections.abc import Callable

from bench.report import Row
from bench.rig import Rig
from bench.scenarios import creates, firing, follow, replication, scale

Scenario = Callable[[Rig], list[Row]]
SCENARIOS: dict[str, Scenario] = {
    "bulk": creates.bulk,
    "single": creates.single,
    "steady": firing.steady,
    "burst": firing.burst,
    "memory": scale.memory,
    "memory-hour": scale.memory_hour,
    "restart": scale.restart,
    "replication": replication.replication,
    "follow": follow.follow,
}
