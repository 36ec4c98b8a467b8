"""The denoiser on NVIDIA's Triton Inference Server: one gRPC call per step.

The engine's thread has nothing else to do while a step is computed, so this uses tritonclient's blocking client: an
event loop would add a thread hop to every step. A cancelled request leaves between two steps. Each call sends its
deadline to Triton, which drops a call that is still queued after it.

Triton merges rows that several callers send at the same time. Its model is written by `pseudoword export-triton`.
"""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import structlog
import tenacity
import torch
from pseudoword.addresses import proxy_options
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.grpc.model_config_pb2 import DataType
from tritonclient.utils import InferenceServerException

from diffusion.errors import DenoiserRefused, DenoiserUnavailable, DiffusionError
from diffusion.settings import DenoiserSettings
from diffusion.spec import ModelSpec
from rpc.settings import SettingsError, read_file

_logger = structlog.get_logger(__name__)
_MAX_MESSAGE_BYTES = 2**31 - 1
_CONFIG_S = 5.0  # timeout of one request for the model's configuration, at the start

# Codes for which a retry does not help. Every other failure (a crashed process, lack of memory) may be temporary.
_FINAL = {
    f"StatusCode.{name}"
    for name in (
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "FAILED_PRECONDITION",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
    )
}
# Triton reports a full or slow queue with UNAVAILABLE, the code of a server that is down.
_OVERLOADED = ("Exceeds maximum queue size", "Request timeout expired")


@dataclass(frozen=True)
class _Precision:
    """One precision: Triton's name on the wire, its value in config.pbtxt, and torch's dtype."""

    wire: str
    config: int
    dtype: torch.dtype


_PRECISIONS: Mapping[str, _Precision] = {
    "fp32": _Precision("FP32", DataType.Value("TYPE_FP32"), torch.float32),
    "fp16": _Precision("FP16", DataType.Value("TYPE_FP16"), torch.float16),
    "bf16": _Precision("BF16", DataType.Value("TYPE_BF16"), torch.bfloat16),
}


@dataclass(frozen=True)
class _Served:
    """A Triton server's model: the largest number of rows in a call (0: no batching), and the precision."""

    max_rows: int
    precision: str


class _Endpoint:
    """One Triton server. After a failure it is tried after all others until `rests_until` (monotonic seconds)."""

    def __init__(self, address: str, settings: DenoiserSettings, credentials: grpc.ChannelCredentials | None) -> None:
        self.address = address
        self.rests_until = 0.0
        self._credentials = credentials
        self._options = [
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", int(settings.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", 5_000),
            *proxy_options(address),
            # Without it, a new channel would share the broken channel's connection and its back-off.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self.connect()

    def connect(self) -> None:
        """Open a new channel with a connection of its own.

        A channel whose connection broke fails calls with its last error until it reconnects, with a growing back-off; a
        new channel connects immediately. Running calls keep the old channel, which is closed after them.
        """
        self.client: Any = InferenceServerClient(self.address, creds=self._credentials, channel_args=self._options)

    @property
    def resting(self) -> bool:
        return time.monotonic() < self.rests_until


class TritonDenoiser:
    """A Denoiser that calls Triton. Loads no weights; called by one thread at a time."""

    def __init__(self, spec: ModelSpec, settings: DenoiserSettings) -> None:
        """Wait for the first server that answers. Raises SettingsError when none does, when one serves another
        checkpoint or precision, or when a TLS file cannot be read."""
        self._spec = spec
        self._settings = settings
        credentials = _credentials(settings)
        self._endpoints = [_Endpoint(address, settings, credentials) for address in settings.addresses]
        try:
            served = self._find()
        except BaseException:
            self.close()
            raise
        self._max_rows = max(1, served.max_rows)
        self._precision = _PRECISIONS[served.precision]
        _logger.info("denoising on Triton", endpoints=list(settings.addresses), **vars(served))

    def close(self) -> None:
        """Close the connections."""
        for endpoint in self._endpoints:
            endpoint.client.close()

    def predict(
        self, inputs: torch.Tensor, timesteps: torch.Tensor, hidden: torch.Tensor, *, alone: bool = False
    ) -> torch.Tensor:
        """See Denoiser.predict. More rows than Triton takes in one call are sent in several concurrent calls."""
        dtype = self._precision.dtype
        arrays = {
            "latents": _to_numpy(inputs, dtype),
            "timesteps": _to_numpy(timesteps.reshape(-1, 1), torch.float32),
            "hidden": _to_numpy(hidden, dtype),
        }
        deadline = time.monotonic() + self._settings.timeout_s
        parts = [
            {name: array[start : start + self._max_rows] for name, array in arrays.items()}
            for start in range(0, len(inputs), self._max_rows)
        ]
        if len(parts) == 1:
            answers = [self._call(parts[0], deadline, alone)]
        else:
            with ThreadPoolExecutor(len(parts)) as threads:
                answers = list(threads.map(lambda part: self._call(part, deadline, alone), parts))
        return _to_torch(np.concatenate(answers)).to(inputs.device, inputs.dtype)

    def _call(self, arrays: Mapping[str, np.ndarray], deadline: float, alone: bool) -> np.ndarray:
        """The result of the first server that answers. Retries are safe: a call changes nothing on the server."""
        failure: DiffusionError = _too_slow()
        for endpoint in self._attempts():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                return self._infer(endpoint, arrays, left, alone)
            except InferenceServerException as error:
                failure = _failure(error)
                _logger.warning(
                    "Triton call failed", endpoint=endpoint.address, reason=failure.reason, error=error.message()
                )
                if isinstance(failure, DenoiserRefused):
                    break
                if failure.reason != "DENOISER_OVERLOADED":
                    endpoint.rests_until = time.monotonic() + self._settings.rest_s
                    endpoint.connect()
        raise failure

    def _attempts(self) -> Iterator[_Endpoint]:
        """Each server once, in the order of the settings, resting ones last; then the resting ones once more, because a
        connection that broke while it was idle fails its first call only."""
        yield from sorted(self._endpoints, key=lambda endpoint: endpoint.resting)
        yield from [endpoint for endpoint in self._endpoints if endpoint.resting]

    def _infer(self, endpoint: _Endpoint, arrays: Mapping[str, np.ndarray], left_s: float, alone: bool) -> np.ndarray:
        wire = {"latents": self._precision.wire, "timesteps": "FP32", "hidden": self._precision.wire}
        inputs = []
        for name, array in arrays.items():
            given = InferInput(name, list(array.shape), wire[name])
            given.set_data_from_numpy(array)
            inputs.append(given)
        result = endpoint.client.infer(
            self._settings.model,
            inputs,
            client_timeout=left_s,
            timeout=max(1, int(left_s * 1e6)),
            # A server that was restarted with another checkpoint refuses the digest.
            parameters={"digest": self._spec.digest, "alone": alone},
        )
        endpoint.rests_until = 0.0
        predicted: np.ndarray | None = result.as_numpy("predicted")
        expected = arrays["latents"].shape
        if predicted is None or predicted.shape != expected:
            got = None if predicted is None else predicted.shape
            raise DenoiserRefused(f"Triton's model returned the shape {got} for latents of the shape {expected}")
        return predicted

    def _find(self) -> _Served:
        """Request every server's configuration, and repeat until at least one has answered."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(InferenceServerException),
            stop=tenacity.stop_after_delay(self._settings.start_s),
            wait=tenacity.wait_fixed(0.5),
            reraise=True,
        )
        try:
            return retrying(self._request_configs)
        except InferenceServerException as error:
            raise SettingsError(f"no Triton server answers at {self._settings.endpoints}: {error.message()}") from None

    def _request_configs(self) -> _Served:
        """The common configuration of all servers that answer. Raises the last server's failure when none answers."""
        found: dict[str, _Served] = {}
        failure: InferenceServerException | None = None
        for endpoint in self._endpoints:
            try:
                answer = endpoint.client.get_model_config(self._settings.model, client_timeout=_CONFIG_S)
            except InferenceServerException as error:
                if error.status() in _FINAL:
                    raise SettingsError(f"Triton at {endpoint.address}: {error.message()}") from None
                failure = error
                endpoint.connect()
                continue
            found[endpoint.address] = self._check(endpoint.address, answer.config)
        if not found:
            assert failure is not None
            raise failure
        if failure is not None:
            missing = [address for address in self._settings.addresses if address not in found]
            _logger.warning("Triton servers unavailable", endpoints=missing, error=failure.message())
        served = set(found.values())
        if len(served) > 1:
            raise SettingsError(
                f"the Triton servers differ in batch size or precision, serve the same model on all: {found}"
            )
        return served.pop()

    def _check(self, address: str, config: Any) -> _Served:
        """Raises SettingsError unless the model at `address` has this checkpoint's digest, inputs and outputs."""
        where = f"model {self._settings.model} of Triton at {address}"
        digest = config.parameters["digest"].string_value if "digest" in config.parameters else None
        if digest != self._spec.digest:
            raise SettingsError(
                f"{where} has another checkpoint: its digest of the weights is {digest}, that of "
                f"{self._spec.checkpoint} is {self._spec.digest}; export it again with `pseudoword export-triton`"
            )
        kinds = {given.name: given.data_type for given in (*config.input, *config.output)}
        precision = next((name for name, kind in _PRECISIONS.items() if kind.config == kinds.get("latents")), None)
        both = [kinds.get("hidden"), kinds.get("predicted")]
        if precision is None or both != [kinds["latents"]] * 2 or kinds.get("timesteps") != DataType.Value("TYPE_FP32"):
            raise SettingsError(
                f"{where} was not written by this version's `pseudoword export-triton`, export it again: {kinds}"
            )
        if self._settings.precision not in (None, precision):
            raise SettingsError(
                f"{where} has the precision {precision}, and denoiser.precision is {self._settings.precision}"
            )
        return _Served(max_rows=config.max_batch_size, precision=precision)


def _credentials(settings: DenoiserSettings) -> grpc.ChannelCredentials | None:
    if settings.ca is None:
        return None
    key = None if settings.key is None else read_file(settings.key)
    cert = None if settings.cert is None else read_file(settings.cert)
    return grpc.ssl_channel_credentials(read_file(settings.ca), key, cert)


def _failure(error: InferenceServerException) -> DiffusionError:
    """The error for a failed call. Only a refusal's text is passed on: other texts contain addresses."""
    status, text = error.status(), error.message() or ""
    if status in _FINAL:
        return DenoiserRefused(f"the denoiser refused the call: {text}")
    if any(sign in text for sign in _OVERLOADED):
        return DenoiserUnavailable("the denoiser is overloaded: try again later", reason="DENOISER_OVERLOADED")
    if status == "StatusCode.DEADLINE_EXCEEDED":
        return _too_slow()
    return DenoiserUnavailable("the denoiser is unavailable: try again later")


def _too_slow() -> DenoiserUnavailable:
    return DenoiserUnavailable("the denoiser did not answer in time: try again later", reason="DENOISER_TIMEOUT")


def _to_numpy(tensor: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    here = tensor.to("cpu", dtype).contiguous()
    if dtype is torch.bfloat16:  # numpy has no bfloat16
        return here.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return here.numpy()


def _to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
