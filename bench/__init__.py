"""What measures and what judges: a target that records (sink), a judge (checker), a node as a process (node), load."""
