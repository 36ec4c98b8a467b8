"""The Prometheus metrics of a ledger."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BYTES = (256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
_EVENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class LedgerMetrics:
    """Metrics of one ledger, registered in `registry`; without a registry they are counted and not exported."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry if registry is not None else CollectorRegistry()
        self.entry_bytes = Histogram(
            "pseudoword_log_entry_bytes",
            "Size of each log entry that this server has written.",
            registry=registry,
            buckets=_BYTES,
        )
        self.entry_events = Histogram(
            "pseudoword_log_entry_mutations",
            "Events in each log entry that this server has written.",
            registry=registry,
            buckets=_EVENTS,
        )
        self.lost = Counter(
            "pseudoword_log_lost_races_total",
            "Writes of a log entry that lost the race for its number to another server.",
            registry=registry,
        )
        self.replayed = Counter(
            "pseudoword_log_replayed_total", "Log entries applied to a view after a read.", registry=registry
        )
        reads = Counter(
            "pseudoword_view_reads_total",
            "Reads of a view, by kind: strong (after a check of the log) or cached.",
            ("kind",),
            registry=registry,
        )
        # Looked up once: the lookup of a label costs more than the increment.
        self.strong, self.cached = reads.labels("strong"), reads.labels("cached")
        self.lag = Gauge(
            "pseudoword_view_lag_seconds",
            "Time since the view was last checked against the log's end; grows while there are no reads or writes.",
            ("shard",),
            registry=registry,
        )
        self.entry = Gauge(
            "pseudoword_view_entry", "Number of the last log entry in the view.", ("shard",), registry=registry
        )
        self.maintenance = Counter(
            "pseudoword_log_upkeep_total",
            "Derived objects written, by kind: segment (of the log) or checkpoint (snapshot of a view).",
            ("kind",),
            registry=registry,
        )
