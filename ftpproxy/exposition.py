"""The metrics in the text form of Prometheus, made when somebody asks: names, help and units are all here.

prometheus-client writes the text and counts the process itself (memory, descriptors, CPU); the numbers come from
`metrics.counts` and from what stands at the moment.  docs/metrics.md describes each metric; a test holds the two
together.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from attrs import frozen
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from . import __version__, logsinks
from .log import flood
from .metrics import Counts, Histogram

__all__ = ["Exposition", "Present"]

Key = TypeVar("Key", bound=tuple[object, ...])
"""The values of the labels."""


@frozen(kw_only=True)
class Present:
    """How many there are at the moment."""

    sessions: Callable[[], Mapping[str, int]]
    """By service."""
    paths: Callable[[], Mapping[tuple[str, str], int]]
    """Data connections prepared or carried, by service and plane."""
    elements: Callable[[], int]
    """Of our table in the kernel's packet filter."""


class Exposition(Collector):
    """All metrics of a process.  `text` is what a scrape gets."""

    def __init__(self, counts: Counts, present: Present) -> None:
        self._counts = counts
        self._present = present
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        counts, present = self._counts, self._present
        yield _gauge("build_info", "Always 1; what runs.", ("version", "python"), _build())
        yield _gauge("sessions_open", "Clients that are being served.", ("service",), _single(present.sessions()))
        yield _counter(
            "sessions", "Sessions that ended, also those without a server.", ("service", "code"), counts.sessions
        )
        yield _counter("refused", "Clients that were not let in.", ("service", "code"), counts.refused)
        yield _counter("denials", "Commands, ports and servers refused by a rule.", ("service", "rule"), counts.denials)
        yield _counter(
            "failed_logins", "Logins refused, by the server or the proxy.", ("service", "code"), counts.failed_logins
        )
        yield _counter(
            "transfers",
            "Data connections that carried; outcome is complete or a reason code.",
            ("service", "client", "server", "plane", "direction", "outcome"),
            counts.transfers,
        )
        yield _counter(
            "data_bytes", "Octets of data, when their transfer ended.", ("service", "plane", "direction"), counts.octets
        )
        yield _histogram(
            "transfer_duration_seconds", "Duration of transfers.", ("plane", "direction"), counts.durations.items()
        )
        set_ups = (((plane,), histogram) for plane, histogram in counts.set_ups.items())
        yield _histogram(
            "data_setup_seconds", "From the preparation of a data connection to both ends.", ("plane",), set_ups
        )
        yield _counter(
            "data_failures",
            "Data connections that never carried.",
            ("service", "plane", "code"),
            counts.data_failures,
        )
        yield _counter(
            "plane_refusals",
            "Planes that did not take a data connection.",
            ("service", "plane", "code"),
            counts.fallbacks,
        )
        yield _counter("strangers", "Calls at data ports by somebody else.", (), {(): counts.strangers})
        yield _gauge(
            "paths", "Data connections prepared or carried at the moment.", ("service", "plane"), present.paths()
        )
        yield _gauge("rules", "Elements of our table in nftables.", (), {(): present.elements()})
        yield _counter("log_suppressed_lines", "Lines of the log left out.", (), {(): flood.suppressed})
        yield _counter("log_lost_lines", "Lines of the log that could not be written.", (), {(): logsinks.lost.lines})


def _build() -> dict[tuple[object, ...], int]:
    return {(__version__, platform.python_version()): 1}


def _single(numbers: Mapping[str, int]) -> dict[tuple[object, ...], int]:
    return {(key,): number for key, number in numbers.items()}


def _fill(family: GaugeMetricFamily | CounterMetricFamily, numbers: Mapping[Key, int]) -> Metric:
    for key, number in numbers.items():
        family.add_metric([str(each) for each in key], number)
    return family


def _gauge(name: str, text: str, labels: tuple[str, ...], numbers: Mapping[Key, int]) -> Metric:
    return _fill(GaugeMetricFamily(f"ftpproxy_{name}", text, labels=labels), numbers)


def _counter(name: str, text: str, labels: tuple[str, ...], numbers: Mapping[Key, int]) -> Metric:
    return _fill(CounterMetricFamily(f"ftpproxy_{name}", text, labels=labels), numbers)


def _histogram(
    name: str, text: str, labels: tuple[str, ...], histograms: Iterable[tuple[tuple[str, ...], Histogram]]
) -> Metric:
    family = HistogramMetricFamily(f"ftpproxy_{name}", text, labels=labels)
    for key, histogram in histograms:
        family.add_metric(list(key), list(_cumulative(histogram)), histogram.total)
    return family


def _cumulative(histogram: Histogram) -> Iterator[tuple[str, float]]:
    """Each bucket with all below it, as Prometheus wants them."""
    count = 0
    for bound, more in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        count += more
        yield bound, count
