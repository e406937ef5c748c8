"""Floor 5. Calls that change nothing: what a schedule would do, and whether a job would be taken.

Must never import: rooms below but `command`, `errors`, `model`, `schedule`, `spec`.
"""

from tickwheel.server.api.convert import Converter
from tickwheel.server.command import Scheduler
from tickwheel.v1 import job_service_pb2 as pb


class Trials:
    """PreviewSchedule and ValidateJob."""

    def __init__(self, scheduler: Scheduler, converter: Converter) -> None:
        self._scheduler = scheduler
        self._converter = converter

    async def preview_schedule(
        self, request: pb.PreviewScheduleRequest
    ) -> pb.PreviewScheduleResponse:
        """The next occurrences."""
        raise NotImplementedError

    async def validate_job(self, request: pb.ValidateJobRequest) -> pb.ValidateJobResponse:
        """Every criterion."""
        raise NotImplementedError
