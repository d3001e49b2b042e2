"""/metrics: what Prometheus scrapes. Open without a key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from ..metrics import TEXTS, Counter, Gauge, Histogram, Metric
from .protocol.common import ErrorResponse
from .serving import Serving

router = APIRouter()
_FAMILIES: dict[type[Metric], Any] = {Counter: CounterMetricFamily, Gauge: GaugeMetricFamily, Histogram: HistogramMetricFamily}


class Metrics(Collector):
    """Metrics as they were read, as prometheus_client writes them."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._series: defaultdict[str, list[Metric]] = defaultdict(list)
        for metric in metrics:
            self._series[metric.name].append(metric)

    def collect(self) -> Iterator[Family]:
        """One family per name."""
        for name, series in self._series.items():
            yield _family(name, series)


def render(metrics: Iterable[Metric]) -> bytes:
    """Prometheus' text format, with what this process takes of the machine (``process_*``)."""
    registry = CollectorRegistry()
    registry.register(Metrics(metrics))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _family(name: str, series: list[Metric]) -> Family:
    family: Any = _FAMILIES[type(series[0])](name, TEXTS[name], labels=list(series[0].labels))
    for metric in series:
        values = list(metric.labels.values())
        if isinstance(metric, Histogram):
            family.add_metric(values, list(metric.buckets.items()), metric.sum)
        elif isinstance(metric, Counter | Gauge):
            family.add_metric(values, metric.value)
    return family


@router.get("/metrics", response_class=Response, responses={503: {"model": ErrorResponse}})
async def metrics(request: Request) -> Response:
    """The engine's metrics, under the name that the model is served by."""
    serving: Serving = request.app.state.serving
    found = await serving.engine.metrics(serving.model_names[0])
    return Response(render(found), media_type=CONTENT_TYPE_LATEST)
