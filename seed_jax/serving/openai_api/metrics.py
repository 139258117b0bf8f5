"""Metrics for Prometheus: vLLM's names where the meaning is the same, `seed_jax:` ones for slots and images."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from seed_jax.inference.generation.sampling_params import SamplingParams
from seed_jax.serving.engine.request import Timings
from seed_jax.serving.messages import AnswerUsage
from seed_jax.serving.openai_api.answers import finish_reason
from seed_jax.serving.service import SeedService

# vLLM's buckets, which dashboards expect.
_FIRST_TOKEN = (
    .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
_INTER_TOKEN = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)  # fmt: skip
_LATENCY = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)  # fmt: skip
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Metrics:
    """Observes a `SeedService` (a `ServiceObserver`).

    Args:
        model_name: label of every metric.
    """

    def __init__(self, model_name: str):
        self.registry = CollectorRegistry(auto_describe=True)
        self._labels = {"model_name": model_name, "engine": "0"}

        def histogram(name: str, description: str, buckets: tuple[float, ...]) -> Any:
            metric = Histogram(name, description, list(self._labels), buckets=buckets, registry=self.registry)
            return metric.labels(**self._labels)

        def counter(name: str, description: str, *labels: str) -> Counter:
            return Counter(name, description, [*self._labels, *labels], registry=self.registry)

        self._first_token = histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", _FIRST_TOKEN)
        self._inter_token = histogram("vllm:inter_token_latency_seconds", "Between two tokens.", _INTER_TOKEN)
        self._latency = histogram("vllm:e2e_request_latency_seconds", "Arrival to end.", _LATENCY)
        self._queue = histogram("vllm:request_queue_time_seconds", "Arrival to a slot.", _LATENCY)
        self._prefill = histogram("vllm:request_prefill_time_seconds", "Slot to first decode step.", _LATENCY)
        self._decode = histogram("vllm:request_decode_time_seconds", "First decode step to end.", _LATENCY)
        self._prompt = histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._generation = histogram("vllm:request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self._max_tokens = histogram("vllm:request_params_max_tokens", "max_tokens of a request.", _TOKENS)
        self._success = counter("vllm:request_success", "Answers by finish_reason.", "finished_reason")
        self._rejections = counter("vllm:admission_rejections", "Requests that were not admitted.", "reason")
        self._encoded = counter("seed_jax:images_encoded", "Images of requests, by origin of their codes.", "origin")
        self._encode_time = histogram("seed_jax:image_encode_seconds", "Encoding the images of a request.", _LATENCY)
        self._draw_time = histogram("seed_jax:image_draw_seconds", "Codes complete to image drawn.", _LATENCY)

    def attach(self, service: SeedService) -> None:
        """Observe a service, and report the state of its engine."""
        service.observer = self
        self.registry.register(_EngineCollector(service, self._labels))

    def render(self) -> tuple[bytes, str]:
        """Return the metrics as text, and its media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def tokens(self, count: int, seconds: float) -> None:
        # Tokens come in chunks: the time counts once per token, as if they had come one by one.
        for _ in range(count):
            self._inter_token.observe(seconds / count)

    def finished(
        self, params: SamplingParams, reason: str, usage: AnswerUsage, timings: Timings, total_s: float
    ) -> None:
        self._success.labels(**self._labels, finished_reason=finish_reason(reason)).inc()
        self._latency.observe(total_s)
        self._prompt.observe(usage.prompt_tokens)
        self._generation.observe(usage.completion_tokens)
        self._max_tokens.observe(params.max_new_tokens)
        if timings.queue_s is not None:
            self._queue.observe(timings.queue_s)
        if timings.queue_s is not None and timings.prefill_s is not None:
            self._prefill.observe(timings.prefill_s)
            self._decode.observe(max(0.0, timings.total_s - timings.queue_s - timings.prefill_s))

    def encoded(self, count: int, cached: int, seconds: float) -> None:
        for origin, number in (("encoder", count - cached), ("cache", cached)):
            self._encoded.labels(**self._labels, origin=origin).inc(number)
        self._encode_time.observe(seconds)

    def drawn(self, seconds: float) -> None:
        self._draw_time.observe(seconds)

    def rejected(self, reason: str) -> None:
        self._rejections.labels(**self._labels, reason=reason).inc()


class _EngineCollector:
    """Reads the engine's state when metrics are asked for."""

    def __init__(self, service: SeedService, labels: dict[str, str]):
        self._service = service
        self._labels = labels

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        stats = self._service.engine.stats()
        gauges = {
            "vllm:num_requests_running": ("Requests that are prefilled or decoded.", stats.running),
            "vllm:num_requests_waiting": ("Requests that wait for a slot.", stats.waiting),
            "vllm:kv_cache_usage_perc": ("Share of the KV cache in use, 0 to 1.", stats.kv_cache_usage),
            "seed_jax:slots": ("Slots of the engine.", stats.num_slots),
            "seed_jax:slots_in_use": ("Slots that requests occupy.", stats.slots_in_use),
            "seed_jax:requests_open": ("Answers that clients wait for.", self._service.num_requests),
            "seed_jax:compiled_programs": ("Programs of the slots.", stats.num_programs),
        }
        counters = {
            "vllm:prompt_tokens": ("Tokens of admitted prompts.", stats.prompt_tokens),
            "vllm:generation_tokens": ("Generated tokens.", stats.generation_tokens),
            "vllm:prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", stats.prefix_cache_queries),
            "vllm:prefix_cache_hits": ("Prompt tokens found in the prefix cache.", stats.prefix_cache_hits),
        }
        for kind, entries in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, (description, value) in entries.items():
                family = kind(name, description, labels=list(self._labels))
                family.add_metric(list(self._labels.values()), value)
                yield family
