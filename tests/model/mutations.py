"""One broken rule each. The explorer must find what breaks; a mutation that survives shows a model too weak."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """`masked`: invariants that merely restate the rule; without them the harm itself must show."""

    name: str
    breaks: str
    variant: str = "log"
    masked: tuple[str, ...] = ()
    seed: int = -1  # a walk that shows it; -1: none kept, or the variant is a small scope


MUTATIONS: dict[str, Mutation] = {
    mutation.name: mutation
    for mutation in (
        Mutation("no_fence", "M1: the new leader starts on one promise, its own or any other", "plain", seed=4),
        Mutation("count_old_epochs", "M2: entries of older epochs are committed by counting, no EPOCH_START", "turns", seed=854),
        Mutation("reconfig_before_noop", "M3: voters change before EPOCH_START is committed", "x-turns", ("L9",)),
        Mutation("no_joint", "M4: commits under the old voters alone while the CAS is under way", "change", ("L9",), seed=130),
        Mutation("fence_one_short", "M5: the fence has one voter too few", "plain", seed=4),
        Mutation("promise_volatile", "M6: a promise is forgotten in a crash", "x-promise", masked=("L2", "L5")),
        Mutation("longest_log", "M7: the longest log is adopted, whatever its last epoch", "turns", seed=612),
        Mutation("no_catch_up", "M8: joint, but the CAS does not wait for the new voters", "change", ("L9",), seed=8),
        Mutation("no_joint_no_catch_up", "M8: neither joint nor caught up", "change", ("L9",), seed=8),
        Mutation("fence_no_promise", "M9: a voter answers a fence without promising", "plain", masked=("L5",), seed=67),
        Mutation("majority_shrink", "M10: a take-over drops voters of a majority set", seed=12),
        Mutation("lease_from_arrival", "the lease is counted from the ack's arrival", "x-late"),
        Mutation("no_hold", "an ack of a heartbeat does not hold off fences", "x-two"),
        Mutation("forget_hold", "a voter does not wait L after its own start", "x-start"),
        Mutation("no_drift_margin", "the leader's lease is as long as the voter's hold-off", "x-drift"),
        Mutation("right_by_old_config", "during a change the right rests on the old voters alone", "x-grow"),
        Mutation("release_before_stop", "`released` is written before the leader has stopped", "x-two"),
        Mutation("waive_any_hold", "`released` waives every hold-off, also one given to an older leader", "x-two"),
        Mutation("early_heartbeat", "heartbeats go out before the fence is complete", "x-early"),
        Mutation("check_when_queued", "the right is checked when a request is queued, not when it is sent", "x-queue"),
        Mutation("ack_before_fsync", "entries are acked before the fsync", "plain", masked=("L5",), seed=32),
        Mutation("promise_before_fsync", "a promise is answered before the fsync", "x-promise", masked=("L5", "L2")),
        Mutation("count_self_unsynced", "the leader counts itself before its own fsync", "plain", masked=("L9",), seed=170),
        Mutation("snap_below_commit", "a snapshot below the commit is installed", seed=46),
        Mutation("snap_keeps_suffix", "the suffix above a snapshot stays though (index, epoch) does not match", seed=402),
        Mutation("old_life_counts", "an ack of a voter's former life counts", "x-seed"),
        Mutation("wiped_keeps_name", "a store that lost its log votes on under its name", "re-seed", ("L2",), seed=3),
        Mutation("reseed_forgets_promise", "a re-seeded store does not promise the record's epoch", "x-seed", ("L2",)),
        Mutation("unknown_is_failed", "a CAS of voters without an answer is taken for failed", "change", ("L9",), seed=6),
        Mutation("unknown_is_done", "a CAS of voters without an answer is taken for done", "change", ("L9",), seed=85),
        Mutation("unchanged_is_failed", "an unchanged record after it is taken for failed", "change", ("L9",), seed=220),
        Mutation("stale_config", "the candidate fences the voters it knew, not those of the record it wrote", seed=55),
        Mutation("blind_put", "a take-over does not compare the record's revision", seed=26),
        Mutation("serve_early", "the leader serves before EPOCH_START is committed", "lease", seed=3),
        Mutation("old_leader_appends", "a follower obeys appends of an epoch below its promise", "plain", seed=67),
        Mutation("cut_to_append", "a follower cuts its log to the end of a matching append", "plain", seed=7),
        Mutation("ack_own_end", "an ack names the end of the follower's log, not of what matched", "log", seed=598),
        Mutation("commit_beyond_match", "a follower takes the leader's commit for entries not matched", "plain", seed=140),
        Mutation("cut_to_commit", "a new leader cuts its log to the commit it knew", "plain", seed=0),
        Mutation("fetch_unchecked", "the best log is fetched from a voter that has promised higher or lost it", "plain", seed=966),
        Mutation("start_uncommitted", "an at-most-once request leaves before its START is committed", seed=67),
        Mutation("start_sent_again", "a successor sends a START without an outcome again", seed=0),
    )
}  # fmt: skip
