"""Random expressions, zones and policies against the slow truth, and ordinary days against another implementation."""

from datetime import UTC, datetime
from itertools import islice, takewhile

from cronsim import CronSim, CronSimError
from hypothesis import assume, given, target
from hypothesis import strategies as st
from tests.property.schedule_oracle import DAY_S, Expression, Wall, rules, transitions

from tickwheel.server import cron, schedule, zone
from tickwheel.server.model import Cron, CronDialect, DstGap, DstOverlap, Every, Once, Window

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
RESTLESS = (
    "Africa/Casablanca", "America/Havana", "America/New_York", "America/Nuuk", "America/Sao_Paulo",
    "Antarctica/Troll", "Asia/Beirut", "Asia/Gaza", "Asia/Tehran", "Australia/Lord_Howe",
    "Europe/Berlin", "Europe/Dublin", "Pacific/Apia", "Pacific/Chatham",
)  # fmt: skip
SINCE_S = int(datetime(1985, 1, 1, tzinfo=UTC).timestamp())
UNTIL_S = int(datetime(2036, 1, 1, tzinfo=UTC).timestamp())


def spelled(low: int, high: int, names: tuple[str, ...] = ()) -> st.SearchStrategy[str]:
    """A value as a number or by its name."""
    values = st.integers(low, high)
    if not names:
        return values.map(str)
    return values.flatmap(lambda n: st.sampled_from([str(n), names[(n - low) % len(names)]]))


def items(low: int, high: int, names: tuple[str, ...] = ()) -> st.SearchStrategy[str]:
    """`a`, `a-b`, `a-b/n`, `*/n`."""
    pair = st.tuples(st.integers(low, high), st.integers(low, high)).map(sorted)
    spans = pair.map(lambda p: f"{p[0]}-{p[1]}")
    steps = pair.filter(lambda p: p[1] > p[0]).flatmap(
        lambda p: st.integers(1, p[1] - p[0]).map(lambda n: f"{p[0]}-{p[1]}/{n}")
    )
    stars = st.integers(1, min(high - low, 6)).map(lambda n: f"*/{n}")
    return st.one_of(spelled(low, high, names), spans, steps, stars)


def field(item: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(st.just("*"), st.lists(item, min_size=1, max_size=3).map(",".join))


MINUTE, HOUR = field(items(0, 59)), field(items(0, 23))
MONTH = field(items(1, 12, MONTHS))
PLAIN_DAY = field(items(1, 31))
PLAIN_WEEKDAY = field(items(0, 6, WEEKDAYS))
DAY = field(
    st.one_of(items(1, 31), st.just("L"), st.integers(1, 30).map(lambda n: f"L-{n}"))
) | st.just("?")
WEEKDAY = field(
    st.one_of(
        items(0, 6, WEEKDAYS),
        st.just("7"),
        st.just("FRI-SUN"),
        spelled(0, 6, WEEKDAYS).map(lambda d: d + "L"),
        st.tuples(spelled(0, 6, WEEKDAYS), st.integers(1, 5)).map(lambda p: f"{p[0]}#{p[1]}"),
    )
) | st.just("?")
FIVE = st.tuples(MINUTE, HOUR, DAY, MONTH, WEEKDAY).map(" ".join)
DAILY = st.tuples(MINUTE, HOUR, st.just("*"), st.just("*"), st.just("*")).map(" ".join)
SIX = st.tuples(field(items(0, 59)), MINUTE, HOUR).map(lambda f: " ".join(f) + " * * *")


@st.composite
def moments(draw: st.DrawFn) -> tuple[str, int]:
    """A zone and an instant: mostly near one of its changes."""
    name = draw(st.one_of(st.sampled_from(RESTLESS), st.sampled_from(sorted(zone.names()))))
    changes = [t.at_s for t in transitions(name) if SINCE_S <= t.at_s < UNTIL_S]
    at_s = draw(st.integers(SINCE_S, UNTIL_S))
    if changes and draw(st.integers(0, 3)) > 0:
        at_s = changes[draw(st.integers(0, len(changes) - 1))]
    return name, at_s // 60 * 60


@given(
    moments(),
    FIVE | DAILY,
    st.sampled_from(DstGap),
    st.sampled_from(DstOverlap),
    st.integers(-1_500, 1_500),
)
def test_a_plan_is_the_slow_truth(
    moment: tuple[str, int], text: str, gap: DstGap, overlap: DstOverlap, cut_min: int
) -> None:
    name, at_s = moment
    wall = Wall(rules(name), at_s - 2 * DAY_S, at_s + 2 * DAY_S)
    expression = Expression(text)
    truth = [s * 1_000 for s in wall.occurrences(expression, gap, overlap)]
    target(min(len(truth), 10))
    first_ms, last_ms = wall.ticks[0][0] * 1_000, wall.ticks[-1][0] * 1_000
    plan = schedule.compile(Cron(text, name, dst_gap=gap, dst_overlap=overlap), Window())

    assert list(takewhile(lambda t: t <= last_ms, plan.walk(first_ms - 1))) == truth
    cut_ms = at_s * 1_000 + cut_min * 60_000 + 1
    after = [t for t in truth if t > cut_ms]
    before = [t for t in truth if t <= cut_ms]
    found = plan.next_after(cut_ms)
    assert found == after[0] if after else found is None or found > last_ms
    found = plan.prev_at_or_before(cut_ms)
    assert found == before[-1] if before else found is None or found < first_ms
    assert plan.count_between(first_ms - 1, cut_ms, 9_999) == len(before)
    assert plan.count_between(cut_ms, last_ms, 9_999) == len(after)
    assert plan.count_between(first_ms - 1, last_ms, 2) == min(len(truth), 2)


@given(moments(), SIX, st.sampled_from(DstGap), st.sampled_from(DstOverlap))
def test_seconds_are_the_slow_truth(
    moment: tuple[str, int], text: str, gap: DstGap, overlap: DstOverlap
) -> None:
    name, at_s = moment
    # two changes never lie so near, but the overlap of one may reach out of a short stretch
    assume(all(abs(t.after_s - t.before_s) <= 7_200 for t in transitions(name)))
    wall = Wall(rules(name), at_s - 9_000, at_s + 9_000, tick_s=1)
    truth = wall.occurrences(Expression(text), gap, overlap)
    spec = Cron(text, name, CronDialect.SECONDS_FIRST, gap, overlap)
    plan = schedule.compile(spec, Window())
    first_ms, last_ms = wall.ticks[0][0] * 1_000, wall.ticks[-1][0] * 1_000
    assert plan.count_between(first_ms - 1, last_ms, 99_999) == len(truth)
    found = islice(plan.walk(first_ms - 1), 300)
    assert [t // 1_000 for t in found if t <= last_ms] == truth[:300]


@given(
    st.tuples(MINUTE, HOUR, PLAIN_DAY, MONTH, PLAIN_WEEKDAY).map(" ".join),
    st.integers(SINCE_S, UNTIL_S),
)
def test_ordinary_days_agree_with_cronsim(text: str, since_s: int) -> None:
    plan = schedule.compile(Cron(text), Window())
    since = datetime.fromtimestamp(since_s, UTC)
    found = [t // 1_000 for t in islice(plan.walk(since_s * 1_000), 5)]
    try:
        theirs = [int(t.timestamp()) for t in islice(CronSim(text, since), 5)]
    except CronSimError:  # no month is long enough
        theirs = []
    assert found == theirs
    if len(found) > 1:
        assert plan.prev_at_or_before(found[-1] * 1_000 - 1) == found[-2] * 1_000


@given(FIVE, st.integers(-4_000_000_000, 200_000_000_000), st.integers(0, 40 * 366 * DAY_S))
def test_a_calendar_counts_what_it_walks(text: str, from_s: int, width_s: int) -> None:
    calendar = cron.parse(text, CronDialect.FIVE_FIELDS)
    total = calendar.count(from_s, from_s + width_s)
    middle = from_s + width_s // 3
    assert total == calendar.count(from_s, middle) + calendar.count(middle, from_s + width_s)
    found = calendar.ceil(from_s)
    assert (found is not None and found < from_s + width_s) == (total > 0)
    if found is not None:
        assert calendar.count(from_s, found) == 0
        assert calendar.count(from_s, found + 1) == 1
        assert calendar.floor(found) == found
        before = calendar.floor(found - 1)
        assert before is None or before < from_s


@st.composite
def windows(draw: st.DrawFn, around_ms: int) -> Window:
    def instant() -> int:
        return around_ms + draw(st.integers(-40, 40)) * 3_600_000

    edges = sorted((instant(), instant()))
    start_ms = edges[0] if draw(st.booleans()) else 0
    end_ms = edges[1] if draw(st.booleans()) else 0
    offsets = draw(st.frozensets(st.integers(-3, 3), max_size=3))
    days = [around_ms // 1_000 + n * DAY_S for n in offsets]
    dates = frozenset(f"{datetime.fromtimestamp(d, UTC):%Y-%m-%d}" for d in days)
    hours = draw(st.frozensets(st.integers(-40, 40), max_size=5))
    return Window(start_ms, end_ms, dates, frozenset(around_ms + h * 3_600_000 for h in hours))


@given(st.data(), st.integers(SINCE_S // 3_600, UNTIL_S // 3_600))
def test_a_window_only_takes_away(data: st.DataObject, hour: int) -> None:
    around_ms = hour * 3_600_000
    window = data.draw(windows(around_ms))
    spec = data.draw(
        st.builds(Cron, DAILY)
        | st.builds(Every, st.sampled_from([600_000, 3_600_000, 86_400_000, 7_000_000]))
    )
    low, high = around_ms - 4 * 86_400_000, around_ms + 4 * 86_400_000
    bare = list(takewhile(lambda t: t <= high, schedule.compile(spec, Window()).walk(low)))
    kept = [
        t
        for t in bare
        if (not window.start_ms or t >= window.start_ms)
        and (not window.end_ms or t <= window.end_ms)
        and t not in window.excluded_ms
        and f"{datetime.fromtimestamp(t / 1_000, UTC):%Y-%m-%d}" not in window.excluded_dates
    ]
    plan = schedule.compile(spec, window)
    assert list(takewhile(lambda t: t <= high, plan.walk(low))) == kept
    assert plan.count_between(low, high, 9_999_999) == len(kept)
    cut = data.draw(st.integers(low, high))
    found = plan.prev_at_or_before(cut)
    before = [t for t in kept if t <= cut]
    assert found == before[-1] if before else found is None or found <= low


@given(
    st.text(alphabet="0123456789*/,-?LW#@HMONJAFEB ~", max_size=30), st.sampled_from(CronDialect)
)
def test_any_text_is_read_or_refused(text: str, dialect: CronDialect) -> None:
    """One malformed expression must never do more than be refused."""
    found = schedule.check(Cron(text, dialect=dialect), Window())
    assert all(v.description and v.reason and v.field for v in found)
    if not found:
        schedule.compile(Cron(text, dialect=dialect), Window()).occurrences(0, 2)


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_zone_and_civil_time_are_read_or_refused(civil: str, name: str) -> None:
    assert schedule.check(Once(civil=civil or "?", time_zone=name), Window())
