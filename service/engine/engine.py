"""The engine: one thread that owns the model and draws every request, one call of the denoiser at a time.

Each tick selects pictures that can share a forward pass (words, schedulers, steps and guidance may differ), makes one
call, and lets each picture's own scheduler make its step. Pictures join and leave between any two ticks.
"""

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta
from itertools import count

import structlog
import torch

from diffusion import decode, denoise
from diffusion.checkpoint import BaseModel
from diffusion.denoise import Denoising
from diffusion.encoder import PromptEncoder
from diffusion.errors import DenoiserUnavailable
from rpc.errors import Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable
from service.engine.prompt_cache import PromptCache
from service.engine.warm_up import warm_up
from service.metrics import EngineMetrics
from service.request.mailbox import Drawn, Failed, Previewed, Started, Stepped
from service.request.request import Picture, Request
from service.safety import Judged, Safety
from service.scheduling.scheduler import Full, Overloaded, Scheduler, TooLate

_logger = structlog.get_logger(__name__)
# Minimum interval between two progress events of a request: with many pictures in a call of milliseconds, the events
# would take longer than drawing.
_PROGRESS_INTERVAL_S = 0.2


class Engine:
    """Draws requests. `submit`, `predict` and `waiting` may be called from any thread."""

    def __init__(
        self, model: BaseModel, scheduler: Scheduler, metrics: EngineMetrics, *, safety: Safety | None = None
    ) -> None:
        self._model = model
        self._encoder = PromptEncoder(model)
        self._prompts = PromptCache(self._encoder)
        self._metrics = metrics
        self._safety = safety
        self._arrivals: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._ids = count()
        self._thread: threading.Thread | None = None
        # Guards the three fields below, which submit() reads from other threads.
        self._lock = threading.Lock()
        self._scheduler = scheduler
        self._pictures: dict[int, Picture] = {}
        self._stopping = False

    def start(self) -> None:
        """Warms the model up, measures its calls, and begins to draw. Raises the warm-up's error."""
        warm: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(warm,), name="engine", daemon=True)
        self._thread.start()
        warm.result()

    def stop(self) -> None:
        """Stops after the current call; unfinished requests fail as UNAVAILABLE."""
        with self._lock:
            self._stopping = True
        self._arrivals.put(None)
        if self._thread is not None:
            self._thread.join()

    def predict(self, priority: int) -> timedelta:
        """The expected time of the pictures that are ahead of a new one of `priority`."""
        with self._lock:
            return timedelta(seconds=self._scheduler.work_ahead_s(priority))

    def waiting(self) -> int:
        """The number of pictures waiting or being drawn."""
        with self._lock:
            return len(self._scheduler)

    def submit(self, request: Request) -> None:
        """Admits a request. Raises ResourceExhausted if the queue is full or the deadline is out of reach behind the
        work ahead, Unavailable if the server is stopping, and DeadlineExceeded if drawing would miss the deadline even
        alone on the model."""
        work = request.work
        with self._lock:
            if self._stopping:
                raise Unavailable("the server is shutting down", reason="DRAINING", retry_after=timedelta(seconds=1))
            try:
                self._scheduler.admit(work, time.monotonic())
            except TooLate as late:
                needed = {"needed_s": f"{late.needed_s:.2f}"}
                raise DeadlineExceeded(str(late), reason="DEADLINE_TOO_SHORT", metadata=needed) from None
            except Overloaded as overload:
                raise ResourceExhausted(
                    f"{overload}: try again later, or allow more time",
                    reason="DEADLINE_OUT_OF_REACH",
                    metadata={"late_s": f"{overload.late_s:.2f}"},
                    retry_after=timedelta(seconds=overload.late_s),
                ) from None
            except Full as full:
                raise ResourceExhausted(
                    str(full),
                    reason="TENANT_QUEUE_FULL" if full.tenant else "QUEUE_FULL",
                    metadata={"limit": str(full.limit)},
                    retry_after=timedelta(seconds=self._scheduler.retry_s(work.priority)),
                ) from None
        self._arrivals.put(request)

    # Everything below runs on the engine's thread, the only one that computes (diffusion.threads says why).

    def _run(self, warm: "Future[None]") -> None:
        with torch.inference_mode():
            try:
                warm_up(self._model, self._encoder, self._scheduler)
            except Exception as cold:
                warm.set_exception(cold)
                return
            warm.set_result(None)
            while self._take_arrivals():
                self._drop_unwanted()
                with self._lock:
                    chosen = self._scheduler.next_group(time.monotonic())
                    group = [self._pictures[id] for id in chosen]
                if group:
                    self._tick(group)
        error = Unavailable("the server is shutting down", reason="DRAINING", retry_after=timedelta(seconds=1))
        self._fail({picture.request for picture in self._pictures.values()}, error)

    def _take_arrivals(self) -> bool:
        """Takes submitted requests; blocks until one arrives if there is nothing to draw. Returns False to stop."""
        idle = not self._pictures
        while True:
            try:
                request = self._arrivals.get(block=idle)
            except queue.Empty:
                return True
            idle = False
            if request is None:
                return False
            try:
                self._admit(request)
            except Exception as error:  # any error fails this request only
                self._fail([request], error)

    def _admit(self, request: Request) -> None:
        params = request.params
        pictures = []
        try:
            # Each prompt is encoded in its own batch: another prompt would change its rounding.
            embeds = self._prompts.encoded(request, params.prompt)
            negative = self._prompts.encoded(request, params.negative_prompt) if params.guided else None
            for index in range(params.count):
                denoising = Denoising(
                    self._model,
                    embeds=embeds,
                    negative=negative,
                    scheduler=params.scheduler,
                    steps=params.steps,
                    guidance=params.guidance,
                    seed=params.seed + index,
                    width=params.width,
                    height=params.height,
                    init_image=request.init_image,
                )
                pictures.append(Picture(id=next(self._ids), request=request, index=index, denoising=denoising))
        finally:
            with self._lock:
                self._pictures |= {picture.id: picture for picture in pictures}
                self._scheduler.enter(request.work, [picture.id for picture in pictures])

    def _drop_unwanted(self) -> None:
        with self._lock:
            late = {self._pictures[id].request for id in self._scheduler.hopeless(time.monotonic())}
            cancelled = {one.request for one in self._pictures.values() if one.request.cancelled.is_set()}
        if late:
            self._fail(late, DeadlineExceeded("the remaining steps no longer fit before the deadline: allow more time"))
        if cancelled:
            self._fail(cancelled, Cancelled("the request was cancelled"))

    def _tick(self, group: Sequence[Picture]) -> None:
        for picture in group:
            if picture.request.calls_made == 0 and picture.denoising.position == 0 and picture.index == 0:
                picture.request.mailbox.post(Started())
        began = time.monotonic()
        try:
            # The scheduler puts an exact picture into a call of its own.
            exact = group[0].request.params.exact
            denoise.step(self._model, [picture.denoising for picture in group], alone=exact)
            self._measure(group, time.monotonic() - began)
            for picture in group:
                self._report(picture)
            self._finish([picture for picture in group if picture.denoising.done])
        except DenoiserUnavailable as error:
            _logger.warning("the denoiser is unavailable", pictures=len(group), error=error.message)
            self._fail({picture.request for picture in group}, error)
        except Exception as error:
            _logger.exception("a call of the model failed", pictures=len(group))
            self._fail({picture.request for picture in group}, error)

    def _measure(self, group: Sequence[Picture], seconds: float) -> None:
        rows = sum(picture.request.work.rows for picture in group)
        with self._lock:
            self._scheduler.costs.observe(group[0].request.work.shape, rows, seconds)
            self._scheduler.stepped([picture.id for picture in group])
        self._metrics.calls.observe(seconds)
        self._metrics.rows.inc(rows)

    def _report(self, picture: Picture) -> None:
        request = picture.request
        params = request.params
        request.calls_made += 1
        calls, now = picture.denoising.calls * params.count, time.monotonic()
        if request.calls_made == calls or now - request.progress_sent_at >= _PROGRESS_INTERVAL_S:
            request.progress_sent_at = now
            request.mailbox.post(Stepped(call=request.calls_made, calls=calls))
        position = picture.denoising.position
        # Previews are not checked for safety, so none are sent if the policy may withhold the picture.
        sends_previews = params.preview_every and (self._safety is None or not self._safety.withholds)
        if sends_previews and position % params.preview_every == 0 and not picture.denoising.done:
            pixels = decode.preview(self._model, picture.denoising.latents)[0]
            request.mailbox.post(Previewed(index=picture.index, call=position, pixels=pixels))

    def _finish(self, done: Sequence[Picture]) -> None:
        """Decodes finished pictures, those of one shape together; exact ones alone."""
        batches: dict[tuple[object, ...], list[Picture]] = defaultdict(list)
        for picture in done:
            key = (picture.id,) if picture.request.params.exact else tuple(picture.denoising.latents.shape)
            batches[key].append(picture)
        for batch in batches.values():
            pixels = decode.decode(self._model, torch.cat([picture.denoising.latents for picture in batch]))
            judged = [Judged(one) for one in pixels] if self._safety is None else self._safety.judge(pixels)
            for picture, one in zip(batch, judged, strict=True):
                self._remove(picture)
                drawn = Drawn(index=picture.index, pixels=one.pixels, flagged=one.flagged, withheld=one.withheld)
                picture.request.mailbox.post(drawn)
                self._metrics.pictures.inc()

    def _fail(self, requests: Sequence[Request] | set[Request], error: Exception) -> None:
        for request in requests:
            for picture in [picture for picture in self._pictures.values() if picture.request is request]:
                self._remove(picture)
            request.mailbox.post(Failed(error=error))

    def _remove(self, picture: Picture) -> None:
        with self._lock:
            self._pictures.pop(picture.id, None)
            self._scheduler.leave(picture.id)
