"""Retries while the store is unavailable."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from storage.errors import Closed, StorageError, StoreReplaced

T = TypeVar("T")

_logger = structlog.get_logger(__name__)


async def retry_while_unavailable(work: Callable[[], Awaitable[T]]) -> T:
    """Retry `work` as long as the store is unavailable. Raises every other error, including StoreReplaced."""
    retrying = AsyncRetrying(
        retry=retry_if_exception(_is_temporary),
        wait=wait_random_exponential(multiplier=0.2, max=10),
        before_sleep=_log_retry,
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            return await work()
    raise AssertionError("unreachable: the last error is raised again")


def _is_temporary(error: BaseException) -> bool:
    return isinstance(error, StorageError) and error.retry and not isinstance(error, Closed | StoreReplaced)


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    _logger.warning("store unavailable, retrying", attempt=state.attempt_number, error=str(error))
