"""Records a run of the UNet for each shape of its inputs, and replays it: the device gets all kernels of a call in one
launch, and does not wait for Python between them (CUDA graphs, docs.pytorch.org/docs/stable/notes/cuda.html).

A recorded run reads its inputs from its own tensors and writes into its own output tensor, so each call copies its
inputs in and its output out.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# Size of the LRU cache of runs: each holds its inputs and its output on the device.
_MAX_RUNS = 32
_WARM_UPS = 3  # before a capture, so that libraries have chosen their kernels and allocated their memory

# Executes `run` once. Returns a function that replays it, and the tensor that each replay writes into.
Record = Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], object], torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class _Run:
    inputs: tuple[torch.Tensor, ...]
    play: Callable[[], object]
    output: torch.Tensor


class RecordedUNet:
    """A UNet with recorded runs, with the call signature of `unet`. For one thread; the caller owns the results."""

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
            if len(self._runs) > _MAX_RUNS:
                self._runs.popitem(last=False)
        self._runs.move_to_end(key)
        for own, tensor in zip(run.inputs, given, strict=True):
            own.copy_(tensor)
        run.play()
        return (run.output.clone(),)

    def _recorded(self, given: tuple[torch.Tensor, ...]) -> _Run:
        # Ordinary tensors, which may be written to inside and outside inference mode.
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
    """A Record for devices without graphs: a replay calls `run` again."""
    output = run()
    return lambda: output.copy_(run()), output


class Captured:
    """A Record of CUDA graphs. They share one memory pool, because only one is replayed at a time."""

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
            # Capture this thread's work only: other threads copy words to the device in the meantime.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = run()
        return graph.replay, output
