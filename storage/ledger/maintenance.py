"""What a ledger does beside its work: segments of the log, checkpoints of the views, in one thread of its own.

Nothing waits for it and nothing stands on it: what fails is tried again some entries later.
"""

import math
import time
from threading import Condition, Event, Thread

import structlog

from storage.errors import StorageError
from storage.ledger.log import Log
from storage.ledger.metrics import LedgerMetrics
from storage.ledger.segments import RUN, write_missing
from storage.ledger.snapshots import snapshots, superseded, write_snapshot
from storage.ledger.view import View

# A new replica reads at most about so many changes from the log, which takes it seconds.
CHANGES = 2**14
# A checkpoint is a copy of a whole view: of this thread's time, at most one part in so many goes into them.
_MIN_PAUSE_FACTOR = 20

_logger = structlog.get_logger(__name__)


class Maintenance:
    """Used by the threads of all shards. A shard is reported by the replica that has put the last entry of a run, or
    the last of CHANGES changes, and by each that opens it."""

    def __init__(self, log: Log, metrics: LedgerMetrics) -> None:
        self._log = log
        self._metrics = metrics
        self._wake = Condition()
        self._stop = Event()
        # By shard, from when (monotonic seconds) its view is to be looked at: a checkpoint that may not be written yet
        # is written later, since perhaps nothing will be put any more.
        self._waiting: dict[int, tuple[float, View]] = {}
        self._not_before: dict[int, float] = {}
        self._thread = Thread(target=self._run, name="upkeep", daemon=True)
        self._thread.start()

    def due(self, view: View) -> None:
        """There is something to copy of `view`'s shard."""
        with self._wake:
            self._waiting[view.shard] = -math.inf, view
            self._wake.notify()

    def close(self) -> None:
        """Blocks until the present work is given up or done. The views may be closed afterwards."""
        with self._wake:
            self._stop.set()
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while (view := self._next()) is not None:
            self._work(view)

    def _next(self) -> View | None:
        """Waits for a view to look at; None at the end."""
        with self._wake:
            while not self._stop.is_set():
                waiting = ((at, shard) for shard, (at, _) in self._waiting.items())
                first, shard = min(waiting, default=(math.inf, -1))
                pause_s = first - time.monotonic()
                if pause_s <= 0:
                    return self._waiting.pop(shard)[1]
                self._wake.wait(None if pause_s == math.inf else pause_s)
            return None

    def _work(self, view: View) -> None:
        shard, log = view.shard, self._log
        try:
            written = write_missing(log, shard, view.position.entry, self._stop.is_set)
            self._metrics.maintenance.labels("segment").inc(written)
            began = time.monotonic()
            if self._stop.is_set():
                return
            not_before = self._not_before.get(shard, began)
            if began < not_before:
                with self._wake:
                    self._waiting.setdefault(shard, (not_before, view))
                return
            if write_if_due(log, view):
                self._metrics.maintenance.labels("checkpoint").inc()
                ended = time.monotonic()
                self._not_before[shard] = ended + _MIN_PAUSE_FACTOR * (ended - began)
            for old in superseded(snapshots(log.store, shard)):
                log.store.delete(old.name)
        except StorageError as error:
            _logger.warning("upkeep failed", shard=shard, error=error.message)
        except Exception as error:  # a full disk, a damaged view: the shard's own thread will find that out
            _logger.error("upkeep failed", shard=shard, error=repr(error))


def write_if_due(log: Log, view: View) -> bool:
    """Write a checkpoint of `view` unless the newest one is less than a run, and less than CHANGES, behind it; whether
    one was written."""
    newest = max((c.entry for c in snapshots(log.store, view.shard) if c.flavour == view.flavour), default=0)
    if view.position.entry - newest < RUN and view.changes_since(newest) < CHANGES:
        return False
    write_snapshot(log.store, view)
    return True
