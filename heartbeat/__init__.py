"""Runs data flows when an HTTP heartbeat arrives. State is a few Postgres tables; there is no worker daemon."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from heartbeat.api import Heartbeat
from heartbeat.errors import (
    AlreadyRunning,
    DatabaseUnavailable,
    FlowNotFound,
    HeartbeatError,
    QueryError,
    SchemaError,
    SettingsError,
    Stopping,
    ValidationError,
)
from heartbeat.flows import DataFlow
from heartbeat.models import BeatReport, DataFlowRecord, DataFlowRun, Health
from heartbeat.settings import Settings

if TYPE_CHECKING:
    from heartbeat.http import create_app

__version__ = version("data-flow-heartbeat")

__all__ = [
    "AlreadyRunning",
    "BeatReport",
    "DataFlow",
    "DataFlowRecord",
    "DataFlowRun",
    "DatabaseUnavailable",
    "FlowNotFound",
    "Health",
    "Heartbeat",
    "HeartbeatError",
    "QueryError",
    "SchemaError",
    "Settings",
    "SettingsError",
    "Stopping",
    "ValidationError",
    "create_app",
]


def __getattr__(name: str) -> Any:
    """Import the web part when it is asked for: `heartbeat beat` needs no Starlette and starts sooner."""
    if name == "create_app":
        from heartbeat.http import create_app

        return create_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
