"""TensorBoard's event file, written at once and by the thread that trains.

TensorBoard's own writer has a thread; where the disk fills up it dies there, with a traceback, and every later call
raises. Here a record that cannot be written is left out, and the file stays readable and goes on once there is space.
"""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from visionzoo.tasks.engine.disk import disk_may_fail


class EventFile:
    """Takes the place of TensorBoard's ``EventFileWriter``."""

    def __init__(self, folder: str) -> None:
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}.0"
        self.path = Path(folder) / name
        self._file: io.FileIO | None = None

    def get_logdir(self) -> str:
        """The folder of the file."""
        return str(self.path.parent)

    def add_event(self, event: Event) -> None:
        """Append an event; the file is made with the first."""
        with disk_may_fail(self.path, "TensorBoard will not see some points; training goes on"):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab", buffering=0)
            if self._file.tell() == 0:
                self._append(Event(wall_time=event.wall_time, file_version="brain.Event:2"))
            self._append(event)

    def _append(self, event: Event) -> None:
        """Write one record or nothing: readers stop for good at half a record."""
        assert self._file is not None
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        start, data = self._file.tell(), record.getvalue()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self._file.truncate(start)
            self._file.seek(start)
            raise

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Close the file; the next event opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def reopen(self) -> None:
        """The next event opens the file."""


class EventWriter(SummaryWriter):
    """torch's ``SummaryWriter`` over an :class:`EventFile`."""

    def _get_file_writer(self) -> Any:
        if self.all_writers is None or self.file_writer is None:
            writer = FileWriter.__new__(FileWriter)  # whose __init__ starts the thread
            writer.event_writer = EventFile(self.log_dir)
            self.file_writer: Any = writer
            self.all_writers: Any = {self.log_dir: writer}
        return self.file_writer
