"""Floor 5. Calls that change nothing: whether a job would be taken, and what a schedule would do.

Must never import: rooms below but `command`, `errors`, `model`, `schedule`, `spec`.
"""

from tickwheel.server.api import names
from tickwheel.server.api.convert import Converter
from tickwheel.server.api.criteria import DRY_RUN_RULES, RULES, criteria_of
from tickwheel.server.api.preview import preview
from tickwheel.server.api.validate import Violations
from tickwheel.server.command import Create, Prepared, Scheduler
from tickwheel.server.errors import AlreadyExists, InvalidArgument, Violation
from tickwheel.v1 import job_pb2
from tickwheel.v1 import job_service_pb2 as pb


class Trials:
    """ValidateJob and PreviewSchedule."""

    def __init__(self, scheduler: Scheduler, converter: Converter) -> None:
        self._scheduler = scheduler
        self._converter = converter

    # --- would this job be taken? ---

    async def validate_job(self, request: pb.ValidateJobRequest) -> pb.ValidateJobResponse:
        """Every criterion that the job must meet, met or not."""
        namespace = names.parse_namespace(request.parent)
        sent = job_pb2.Job()
        sent.CopyFrom(request.job)
        found: Violations = []
        if request.job_id and not names.valid_part(request.job_id):
            found.append(names.bad_job_id())
        prepared = self._converter.examine(request.job, self._scheduler.now_ms(), found)
        criteria = criteria_of(sent, RULES, found)
        if prepared is not None and not found:
            refused = await self._dry_run(namespace, request.job_id, prepared)
            criteria += criteria_of(sent, DRY_RUN_RULES, refused)
        valid = all(criterion.met for criterion in criteria)
        return pb.ValidateJobResponse(valid=valid, criteria=criteria)

    async def _dry_run(self, namespace: str, job_id: str, prepared: Prepared) -> Violations:
        """What a create would be refused for."""
        name = job_id or names.random_job_id()
        command = Create(namespace, name, prepared, fresh=not job_id, validate_only=True)
        try:
            await self._scheduler.call(command)
        except InvalidArgument as error:
            return list(error.violations)
        except AlreadyExists as error:
            return [Violation("job_id", error.message, error.reason)]
        return []

    # --- what would this schedule do? ---

    async def preview_schedule(
        self, request: pb.PreviewScheduleRequest
    ) -> pb.PreviewScheduleResponse:
        """The next occurrences, with what daylight saving does to each."""
        return await preview(self._scheduler, request)
