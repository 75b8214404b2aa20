"""The run folder and the record of what was run."""

from visionzoo.runs.folder import RunFolder
from visionzoo.runs.lock import FolderInUseError, FolderLock
from visionzoo.runs.record import amend_record, describe_run, git_state, read_record, versions, write_record

__all__ = [
    "FolderInUseError",
    "FolderLock",
    "RunFolder",
    "amend_record",
    "describe_run",
    "git_state",
    "read_record",
    "versions",
    "write_record",
]
