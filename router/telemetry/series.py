"""Counters and histograms that cost a fraction of a microsecond, exposed through prometheus_client.

Written by the event loop's thread alone, so a cell needs no lock; prometheus_client's own take one per increment and
walk the buckets one by one, which on the request path costs three times as much.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from router.telemetry.metric_catalogue import Kind, Metric


class CounterCell:
    """One series of a counter; add to value."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class HistogramCell:
    """One series of a histogram."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, in Prometheus' form."""
        sums: list[tuple[str, float]] = []
        count = 0
        for bound, here in zip([*map(str, self._bounds), "+Inf"], self.counts, strict=True):
            count += here
            sums.append((bound, count))
        return sums


class CounterSeries(Collector):
    """All series of one counter."""

    def __init__(self, metric: Metric, begins: Callable[[str], bool] | None = None) -> None:
        """begins: whether a value of the first label may have series; None: all may."""
        assert metric.kind is Kind.COUNTER
        self._metric = metric
        self._begins = begins
        self._cells: dict[tuple[str, ...], CounterCell] = {}
        self._others: set[tuple[str, ...]] = set()
        """Values of the other labels: few, where those of the first come and go."""

    def cell(self, *labels: str) -> CounterCell:
        """The series of these label values, made at 0 when new; one that nobody sees when they may have none. Keep it:
        looking it up costs more than counting."""
        cell = self._cells.get(labels)
        if cell is None:
            assert len(labels) == len(self._metric.labels), self._metric.name
            cell = CounterCell()
            if self._begins is None or self._begins(labels[0]):
                self._cells[labels] = cell
                self._others.add(labels[1:])
        return cell

    def forget(self, first: str) -> None:
        """Let go of all series of a value of the first label."""
        for others in self._others:
            self._cells.pop((first, *others), None)

    def collect(self) -> Iterator[Family]:
        """For the registry."""
        family = CounterMetricFamily(self._metric.full_name, self._metric.meaning, labels=self._metric.labels)
        for labels, cell in self._cells.items():
            family.add_metric(labels, cell.value)
        yield family


class HistogramSeries(Collector):
    """All series of one histogram."""

    def __init__(self, metric: Metric) -> None:
        assert metric.kind is Kind.HISTOGRAM
        self._metric = metric
        self._cells: dict[tuple[str, ...], HistogramCell] = {}

    def cell(self, *labels: str) -> HistogramCell:
        """The series of these label values, made empty when new."""
        cell = self._cells.get(labels)
        if cell is None:
            assert len(labels) == len(self._metric.labels), self._metric.name
            cell = self._cells[labels] = HistogramCell(self._metric.buckets)
        return cell

    def collect(self) -> Iterator[Family]:
        """For the registry."""
        family = HistogramMetricFamily(self._metric.full_name, self._metric.meaning, labels=self._metric.labels)
        for labels, cell in self._cells.items():
            family.add_metric(labels, buckets=cell.buckets(), sum_value=cell.total)
        yield family


class GaugeReading:
    """The values of one gauge, read now."""

    def __init__(self, metric: Metric) -> None:
        assert metric.kind is Kind.GAUGE
        self.family = GaugeMetricFamily(metric.full_name, metric.meaning, labels=metric.labels)

    def set(self, value: float, *labels: str) -> None:
        """Note a value."""
        self.family.add_metric(labels, value)
