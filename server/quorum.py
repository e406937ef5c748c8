"""Floor 2, pure. How many voters are enough.

    voters   Qc commits   Qf fences = n - Qc + 1: any Qf of them meets any Qc of them
      1          1          1
      2          2          1        a commit is on both, so either of them alone knows all
      3          2          2
      5          3          3

Must never import: anything of this project.
"""

from collections.abc import Sequence


def commit_quorum(voters: int) -> int:
    """Qc: of so many voters, how many hold an entry on disk before it is committed."""
    assert voters > 0, "a shard has a voter"
    return voters // 2 + 1


def fence_quorum(voters: int) -> int:
    """Qf: of so many voters, how many promise before a take-over goes on."""
    return voters - commit_quorum(voters) + 1


def reached(values: Sequence[int]) -> int:
    """The highest value that Qc of the voters reach, when each voter is at one of these."""
    return sorted(values, reverse=True)[commit_quorum(len(values)) - 1]
