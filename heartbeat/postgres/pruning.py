"""Pruning: what is older than the retention is deleted in batches, each a statement that takes some 10 ms."""

from __future__ import annotations

from collections.abc import Iterator

from heartbeat.postgres.queries import Queries
from heartbeat.postgres.statements import Statements

_BATCH = 2000
"""Rows that one statement deletes at most."""


def prune(database: Statements, queries: Queries, retention_days: float) -> Iterator[int]:
    """Delete runs, then heartbeats, older than the retention; yield each batch's number of rows.

    Goes on as long as it is iterated and there is more. A retention of 0 keeps everything.
    """
    for statement in (queries.prune_runs, queries.prune_heartbeats):
        deleted = _BATCH if retention_days else 0
        while deleted == _BATCH:
            deleted = database.run(statement, retention_days=retention_days, max_rows=_BATCH)
            yield deleted
