"""A histogram of µs up to an hour, three digits exact: HdrHistogram behind a typed name."""

from typing import Any, cast

from hdrh import histogram

MAX_US = 3_600_000_000
DIGITS = 3
QUANTILES = {"p50": 50.0, "p99": 99.0, "p999": 99.9, "max": 100.0}


class Histogram:
    """Record µs, read ms."""

    def __init__(self) -> None:
        self._inner = cast("Any", histogram).HdrHistogram(1, MAX_US, DIGITS)

    def record(self, us: int) -> None:
        """Enter a value; below 1 it counts as 1, above an hour as an hour."""
        self._inner.record_value(min(max(us, 1), MAX_US))

    @property
    def count(self) -> int:
        """How many values."""
        return int(self._inner.get_total_count())

    def ms(self) -> dict[str, float]:
        """Count, p50, p99, p99.9 and the maximum; the count alone when there is none."""
        if not self.count:
            return {"count": 0}
        found = {
            name: int(self._inner.get_value_at_percentile(percentile)) / 1_000
            for name, percentile in QUANTILES.items()
        }
        return {"count": self.count, **found}
