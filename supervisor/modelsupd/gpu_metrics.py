"""The metrics of GPUs: what the last look told, and what is claimed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

#: Every state is a series of its own, so that an alert never has to guess at absence.
STATES = ("ok", "quarantined", "lost", "unknown")

_LABELS = ("uuid", "index", "name")


def of_gpus(rows: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """Yield the metrics of GPUs; none where no model uses any."""
    if not rows:
        return
    for key, doc in (
        ("total_bytes", "Memory of the GPU."),
        ("used_bytes", "Memory of the GPU in use, by whomever."),
        ("claimed_bytes", "Memory of the GPU that is claimed by runs, or used by them where that is more."),
        ("foreign_bytes", "Memory of the GPU in use by processes that are not ours."),
        ("temperature_c", "Temperature of the GPU, in degrees Celsius."),
        ("ecc_errors", "Uncorrected memory errors since the driver was loaded."),
    ):
        name = key.replace("temperature_c", "temperature_celsius")
        family = GaugeMetricFamily(f"modelsupd_gpu_{name}", doc, labels=_LABELS)
        for row in rows:
            if row[key] is not None:
                family.add_metric(_labels(row), row[key])
        yield family
    state = GaugeMetricFamily("modelsupd_gpu_state", "1 for the present state.", labels=(*_LABELS, "state"))
    for row in rows:
        for each in STATES:
            state.add_metric((*_labels(row), each), float(row["state"] == each))
    yield state


def _labels(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["uuid"], str(row["index"]), row["name"]
