"""What a running component tells about itself: log lines and counters.

Belongs here: setting up structlog, counters with labels, and their Prometheus text. Does not belong here: who counts
what.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("console", "json")
METRIC_PREFIX = "meshlog_"

Labels = tuple[tuple[str, str], ...]


def configure_logging(log_format: str, log_level: str, component: str) -> None:
    """Lines go to stderr, as JSON objects or for people's eyes; every line carries the component's name."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if log_format == "json":
        renderer: Any = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(component=component)


class Counters:
    """Numbers with names and labels. Single-threaded: only the event loop counts."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, Labels], float] = {}

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Count up."""
        key = (name, tuple(sorted(labels.items())))
        self._values[key] = self._values.get(key, 0) + amount

    def put(self, name: str, value: float, **labels: str) -> None:
        """A gauge: the value now."""
        self._values[(name, tuple(sorted(labels.items())))] = value

    def value(self, name: str, **labels: str) -> float:
        """0 where nothing was counted."""
        return self._values.get((name, tuple(sorted(labels.items()))), 0)

    def samples(self) -> list[tuple[str, Labels, float]]:
        """All of them, sorted by name and labels."""
        return sorted((name, labels, value) for (name, labels), value in self._values.items())


def prometheus_text(samples: Sequence[tuple[str, Labels, float]], described: Mapping[str, str]) -> str:
    """Text exposition format; `described` gives the help line of a name. Names ending in _total are counters."""
    lines: list[str] = []
    previous = ""
    for name, labels, value in sorted(samples):
        if name != previous:
            lines.append(f"# HELP {METRIC_PREFIX}{name} {described.get(name, name.replace('_', ' '))}")
            lines.append(f"# TYPE {METRIC_PREFIX}{name} {'counter' if name.endswith('_total') else 'gauge'}")
            previous = name
        text = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels)
        lines.append(
            f"{METRIC_PREFIX}{name}{{{text}}} {value:.17g}" if text else f"{METRIC_PREFIX}{name} {value:.17g}"
        )
    return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
