"""The Prometheus metrics of an rpc server, under the names that dashboards of the gRPC ecosystem use."""

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector

_LABELS = ("grpc_type", "grpc_service", "grpc_method")
# The range is from a cached read to a stream about a training job.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)


class Metrics:
    """The rpc metrics of one server. `registry` is the server's own; its other parts add their metrics to it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.started = Counter("grpc_server_started_total", "Rpcs started.", _LABELS, registry=registry)
        self.handled = Counter(
            "grpc_server_handled_total", "Rpcs completed, by status code.", (*_LABELS, "grpc_code"), registry=registry
        )
        self.handling = Histogram(
            "grpc_server_handling_seconds",
            "Seconds from the start of an rpc to its completion.",
            _LABELS,
            registry=registry,
            buckets=_SECONDS,
        )
        self.received = Counter(
            "grpc_server_msg_received_total", "Messages received from clients.", _LABELS, registry=registry
        )
        self.sent = Counter("grpc_server_msg_sent_total", "Messages sent to clients.", _LABELS, registry=registry)

        self._methods: dict[tuple[str, str, str], MethodMetrics] = {}

    def of(self, kind: str, service: str, method: str) -> "MethodMetrics":
        """The metrics of one method."""
        labels = kind, service, method
        found = self._methods.get(labels)
        if found is None:
            found = self._methods[labels] = MethodMetrics(self, labels)
        return found


class MethodMetrics:
    """The metrics of one method, looked up once: the lookup of labels costs more than the increment."""

    def __init__(self, metrics: Metrics, labels: tuple[str, str, str]) -> None:
        self.started = metrics.started.labels(*labels)
        self.received = metrics.received.labels(*labels)
        self.sent = metrics.sent.labels(*labels)
        self.handling = metrics.handling.labels(*labels)
        self._handled = metrics.handled
        self._labels = labels
        self._by_code: dict[str, Counter] = {}

    def handled(self, code: str) -> Counter:
        """The counter of rpcs that ended with a status code."""
        found = self._by_code.get(code)
        if found is None:
            found = self._by_code[code] = self._handled.labels(*self._labels, code)
        return found


def new_registry() -> CollectorRegistry:
    """A registry with the metrics of this process: memory, CPU, open files, garbage collection."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
