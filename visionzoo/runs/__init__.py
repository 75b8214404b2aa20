"""The run folder and the record of what was run."""

from visionzoo.runs.folder import RunFolder
from visionzoo.runs.lock import FolderInUseError, FolderLock
from visionzoo.runs.record import describe_run, finish_record, git_state, read_record, versions, write_record

__all__ = [
    "FolderInUseError",
    "FolderLock",
    "RunFolder",
    "describe_run",
    "finish_record",
    "git_state",
    "read_record",
    "versions",
    "write_record",
]
