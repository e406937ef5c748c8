"""What all tests share: how hard Hypothesis searches.

`ci` is loaded by Hypothesis itself where the variable CI is set: repeatable, no deadline. `nightly` is asked for with
`--hypothesis-profile=nightly`. Elsewhere examples are few, so that a run while writing code stays short.
"""

from hypothesis import HealthCheck, settings

_QUICK_EXAMPLES = 50
_CI_EXAMPLES = 200
_NIGHTLY_EXAMPLES = 5_000

settings.register_profile(
    "quick",
    max_examples=_QUICK_EXAMPLES,
    deadline=None,  # a busy machine is no failure
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "ci",
    parent=settings.get_profile("ci"),
    max_examples=_CI_EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "nightly",
    parent=settings.get_profile("quick"),
    max_examples=_NIGHTLY_EXAMPLES,
    stateful_step_count=200,
)
if settings.get_current_profile_name() == "default":
    settings.load_profile("quick")
