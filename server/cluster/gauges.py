"""Floor 3. What an operator watches of a cluster, as names, words and values for the metrics.

Alert on: `cluster_shards_leaderless` above 0 for 10 s, `cluster_shards_thin` above 0 for longer than a restart takes,
`cluster_registered` 0, `cluster_rights_lapsed` above 0, `cluster_behind_entries` that grows,
`cluster_replicas_differing` above 0, `cluster_clock_off_seconds` beyond 0.25 either way.

Must never import: gRPC, protobuf, `runner`, `store`, the doors.
"""

from collections.abc import Callable, Sequence

from tickwheel.server.cluster.elect import Election
from tickwheel.server.cluster.host import Host
from tickwheel.server.cluster.view import View

Reading = tuple[str, str, float]


class Gauges:
    """Reads a node's part in its cluster."""

    def __init__(
        self, view: View, host: Host, election: Election, differing: Callable[[], int]
    ) -> None:
        self.forwarded: Callable[[], int] = lambda: 0
        self.wall_off_ms: Callable[[], int] = lambda: 0
        self._differing = differing
        self._view = view
        self._host = host
        self._election = election

    def present(self) -> Sequence[Reading]:
        """Values of this moment."""
        view, host = self._view, self._host
        records = [seen.record for seen in view.shards.values()]
        leaderless = sum(view.is_leaderless(record) for record in records)
        served = [number for number in host.replicas if host.serves(number)]
        lapsed = sum(not host.may_act(number) for number in served)
        return (
            ("cluster_nodes", "Nodes that are registered.", len(view.nodes)),
            ("cluster_registered", "1 while this one is.", int(self._election.held is not None)),
            ("cluster_shards_held", "Shards with a copy here.", len(host.replicas)),
            ("cluster_shards_led", "Shards led here.", len(served)),
            ("cluster_shards_leaderless", "Shards of the cluster without a leader.", leaderless),
            ("cluster_shards_thin", "Shards with fewer copies than min_copies.", len(view.thin)),
            ("cluster_shards_learning", "Shards being copied.", sum(bool(r.learners) for r in records)),
            ("cluster_rights_lapsed", "Led here without a quorum's word.", lapsed),
            ("cluster_clock_off_seconds", "The majority's wall clock less this one's.",
             self.wall_off_ms() / 1_000),
            ("cluster_behind_entries", "Most that a voter lacks of a log led here.", self._behind()),
        )  # fmt: skip

    def totals(self) -> Sequence[Reading]:
        """Values that only grow."""
        host = self._host
        ignored = sum(sum(replica.ignored.values()) for replica in host.replicas.values())
        return (
            ("cluster_leaderships", "Leaderships begun.", host.leaderships),
            ("cluster_leaderships_ended", "Leaderships ended.", host.leaderships_ended),
            ("cluster_replicas_differing", "Comparisons that failed.", self._differing()),
            ("cluster_calls_forwarded", "Calls passed on to a leader.", self.forwarded()),
            ("cluster_messages_ignored", "Messages that said nothing new.", ignored),
        )

    def _behind(self) -> int:
        behind = 0
        for replica in self._host.replicas.values():
            if replica.leads:
                behind = max(behind, replica.last[1] - min(replica.matches().values(), default=0))
        return behind
