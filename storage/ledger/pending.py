"""A command that waits to be committed, and its result."""

from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum, auto
from threading import Lock
from typing import Any

from storage.ledger.entry import RecordedEvent, Revision, canonical
from storage.ledger.state_machine import Event


@dataclass(frozen=True, kw_only=True)
class Result:
    """A command's answer (a JSON object) and the revision of its last event. A repeated request gets the same result.

    For a command without events, the revision is that of the state that the answer shows.
    """

    value: dict[str, Any]
    revision: Revision


class _Phase(Enum):
    WAITING = auto()  # nothing was written
    CLAIMED = auto()  # the writer has it; its entry may be in flight
    ABANDONED = auto()  # its caller has stopped waiting


class Pending:
    """A command that waits for its answer. Owned by the writer's thread once it is claimed."""

    def __init__(
        self,
        command: Any,
        *,
        tenant: str,
        request_id: str,
        digest: str,
        actor: str,
        on_behalf_of: str,
        validate_only: bool,
    ) -> None:
        self.command = command
        self.tenant = tenant
        self.request_id = request_id
        self.digest = digest
        self.actor = actor
        self.on_behalf_of = on_behalf_of
        self.validate_only = validate_only
        self.done: Future[Result] = promise()
        self._lock = Lock()
        self._phase = _Phase.WAITING
        self._left = False

    def claim(self) -> bool:
        """The writer takes the command, unless its caller has stopped waiting. Returns whether it was taken."""
        with self._lock:
            if self._phase is not _Phase.WAITING:
                return False
            self._phase = _Phase.CLAIMED
            return True

    def release(self) -> None:
        """The writer gives the command back, certain that nothing of it was committed. The command is not retried when
        its caller has stopped waiting: the caller may have repeated it elsewhere and got another answer."""
        with self._lock:
            if self._phase is _Phase.CLAIMED:
                self._phase = _Phase.ABANDONED if self._left else _Phase.WAITING

    def abandon(self) -> bool:
        """The caller stops waiting. True: nothing was or will be committed. False: the outcome is unknown."""
        with self._lock:
            self._left = True
            if self._phase is _Phase.WAITING:
                self._phase = _Phase.ABANDONED
            return self._phase is _Phase.ABANDONED

    def recorded(self, event: Event) -> RecordedEvent:
        """`event` with its actor and request."""
        return RecordedEvent(
            kind=event.kind,
            tenant=self.tenant,
            request_id=self.request_id,
            request_digest=self.digest,
            actor=self.actor,
            on_behalf_of=self.on_behalf_of,
            body=canonical(event.body),
        )


def promise() -> Future[Any]:
    """A future that its waiter cannot cancel, so that setting it never fails."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future
