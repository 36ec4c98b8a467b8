"""What a ledger counts, in Prometheus' terms."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BYTES = (256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
_MUTATIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class LedgerMetrics:
    """Of one ledger, in `registry`; without one, counted and shown to nobody."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry if registry is not None else CollectorRegistry()
        self.entry_bytes = Histogram(
            "pseudoword_log_entry_bytes",
            "Size of each entry that this server has put.",
            registry=registry,
            buckets=_BYTES,
        )
        self.entry_events = Histogram(
            "pseudoword_log_entry_mutations",
            "Changes in each entry that this server has put.",
            registry=registry,
            buckets=_MUTATIONS,
        )
        self.lost = Counter(
            "pseudoword_log_lost_races_total", "Entries that another server had put first.", registry=registry
        )
        self.replayed = Counter(
            "pseudoword_log_replayed_total", "Entries read from the log into a view.", registry=registry
        )
        reads = Counter(
            "pseudoword_view_reads_total", "Reads of a view: strong, or cached.", ("kind",), registry=registry
        )
        # Found once: finding them costs more than counting.
        self.strong, self.cached = reads.labels("strong"), reads.labels("cached")
        self.lag = Gauge(
            "pseudoword_view_lag_seconds",
            "Time since the view was last known to be at the log's end; grows while nobody reads or writes.",
            ("shard",),
            registry=registry,
        )
        self.entry = Gauge("pseudoword_view_entry", "Last entry that the view shows.", ("shard",), registry=registry)
        self.maintenance = Counter(
            "pseudoword_log_upkeep_total", "Derived objects written: segment, checkpoint.", ("kind",), registry=registry
        )
