"""What makes a service unhealthy although its database answers: done for real, and named by health and `check`."""

from __future__ import annotations

import re
from contextlib import closing
from typing import Any

import pytest

from heartbeat import Heartbeat
from heartbeat.cli.check import checkup
from heartbeat.settings import Settings
from tests.support import schema_snapshot
from tests.support.rows import Conn

TRIGGERS = sorted(set(re.findall(r"CREATE TRIGGER (\w+)", schema_snapshot.FILE.read_text("utf-8"))))
UNIQUE = ["data_flow_runs_one_live_run_per_flow", "data_flow_runs_pkey"]


def table_of(trigger: str) -> str:
    return "data_flow_runs" if trigger.startswith("data_flow_runs") else "data_flows"


DAMAGES: dict[str, Any] = {
    **{f"ALTER TABLE {table_of(name)} DISABLE TRIGGER {name}": name for name in TRIGGERS},
    **{f"ALTER TABLE {table_of(name)} ENABLE REPLICA TRIGGER {name}": name for name in TRIGGERS[:1]},
    **{f"DROP TRIGGER {name} ON {table_of(name)}": name for name in TRIGGERS},
    "ALTER TABLE data_flow_runs DISABLE TRIGGER ALL": "RI_ConstraintTrigger",
    "ALTER TABLE data_flows DISABLE TRIGGER ALL": "RI_ConstraintTrigger",
    "ALTER TABLE data_flow_runs DROP CONSTRAINT data_flow_runs_pkey": UNIQUE[1],
    f"DROP INDEX {UNIQUE[0]}": UNIQUE[0],
    f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{UNIQUE[0]}'::regclass": UNIQUE[0],
}


@pytest.mark.parametrize(("statement", "named"), DAMAGES.items(), ids=DAMAGES)
def test_a_schema_that_lost_what_its_rules_hang_on_is_unhealthy_and_named(
    db: Conn, database_url: str, statement: str, named: str
) -> None:
    with Heartbeat(database_url=database_url) as hb:
        assert hb.health().ok, hb.health().reason
        db.execute(statement)
        health = hb.health()
        assert not health.ok
        assert named in (health.reason or "")
    problems = [str(finding.problem) for finding in checkup(Settings.load(database_url=database_url))]
    assert any(named in problem for problem in problems)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("default_transaction_read_only = on", "takes no writes"),
        ("session_replication_role = replica", "origin"),
    ],
)
def test_a_database_whose_sessions_cannot_do_our_work_is_unhealthy(
    db: Conn, database_url: str, setting: str, named: str
) -> None:
    db.execute(f"ALTER DATABASE {db.info.dbname} SET {setting}")
    with closing(Heartbeat(database_url=database_url)) as hb:
        health = hb.start(run_flows=False).health()
        assert not health.ok
        assert named in (health.reason or "")
