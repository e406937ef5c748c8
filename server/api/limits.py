"""Floor 5. Every limit that the doors hold a request to, in one table. The docs print it; nothing else repeats a number.

Must never import: anything of this project.
"""

from typing import Final

# --- one call ---

MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
"""One gRPC message in either direction: a batch of 1,000 jobs has 16 KiB each."""

METADATA_BYTES_MAX: Final = 16 * 1024
CALLS_MAX: Final = 4_096
CONCURRENT_STREAMS_MAX: Final = 1_024
"""Calls of one connection at a time."""

WATCHERS_MAX: Final = 1_024
"""WatchCluster at a time: each is a call that stays, and there is no end of clients."""

BATCH_JOBS_MAX: Final = 1_000
STREAM_WINDOW_MESSAGES: Final = 8
"""StreamCreateJobs: messages of one stream that are not answered yet."""

WATCHES_MAX: Final = 64
"""WatchExecutions: watches of one node's clients at a time. Each has a question under way at every leader."""

PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1_000
PAGE_BYTES_MAX: Final = 3 * 1024 * 1024
"""A page ends early beyond this: clients refuse messages over 4 MiB unless told otherwise."""

COUNT_GROUPS_MAX: Final = 1_000
BUCKET_MS_MIN: Final = 1_000
BUCKET_MS_MAX: Final = 366 * 86_400_000
BUCKET_MS_DEFAULT: Final = 3_600_000
FILTER_CHARS_MAX: Final = 2_048
FILTER_TERMS_MAX: Final = 64
REQUEST_ID_CHARS_MAX: Final = 128
PREVIEW_DEFAULT: Final = 10
PREVIEW_MAX: Final = 1_000

# --- one job (the comments of proto/tickwheel/v1 state the same numbers) ---

NAME_CHARS_MAX: Final = 128
DESCRIPTION_CHARS_MAX: Final = 1_024
LABELS_MAX: Final = 32
LABEL_KEY_CHARS_MAX: Final = 63
LABEL_VALUE_CHARS_MAX: Final = 128
EXCLUDED_DATES_MAX: Final = 1_000
EXCLUDED_TIMES_MAX: Final = 1_000
CRON_CHARS_MAX: Final = 256
TIME_MS_MIN: Final = 1
TIME_MS_MAX: Final = 253_086_681_599_999
"""The end of 9989-12-30 UTC, so that civil times of any zone stay inside the years that can be written."""

_DAY_MS: Final = 86_400_000
_YEARS_10_MS: Final = 3_653 * _DAY_MS

JITTER_MS_MAX: Final = _DAY_MS
EVERY_MS_MIN: Final = 1_000
EVERY_MS_MAX: Final = _YEARS_10_MS
DELAY_MS_MAX: Final = _YEARS_10_MS
MAX_EXECUTIONS_MAX: Final = 2**32 - 1
MISFIRES_MAX: Final = 1_000
CATCHUP_WINDOW_MS_MAX: Final = 365 * _DAY_MS
EXPIRE_AFTER_MS_MAX: Final = 365 * _DAY_MS
RETENTION_MS_MIN: Final = 1_000
RETENTION_MS_MAX: Final = 365 * _DAY_MS
RETENTION_COUNT_MAX: Final = 100_000

# --- retries ---

ATTEMPTS_MAX: Final = 1_000
RETRY_DURATION_MS_MAX: Final = 30 * _DAY_MS
BACKOFF_MS_MIN: Final = 1
BACKOFF_MS_MAX: Final = _DAY_MS
DOUBLINGS_MAX: Final = 32

# --- HTTP target (the guard checks URLs, the dispatcher headers: `convert.TargetChecks`) ---

HEADERS_MAX: Final = 64
BODY_BYTES_MAX: Final = 256 * 1024
TIMEOUT_MS_MIN: Final = 100
TIMEOUT_MS_MAX: Final = 1_800_000
REDIRECTS_MAX: Final = 3
STATUS_RANGES_MAX: Final = 16
STATUS_MIN: Final = 100
STATUS_MAX: Final = 599

# --- an error's answer: it travels as trailing metadata, which clients bound at 8 KiB ---

ERROR_MESSAGE_CHARS_MAX: Final = 1_024
ERROR_TEXT_CHARS_MAX: Final = 200
ERROR_VIOLATIONS_MAX: Final = 12
