"""TensorBoard's curves of a run, as bytes that are held until the storage takes them."""

import logging
import socket
import struct
import threading
import time
import uuid
from collections.abc import Iterable
from typing import Any

from ebmscale.errors import StorageError
from ebmscale.storage import Storage

log = logging.getLogger(__name__)

MOST_HELD = 2**24  # bytes that the storage may refuse before TensorBoard is given up


class EventFile:
    """A file of TensorBoard events in a run, written as any log of a run is: held until the storage takes it.

    What TensorBoard shows is also in `metrics.jsonl`, so a storage that refuses it is only warned of, once.

    Args:
        position: `samples_seen` where this process begins; curves of earlier processes are cut there.
    """

    def __init__(self, position: int):
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415 (slow to import, and optional)

        self._name = f"tensorboard/events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{uuid.uuid4().hex[:8]}"
        self._held, self._lock = b"", threading.Lock()
        self._warned = self._given_up = False
        self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if position:
            self._put(Event(wall_time=time.time(), step=position, session_log=SessionLog(status=SessionLog.START)))

    def add(self, samples_seen: int, values: Iterable[tuple[str, float]]) -> None:
        """Adds a point to each curve."""
        from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415
        from tensorboardX.summary import scalar  # noqa: PLC0415

        for name, value in values:
            self._put(Event(wall_time=time.time(), step=samples_seen, summary=scalar(name, value)))

    def flush(self, storage: Storage) -> None:
        """Writes what is held; what the storage refuses stays held for the next call."""
        with self._lock:
            held, self._held = self._held, b""
        if not held:
            return
        try:
            storage.append(self._name, held)
        except StorageError as error:
            if not self._warned:
                log.warning("TensorBoard's curves are held back, and given up where that lasts: %s", error)
            self._warned, self._given_up = True, len(held) > MOST_HELD
            with self._lock:
                self._held = b"" if self._given_up else held + self._held

    def _put(self, event: Any) -> None:
        """Adds a record: length, its checksum, the event, its checksum."""
        from tensorboardX.record_writer import masked_crc32c  # noqa: PLC0415

        if not self._given_up:
            data = event.SerializeToString()
            length = struct.pack("<Q", len(data))
            checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
            with self._lock:
                self._held += length + checksums[0] + data + checksums[1]
