"""What README and docs show works: their examples are run as they stand."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from starlette.testclient import TestClient

from heartbeat import DataFlow, Heartbeat
from heartbeat.cli.commands import cli
from heartbeat.settings import SETTINGS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def statements(block: str) -> list[str]:
    code = re.sub(r"(?m)^--.*$", "", block)
    return [statement.strip() for statement in code.split(";") if statement.strip()]


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    monkeypatch.setenv("HEARTBEAT_DATABASE_URL", database_url)
    monkeypatch.setenv("HEARTBEAT_TOKEN", "0123456789abcdef")


def test_the_app_of_the_readme_runs_its_flow_on_a_heartbeat(configured: None) -> None:
    names: dict[str, Any] = {"__name__": "readme"}
    exec(blocks("python")[0], names)
    with TestClient(names["app"]) as client:
        answer = client.post("/data_flows/heartbeat", headers={"X-Heartbeat-Token": "0123456789abcdef"})
        assert (answer.status_code, answer.json()["flows_succeeded"]) == (200, 1)
        assert names["app"].state.heartbeat.runs("ImportOrders")[0].result["rows"] > 100


def test_the_host_of_the_readme_serves_the_app_it_mounts_and_drains_it(configured: None) -> None:
    names: dict[str, Any] = {"__name__": "readme"}
    exec(blocks("python")[1], names)
    with TestClient(names["app"]) as client:
        answer = client.post("/data_flows/heartbeat", headers={"Authorization": "Bearer 0123456789abcdef"})
        assert (answer.status_code, answer.json()["flows_due"]) == (200, 0)
    assert not names["heartbeat_app"].state.heartbeat.health().ok


def test_the_readme_runs_flows_without_the_web(configured: None, db: psycopg.Connection[Any]) -> None:
    exec(blocks("python")[2], {"__name__": "readme"})
    results = db.execute("SELECT status, result->>'interval' FROM data_flow_runs").fetchall()
    assert results == [("success", "5 minutes")] * 2


def test_a_dba_can_type_what_the_readme_shows(configured: None, db: psycopg.Connection[Any]) -> None:
    shown = statements(blocks("sql")[0])
    assert len(shown) == 11
    for statement in shown:
        db.execute(statement)
    row = db.execute(
        "SELECT enabled, run_interval, run_timeout FROM data_flows WHERE name = 'orders'"
    ).fetchone()
    assert row == (True, 60, 30)
    assert db.execute("SELECT status, error FROM data_flow_runs").fetchall() == [("failed", "ended by hand")]


class Fine(DataFlow):
    def run(self) -> None:
        with self.connection() as conn:
            conn.execute("SELECT 1")


class Fails(DataFlow):
    def run(self) -> None:
        raise RuntimeError("on purpose")


class Overstays(DataFlow):
    def run(self) -> None:
        self.stopping.wait(30)


def test_the_grants_of_the_readme_are_all_that_the_service_needs(
    db: psycopg.Connection[Any], database_url: str
) -> None:
    db.execute(
        "DO $$ BEGIN CREATE ROLE heartbeat_app LOGIN PASSWORD 'x'; EXCEPTION WHEN OTHERS THEN NULL; END $$"
    )
    for statement in statements(blocks("sql")[1]):
        db.execute(statement)
    db.execute("INSERT INTO data_flows (name, run_interval) VALUES ('Fine', 60), ('Fails', 60)")
    db.execute("INSERT INTO data_flows (name, run_interval, run_timeout) VALUES ('Overstays', 60, 1)")
    db.execute("INSERT INTO data_flow_stale_statuses (data_flow_id) VALUES (1)")
    db.execute(
        "INSERT INTO data_flow_runners (id, host, pid, last_seen_at)"
        " VALUES (gen_random_uuid(), 'gone', 1, now() - interval '1 day')"
    )
    url = f"{database_url}{'&' if '?' in database_url else '?'}user=heartbeat_app&password=x"
    with Heartbeat(flows=[Fine, Fails, Overstays], database_url=url, runner_ttl=1) as hb:
        report = hb.beat()
        assert (report.flows_succeeded, report.flows_failed) == (1, 2)
        assert hb.trigger_run("Fine").status == "success"
        assert (hb.flow_status() and hb.runs() and hb.health().ok, hb.prune()) == (True, 0)
    assert db.execute("SELECT count(*) FROM data_flow_runners").fetchone() == (0,)
    assert db.execute("SELECT count(*) FROM data_flow_stale_statuses").fetchone() == (0,)


def test_the_readme_lists_every_setting_with_its_default() -> None:
    listed = re.findall(r"^\| `HEARTBEAT_(\w+)` \| ([^|]+) \|", README, re.MULTILINE)
    assert [name.lower() for name, _ in listed] == list(SETTINGS)
    for name, shown in listed:
        default = SETTINGS[name.lower()].default
        if isinstance(default, bool):
            assert shown == f"`{default}`".lower()
        elif isinstance(default, int | float):
            assert shown == f"{default:g}"
        elif default:
            assert shown == f"`{default}`"
        else:
            assert "`" not in shown, "in words what happens without it"


def test_the_readme_lists_every_command() -> None:
    commands = README.split("## Commands")[1].split("## ")[0]
    assert [name for name in cli.commands if f"{name}" not in commands] == []


def test_every_link_within_the_project_leads_somewhere() -> None:
    dead = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert dead == []


def test_the_manifests_of_the_readme_parse() -> None:
    [manifest] = [yaml.safe_load(block) for block in blocks("yaml")]
    assert manifest["kind"] == "CronJob"
    assert "[Timer]" in blocks("ini")[0]


def test_the_readme_names_the_oldest_python_that_the_package_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Python {project['requires-python'].removeprefix('>=')} and newer" in README
