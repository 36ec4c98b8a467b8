"""What the engine counts, in Prometheus' terms."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class EngineMetrics:
    """Counters of the engine and of the word cache, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Histogram(
            "pseudoword_generation_call_seconds",
            "Time of one call of the denoiser, scheduler steps included.",
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.rows = Counter("pseudoword_generation_rows_total", "Rows computed by the denoiser.", registry=registry)
        self.pictures = Counter("pseudoword_generation_pictures_total", "Pictures finished.", registry=registry)
        self.waiting = Gauge(
            "pseudoword_generation_pictures_waiting", "Pictures that wait or are being drawn.", registry=registry
        )
        self.word_hits = Counter(
            "pseudoword_generation_word_cache_hits_total", "WordResolver found in the cache.", registry=registry
        )
        self.word_offline = Counter(
            "pseudoword_generation_words_offline_total",
            "Requests whose words were used as last known, the registry being away.",
            registry=registry,
        )
        self.word_misses = Counter(
            "pseudoword_generation_word_cache_misses_total",
            "WordResolver fetched from the registry.",
            registry=registry,
        )
