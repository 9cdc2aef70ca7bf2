from collections.abc import Sequence
from kandinsky22.request.job import Job


def batch_key(job: Job) -> str:
    return job.request.task.name + str(id(job))


def merged(jobs: Sequence[Job]) -> Job:
    raise NotImplementedError
