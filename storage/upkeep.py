"""What a ledger does beside its work: segments of the log, checkpoints of the views, in one thread of its own.

Nothing waits for it and nothing stands on it: what fails is tried again 1,024 entries later.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import structlog

from storage.checkpoints import checkpoints, superseded, write_checkpoint
from storage.errors import StorageError
from storage.log import Log
from storage.metrics import LedgerMetrics
from storage.segments import RUN, write_missing
from storage.view import View

# A checkpoint is a copy of a whole view: of this thread's time, at most one part in so many goes into them.
_SHARE = 20

_logger = structlog.get_logger(__name__)


class Upkeep:
    """Used by the threads of all shards. A shard is reported by the replica that has put the last entry of a run."""

    def __init__(self, log: Log, metrics: LedgerMetrics) -> None:
        self._log = log
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upkeep")
        self._stop = Event()
        self._not_before: dict[int, float] = {}

    def due(self, view: View) -> None:
        """A run of `view`'s shard is complete."""
        if not self._stop.is_set():
            self._thread.submit(self._work, view)

    def close(self) -> None:
        """Blocks until the present work is given up or done. The views may be closed afterwards."""
        self._stop.set()
        self._thread.shutdown(cancel_futures=True)

    def _work(self, view: View) -> None:
        shard, log = view.shard, self._log
        try:
            written = write_missing(log, shard, view.position.entry, self._stop.is_set)
            self._metrics.upkeep.labels("segment").inc(written)
            began = time.monotonic()
            if self._stop.is_set() or began < self._not_before.get(shard, began):
                return
            if not write_if_due(log, view):
                return
            self._metrics.upkeep.labels("checkpoint").inc()
            for old in superseded(checkpoints(log.store, shard)):
                log.store.delete(old.name)
            ended = time.monotonic()
            self._not_before[shard] = ended + _SHARE * (ended - began)
        except StorageError as error:
            _logger.warning("upkeep failed", shard=shard, error=error.message)
        except Exception as error:  # a full disk, a damaged view: the shard's own thread will find that out
            _logger.error("upkeep failed", shard=shard, error=repr(error))


def write_if_due(log: Log, view: View) -> bool:
    """Write a checkpoint of `view` unless the newest one is less than a run behind it; whether one was written."""
    newest = max((c.entry for c in checkpoints(log.store, view.shard) if c.flavour == view.flavour), default=0)
    if view.position.entry - newest < RUN:
        return False
    write_checkpoint(log.store, view)
    return True
