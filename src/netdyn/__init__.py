"""Network-dynamics metrics for PyTorch training.

Public names are imported on first use, which keeps ``import netdyn`` fast: only the callback needs Lightning, and only
the metrics need torchmetrics.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netdyn import functional, tags
    from netdyn._utils.checks import DynamicsWarning
    from netdyn.basins.result import BasinResult
    from netdyn.callback import DynamicsMonitor
    from netdyn.engine.config import Config
    from netdyn.engine.diagnose import diagnose
    from netdyn.metrics import (
        BatchNormGap,
        LinearTail,
        NetworkModes,
        NeuronModes,
        RankDistribution,
        SampleBasin,
        WeightBasin,
    )
    from netdyn.monitor import Monitor
    from netdyn.report.results import LayerReport, Report
    from netdyn.trial import Trial, trial_run

__version__ = "0.2.0"

__all__ = [
    "BasinResult",
    "BatchNormGap",
    "Config",
    "DynamicsMonitor",
    "DynamicsWarning",
    "LayerReport",
    "LinearTail",
    "Monitor",
    "NetworkModes",
    "NeuronModes",
    "RankDistribution",
    "Report",
    "SampleBasin",
    "Trial",
    "WeightBasin",
    "diagnose",
    "functional",
    "tags",
    "trial_run",
]

_HOME = {
    "BasinResult": "basins.result",
    "BatchNormGap": "metrics",
    "Config": "engine.config",
    "DynamicsMonitor": "callback",
    "DynamicsWarning": "_utils.checks",
    "LayerReport": "report.results",
    "LinearTail": "metrics",
    "Monitor": "monitor",
    "NetworkModes": "metrics",
    "NeuronModes": "metrics",
    "RankDistribution": "metrics",
    "Report": "report.results",
    "SampleBasin": "metrics",
    "Trial": "trial",
    "WeightBasin": "metrics",
    "diagnose": "engine.diagnose",
    "trial_run": "trial",
}


def __getattr__(name: str) -> Any:
    if name in ("functional", "tags"):
        return import_module(f"netdyn.{name}")
    if name in _HOME:
        return getattr(import_module(f"netdyn.{_HOME[name]}"), name)
    raise AttributeError(f"module 'netdyn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
