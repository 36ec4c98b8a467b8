"""Background maintenance of a ledger, in one thread: writes segments of the log and snapshots of the views, and deletes
superseded snapshots.

Nothing waits for maintenance or depends on it. A failed run is repeated some entries later.
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

# A snapshot is written at the latest after this many events, so a new replica replays about as many: a few seconds.
CHANGES = 2**14
# A snapshot copies a whole view. The pause after it is at least this many times as long as the copy took, per shard.
_MIN_PAUSE_FACTOR = 20

_logger = structlog.get_logger(__name__)


class Maintenance:
    """Used by the threads of all shards. A replica reports a shard when it has put the last entry of a run or the last
    of CHANGES events, and when it opens the shard."""

    def __init__(self, log: Log, metrics: LedgerMetrics) -> None:
        self._log = log
        self._metrics = metrics
        self._wake = Condition()
        self._stop = Event()
        # By shard: the time (monotonic seconds) from which its view is due. A snapshot that is postponed stays here,
        # because no further entry may come to report the shard again.
        self._waiting: dict[int, tuple[float, View]] = {}
        self._not_before: dict[int, float] = {}
        self._thread = Thread(target=self._run, name="maintenance", daemon=True)
        self._thread.start()

    def due(self, view: View) -> None:
        """Schedule maintenance of `view`'s shard."""
        with self._wake:
            self._waiting[view.shard] = -math.inf, view
            self._wake.notify()

    def close(self) -> None:
        """Stop. Blocks until the current work is abandoned or done; the views may be closed afterwards."""
        with self._wake:
            self._stop.set()
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while (view := self._next()) is not None:
            self._work(view)

    def _next(self) -> View | None:
        """Wait for the next view that is due; None once closed."""
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
            _logger.warning("maintenance failed", shard=shard, error=error.message)
        except Exception as error:  # a full disk or a damaged view, which the shard's own thread will detect
            _logger.error("maintenance failed", shard=shard, error=repr(error))


def write_if_due(log: Log, view: View) -> bool:
    """Write a snapshot of `view`, unless the newest one is less than RUN entries and less than CHANGES events behind
    the view. Returns whether one was written."""
    newest = max((c.entry for c in snapshots(log.store, view.shard) if c.flavour == view.flavour), default=0)
    if view.position.entry - newest < RUN and view.changes_since(newest) < CHANGES:
        return False
    write_snapshot(log.store, view)
    return True
