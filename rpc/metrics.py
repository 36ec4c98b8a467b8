"""What Prometheus scrapes of an rpc server, under the names that the gRPC ecosystem's dashboards know."""

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector

_LABELS = ("grpc_type", "grpc_service", "grpc_method")
# From a cached read to a training stream.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)


class Metrics:
    """Counters of one server. `registry` is the server's own; its engine adds more to it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.started = Counter("grpc_server_started_total", "Rpcs begun.", _LABELS, registry=registry)
        self.handled = Counter(
            "grpc_server_handled_total", "Rpcs ended, by status code.", (*_LABELS, "grpc_code"), registry=registry
        )
        self.handling = Histogram(
            "grpc_server_handling_seconds",
            "Seconds from an rpc's begin to its end.",
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
        """The counters of one method."""
        labels = kind, service, method
        found = self._methods.get(labels)
        if found is None:
            found = self._methods[labels] = MethodMetrics(self, labels)
        return found


class MethodMetrics:
    """What is counted at every rpc, found once: finding it costs more than counting."""

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
    """A registry of one server with its process's own metrics: memory, CPU, open files, garbage collection."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
