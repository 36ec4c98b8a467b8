"""The UNet's runs recorded, one for each shape of its inputs, and played again: a device gets the whole of a call at
once, and does not wait for Python between its kernels (CUDA graphs, docs.pytorch.org/docs/stable/notes/cuda.html).

A recorded run reads its inputs from tensors of its own and writes into one, so each call copies in and copies out.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# Runs that are kept, the longest unused goes first: each holds its inputs and its output on the device.
_KEPT = 32
_WARM_UPS = 3  # before a capture, so that libraries have chosen their kernels and taken their memory

# Makes `run` once; gives what makes it again, always into the tensor that is given beside.
Record = Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], object], torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class _Run:
    inputs: tuple[torch.Tensor, ...]
    play: Callable[[], object]
    output: torch.Tensor


class RecordedUNet:
    """A UNet with recorded runs, as `unet` itself is called. For one thread; its results are the caller's."""

    def __init__(self, unet: Any, record: Record) -> None:
        self._unet = unet
        self._record = record
        self._runs: OrderedDict[tuple[object, ...], _Run] = OrderedDict()

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, *, encoder_hidden_states: torch.Tensor, return_dict: bool
    ) -> tuple[torch.Tensor]:
        given = (latents, timesteps, encoder_hidden_states)
        key = tuple((tensor.shape, tensor.dtype) for tensor in given)
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = self._recorded(given)
            if len(self._runs) > _KEPT:
                self._runs.popitem(last=False)
        self._runs.move_to_end(key)
        for own, tensor in zip(run.inputs, given, strict=True):
            own.copy_(tensor)
        run.play()
        return (run.output.clone(),)

    def _recorded(self, given: tuple[torch.Tensor, ...]) -> _Run:
        # Ordinary tensors, which may be written to in and out of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            latents, timesteps, hidden = inputs = tuple(torch.empty_like(tensor).copy_(tensor) for tensor in given)

            def run() -> torch.Tensor:
                output: torch.Tensor = self._unet(latents, timesteps, encoder_hidden_states=hidden, return_dict=False)[
                    0
                ]
                return output

            play, output = self._record(run)
        return _Run(inputs=inputs, play=play, output=output)


def called(run: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
    """Records nothing: playing is calling. For devices without graphs."""
    output = run()
    return lambda: output.copy_(run()), output


class Captured:
    """Records CUDA graphs, which share one pool of memory: only one is played at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
        with torch.cuda.device(self._device):
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Only this thread's: others bring words onto the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = run()
        return graph.replay, output
