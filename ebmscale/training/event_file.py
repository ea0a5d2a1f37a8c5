"""TensorBoard events of a run, buffered until the storage accepts them."""

import logging
import socket
import struct
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from ebmscale.errors import StorageError
from ebmscale.storage import Storage

log = logging.getLogger(__name__)

MOST_HELD = 2**24  # bytes that are buffered while the storage fails; above that TensorBoard is switched off


class EventFile:
    """A file of TensorBoard events in a run. Events are buffered until the storage accepts them.

    The same numbers are in `metrics.jsonl`, so a storage that fails here causes only one warning.

    Args:
        position: `samples_seen` at the start of this process. TensorBoard cuts the curves of earlier processes there.
    """

    def __init__(self, position: int):
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415 (slow to import, and optional)

        self._name = f"tensorboard/events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{uuid.uuid4().hex[:8]}"
        self._held, self._lock = b"", threading.Lock()
        self._warned = self._given_up = False
        self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if position:
            self._put(Event(wall_time=time.time(), step=position, session_log=SessionLog(status=SessionLog.START)))

    def numbers(self, samples_seen: int, values: Mapping[str, float]) -> None:
        """Adds a point at `samples_seen` to the curve of every name."""
        from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415
        from tensorboardX.summary import scalar  # noqa: PLC0415

        for name, value in values.items():
            self._put(Event(wall_time=time.time(), step=samples_seen, summary=scalar(name, value)))

    def picture(self, samples_seen: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture (H, W, 3) of uint8 at `samples_seen`."""
        from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415
        from tensorboardX.summary import image  # noqa: PLC0415

        summary = image(name, picture, dataformats="HWC")
        self._put(Event(wall_time=time.time(), step=samples_seen, summary=summary))

    def close(self) -> None:
        """Does nothing: `flush` has written everything that could be written."""

    def flush(self, storage: Storage) -> None:
        """Writes the buffered events. If the storage fails, they stay buffered for the next call."""
        with self._lock:
            held, self._held = self._held, b""
        if not held:
            return
        try:
            storage.append(self._name, held)
        except StorageError as error:
            if not self._warned:
                log.warning("TensorBoard events cannot be written; if that lasts, they are dropped: %s", error)
            self._warned, self._given_up = True, len(held) > MOST_HELD
            with self._lock:
                self._held = b"" if self._given_up else held + self._held

    def _put(self, event: Any) -> None:
        """Adds a record: length, checksum of the length, event, checksum of the event."""
        from tensorboardX.record_writer import masked_crc32c  # noqa: PLC0415

        if not self._given_up:
            data = event.SerializeToString()
            length = struct.pack("<Q", len(data))
            checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
            with self._lock:
                self._held += length + checksums[0] + data + checksums[1]
