"""The Generation server's Prometheus metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class EngineMetrics:
    """Metrics of the engine and of the word cache, registered in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Histogram(
            "pseudoword_generation_call_seconds",
            "Time of one call of the denoiser, including scheduler steps.",
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.rows = Counter("pseudoword_generation_rows_total", "Rows computed by the denoiser.", registry=registry)
        self.pictures = Counter("pseudoword_generation_pictures_total", "Pictures finished.", registry=registry)
        self.waiting = Gauge(
            "pseudoword_generation_pictures_waiting", "Pictures waiting or being drawn.", registry=registry
        )
        self.word_hits = Counter(
            "pseudoword_generation_word_cache_hits_total",
            "Words whose vectors were found in the cache.",
            registry=registry,
        )
        self.word_offline = Counter(
            "pseudoword_generation_words_offline_total",
            "Requests that used cached words because the registry was unavailable.",
            registry=registry,
        )
        self.word_misses = Counter(
            "pseudoword_generation_word_cache_misses_total",
            "Words whose vectors were fetched from the registry.",
            registry=registry,
        )
