"""Continuous batching: requests of token ids that join and leave one running batch.

Example:
    engine = Engine(Generator.load("models/seed_llama_8b"), EngineConfig(num_slots=8))
    engine.start()
    stream = engine.submit(EngineRequest("1", tuple(prompt), SamplingParams(temperature=0.7)))
    for event in stream:  # or `async for`
        ...  # TokenEvent, ..., FinishedEvent
    engine.shutdown()
"""

from seed_jax.serving.engine.config import EngineConfig
from seed_jax.serving.engine.engine import Engine, EngineStats
from seed_jax.serving.engine.request import (
    EngineClosedError,
    EngineDeadError,
    EngineError,
    EngineRequest,
    FinishedEvent,
    QueueFullError,
    SlowReaderError,
    Timings,
    TokenEvent,
    Usage,
)
from seed_jax.serving.engine.stream import RequestStream

__all__ = [
    "Engine",
    "EngineClosedError",
    "EngineConfig",
    "EngineDeadError",
    "EngineError",
    "EngineRequest",
    "EngineStats",
    "FinishedEvent",
    "QueueFullError",
    "RequestStream",
    "SlowReaderError",
    "Timings",
    "TokenEvent",
    "Usage",
]
