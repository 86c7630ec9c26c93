"""The same points in Prometheus' text format, by way of its own client library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fulgurite.telemetry.encode import Snapshot, replica_labels
from fulgurite.telemetry.metrics import Histogram, Point
from fulgurite.telemetry.names import Metric, prometheus_label, prometheus_name


class Scrape:
    """A collector of `prometheus_client`: asks for snapshots whenever it is scraped.

    Parameters
    ----------
    snapshots : callable
        Gives what there is now. It is called on the thread of the scrape.
    """

    def __init__(self, snapshots: Callable[[], Iterable[Snapshot]]) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterator[Any]:
        """Every metric family."""
        families: dict[Metric, list[tuple[dict[str, str], Point]]] = {}
        for snapshot in self._snapshots():
            labels = {prometheus_label(k): v for k, v in replica_labels(snapshot.resource).items()}
            for point in snapshot.points:
                families.setdefault(point.metric, []).append((labels, point))
        names = sorted({name for rows in families.values() for labels, _ in rows for name in labels})
        for metric, rows in families.items():
            yield _family(metric, names, rows)


def _family(metric: Metric, names: list[str], rows: list[tuple[dict[str, str], Point]]) -> Any:
    from prometheus_client import core

    kinds = {
        "counter": core.CounterMetricFamily,
        "gauge": core.GaugeMetricFamily,
        "histogram": core.HistogramMetricFamily,
        "moments": core.SummaryMetricFamily,
    }
    own = [prometheus_label(label) for label in metric.labels]
    family = kinds[metric.kind](prometheus_name(metric), metric.description, labels=[*names, *own])
    for labels, point in rows:
        values = [labels.get(name, "") for name in names]
        values += [point.labels.get(label, "") for label in metric.labels]
        value = point.value
        if not isinstance(value, Histogram):
            family.add_metric(values, value)
        elif metric.kind == "moments":
            family.add_metric(values, count_value=value.count, sum_value=value.total)
        else:
            family.add_metric(values, buckets=list(_buckets(value)), sum_value=value.total)
    return family


def _buckets(histogram: Histogram) -> Iterator[tuple[Any, ...]]:
    """Cumulated buckets: the edge, how many are at or below it, and an exemplar where there is one."""
    from prometheus_client.core import Exemplar

    total = 0
    for at, count in enumerate(histogram.counts):
        total += count
        edge = repr(float(histogram.bounds[at])) if at < len(histogram.bounds) else "+Inf"
        found = histogram.exemplars.get(at)
        if found is None:
            yield (edge, float(total))
        else:
            labels = {"trace_id": found.trace_id, "span_id": found.span_id}
            yield (edge, float(total), Exemplar(labels, found.value, found.time_ns / 1e9))
