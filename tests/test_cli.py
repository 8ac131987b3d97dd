"""The commands, as processes: what they print, and their exit status."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from heartbeat import __version__
from heartbeat.cli.commands import cli
from heartbeat.settings import SETTINGS
from tests.support.commands import Command, ended, leftovers
from tests.support.rows import Conn, add_flow, flow_row, make_due, runs_of
from tests.support.serving import Services
from tests.support.waiting import wait_until

COMMANDS = ("migrate", "serve", "beat", "ping", "flows", "runs", "run", "prune", "check", "demo")

UNREACHABLE = "postgresql://heartbeat:s3cret@127.0.0.1:1/heartbeat"

WORKS_AND_FAILS = """
from heartbeat import DataFlow

class Works(DataFlow):
    run_interval = 3600

    def run(self):
        return {"rows": 17}

class Fails(DataFlow):
    run_interval = 3600

    def run(self):
        raise ValueError("no such order\\nsecond line")
"""

WAITS = """
from heartbeat import DataFlow
import pathlib, time

class Waits(DataFlow):
    run_interval = 3600

    def run(self):
        pathlib.Path("begun").touch()
        self.stopping.wait(60)
        return "asked to stop"

class Deaf(DataFlow):
    def run(self):
        pathlib.Path("begun").touch()
        time.sleep(60)
"""


@pytest.fixture
def command(tmp_path: Path, database_url: str) -> Command:
    """`heartbeat` on this test's database."""
    return Command(tmp_path, database_url=database_url)


# --- help and usage -------------------------------------------------------------------------------------


def test_the_help_names_every_command_and_every_setting() -> None:
    shown = CliRunner().invoke(cli, ["--help"]).output

    assert set(cli.commands) == set(COMMANDS)
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert all(f"  HEARTBEAT_{name.upper()} " in shown for name in SETTINGS)


def test_the_help_fits_a_terminal_and_cuts_no_sentence() -> None:
    for arguments in ([], *([name] for name in COMMANDS)):
        shown = CliRunner().invoke(cli, [*arguments, "--help"], terminal_width=80).output

        assert max(map(len, shown.splitlines())) <= 80
        cut = [line for line in shown.splitlines() if line.endswith("...")]
        assert [line for line in cut if "[ARGS]" not in line and "TOKEN=" not in line] == []


def test_the_version_is_the_distributions() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output == f"heartbeat {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "nosuch",
        "beat --nosuch",
        "serve --port 65536",
        "serve --port x",
        "runs --limit 0",
        "run",
        "ping",
        "ping http://127.0.0.1:1/ --every 0",
        "ping http://127.0.0.1:1/ --token x",
        "migrate --rollback 0",
    ],
)
def test_wrong_usage_is_status_2(arguments: str) -> None:
    assert CliRunner().invoke(cli, arguments.split()).exit_code == 2


# --- settings and the database --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["serve", "beat", "flows", "migrate", "check", "demo"])
def test_a_mistyped_variable_is_status_2_and_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    line = Command(tmp_path, tokn="s3cret")(name).failed_with(2)

    assert "HEARTBEAT_TOKN" in line
    assert "s3cret" not in line


@pytest.mark.parametrize("name", ["serve", "beat", "flows", "runs", "run x", "migrate", "prune", "demo"])
def test_an_unreachable_database_is_status_1_and_one_line(tmp_path: Path, name: str) -> None:
    line = Command(tmp_path, database_url=UNREACHABLE, token="t")(*name.split()).failed_with(1)

    assert "Connection refused" in line
    assert "s3cret" not in line


@pytest.mark.parametrize("name", ["serve", "beat", "flows"])
def test_a_database_without_the_schema_is_status_1_and_names_the_command_that_helps(
    tmp_path: Path, empty_database_url: str, name: str
) -> None:
    done = Command(tmp_path, database_url=empty_database_url, token="t")(name)

    assert "heartbeat migrate" in done.failed_with(1)


@pytest.mark.parametrize("name", ["serve", "beat"])
def test_a_schema_newer_than_the_code_is_status_1(command: Command, db: Conn, name: str) -> None:
    db.execute(
        "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc) VALUES ('x', '9999.later', now())"
    )

    assert "9999.later" in command(name, token="t").failed_with(1)


def test_serve_without_a_token_is_status_2(command: Command) -> None:
    assert "HEARTBEAT_TOKEN" in command("serve").failed_with(2)


def test_serve_on_a_port_that_is_taken_is_status_1(command: Command, service: Services) -> None:
    port = service().url.split(":")[2].split("/")[0]

    done = command("serve", "--port", port, token="t")

    assert done.status == 1
    assert "in use" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("name", ["serve", "beat", "run x"])
def test_a_flow_module_that_does_not_import_is_status_2_and_is_named(command: Command, name: str) -> None:
    command.define("import nosuch")

    line = command(*name.split(), token="t").failed_with(2)

    assert command.settings["flows"] in line
    assert "nosuch" in line


def test_the_console_script_finds_flow_modules_in_the_current_directory(command: Command) -> None:
    command.define(WORKS_AND_FAILS)
    script = Path(sys.executable).with_name("heartbeat")

    done = subprocess.run(
        [script, "beat"],
        cwd=command.directory,
        env=command.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ", 2 triggered, " in done.stdout, done.stderr


# --- migrate --------------------------------------------------------------------------------------------


def test_migrate_says_what_it_applied_and_does_it_once(tmp_path: Path, empty_database_url: str) -> None:
    command = Command(tmp_path, database_url=empty_database_url)

    first, second = command("migrate"), command("migrate")

    assert (first.status, second.status) == (0, 0)
    assert first.lines[0] == "applied 0000.create-data-flow-schema"
    assert second.out == "the schema is up to date\n"
    assert command("flows").status == 0


def test_migrate_rolls_back_as_many_as_it_is_told(command: Command) -> None:
    newest = command("migrate", "--rollback")
    rest = command("migrate", "--rollback", "100")

    assert len(newest.lines) == 1
    assert newest.lines[0].startswith("rolled back 0")
    assert rest.lines[-1] == "rolled back 0000.create-data-flow-schema"
    assert command("migrate", "--rollback").out == "there is nothing to roll back\n"
    assert "heartbeat migrate" in command("beat").failed_with(1)


# --- beat -----------------------------------------------------------------------------------------------


def test_beat_runs_what_is_due_and_says_so_in_one_line(command: Command, db: Conn) -> None:
    command.define(WORKS_AND_FAILS)

    done = command("beat")

    assert done.status == 0
    assert "heartbeat 1: 2 due, 2 triggered, 1 succeeded, 1 failed; next due " in done.out
    assert len(done.lines) == 1
    assert flow_row(db, "Works").last_run_status == "success"
    assert flow_row(db, "Fails").last_run_status == "failed"


def test_beat_prints_the_http_answer_as_json(command: Command, service: Services) -> None:
    command.define(WORKS_AND_FAILS)

    printed = command("beat", "--json").json

    answered = service().beat().json()
    assert list(printed) == list(answered)
    assert (printed["flows_triggered"], printed["flows_failed"]) == (2, 1)
    assert len(printed["timestamp"]) == len(answered["timestamp"]) == len("2026-11-23T19:05:00Z")


def test_a_strict_beat_fails_when_a_flow_did(command: Command) -> None:
    command.define(WORKS_AND_FAILS)

    assert command("beat", "--strict").status == 1
    assert command("beat", "--strict").status == 0  # nothing is due any more


def test_beat_waits_for_flows_that_outlast_the_time_budget(command: Command) -> None:
    command.define(
        """
        from heartbeat import DataFlow
        import time

        class Slow(DataFlow):
            run_interval = 3600

            def run(self):
                time.sleep(1)
        """
    )

    assert ", 1 succeeded, 0 failed; " in command("beat", time_budget=0.2).out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_a_beat(command: Command, db: Conn, number: signal.Signals) -> None:
    command.define(WAITS)
    beat = command.start("beat", drain_timeout=10)
    wait_until((command.directory / "begun").exists)

    beat.send_signal(number)
    done = ended(beat, 20)

    assert (done.status, "Traceback" in done.err) == (0, False)
    assert ", 1 triggered, 1 succeeded, 0 failed; " in done.out
    assert [(run.status, run.result) for run in runs_of(db, "Waits")] == [("success", "asked to stop")]


def test_a_flow_that_outlasts_the_drain_is_recorded_as_interrupted(command: Command, db: Conn) -> None:
    command.define(WAITS)
    add_flow(db, "Deaf")
    db.execute("INSERT INTO data_flows (name, run_interval, enabled) VALUES ('Waits', 3600, false)")
    beat = command.start("beat", "--strict", drain_timeout=0.5)
    wait_until((command.directory / "begun").exists)

    beat.send_signal(signal.SIGTERM)
    done = ended(beat, 20)

    assert done.status == 1
    (run,) = runs_of(db, "Deaf")
    assert (run.status, run.error) == ("failed", "Interrupted: the process stopped while this ran")
    assert db.execute("SELECT count(*) FROM data_flow_runners").fetchone() == (0,)


def test_a_thread_that_a_flow_leaves_behind_does_not_hold_the_process(command: Command) -> None:
    command.define(
        """
        from heartbeat import DataFlow
        import threading, time

        class LeavesAThread(DataFlow):
            run_interval = 3600

            def run(self):
                threading.Thread(target=time.sleep, args=(3600,)).start()
        """
    )

    assert command("beat", timeout=30).status == 0


def test_a_beat_needs_no_web_framework_to_print_its_answer_nor_to_end_the_process(command: Command) -> None:
    script = """
import os, sys, threading
from heartbeat.cli import main

unwanted = ("starlette", "uvicorn", "h11", "heartbeat.http", "rich")
leave = os._exit
os._exit = lambda status: leave(print([name for name in unwanted if name in sys.modules], flush=True) or status)
threading.Thread(target=threading.Event().wait).start()  # what a flow may leave behind
sys.argv = ["heartbeat", "beat", "--json"]
main()
"""

    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=command.directory,
        env=command.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout.splitlines()[-1] == "[]", done.stderr


# --- ping -----------------------------------------------------------------------------------------------


def test_a_ping_prints_what_the_heartbeat_did(command: Command, service: Services) -> None:
    serving = service(source=WORKS_AND_FAILS)

    done = command("ping", serving.url, token=serving.token)

    assert done.status == 0
    assert "heartbeat 1: 2 due, 2 triggered, 1 succeeded, 1 failed; next due " in done.out


def test_a_ping_prints_the_answer_as_json(command: Command, service: Services) -> None:
    serving = service(source=WORKS_AND_FAILS)

    done = command("ping", serving.url, "--json", "--strict", token=f"{serving.token},old")

    assert done.status == 1  # strict: a flow failed
    assert list(done.json) == list(serving.beat().json())
    assert done.json["flows_failed"] == 1


def test_a_ping_that_is_refused_is_status_1_and_says_why(command: Command, service: Services) -> None:
    done = command("ping", service().url, "--json", token="wrong")

    assert (done.status, done.json) == (1, {"error": "unauthorized"})
    assert done.err.endswith(" no heartbeat: 401 unauthorized\n")


def test_a_ping_that_nobody_answers_is_status_1(tmp_path: Path) -> None:
    done = Command(tmp_path)("ping", "http://127.0.0.1:1/data_flows/heartbeat")

    assert (done.status, done.out) == (1, "")
    assert "refused" in done.err


def test_a_url_that_is_none_is_status_2_and_is_not_shown(tmp_path: Path) -> None:
    assert "s3cret" not in Command(tmp_path)("ping", "http://me:s3cret@host/").failed_with(2)


def test_a_pinger_goes_on_until_it_is_told_to_stop(command: Command, service: Services, db: Conn) -> None:
    serving = service()
    pinger = command.start("ping", serving.url, "--every", "0.1", "--json", token=serving.token)

    def beats() -> int:
        return int(db.execute("SELECT count(*) FROM heartbeats").fetchone()[0])

    wait_until(lambda: beats() >= 3)
    pinger.send_signal(signal.SIGTERM)
    done = ended(pinger)

    assert done.status == 0
    assert len(done.lines) >= 3  # one line each


# --- run ------------------------------------------------------------------------------------------------


def test_run_runs_a_flow_now_and_prints_its_result(command: Command, db: Conn) -> None:
    command.define(WORKS_AND_FAILS)
    add_flow(db, "Works", enabled=False)

    done = command("run", "Works")

    assert done.status == 0
    assert done.out.startswith("run 1 of Works succeeded in ")
    assert done.out.endswith(': {"rows": 17}\n')
    assert [run.status for run in runs_of(db, "Works")] == ["success"]


def test_run_shows_the_traceback_of_a_flow_that_fails_from_its_own_code_on(
    command: Command, db: Conn
) -> None:
    command.define(WORKS_AND_FAILS)

    done = command("run", "Fails")

    assert (done.status, done.out) == (1, "")
    lines = done.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert f'{command.settings["flows"]}.py", line ' in lines[1]
    assert lines[-2:] == ["ValueError: no such order", "second line"]
    assert "heartbeat/" not in done.err
    assert [run.status for run in runs_of(db, "Fails")] == ["failed"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("sys.exit(0)", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise heartbeat.FlowNotFound('other')", "heartbeat.errors.FlowNotFound: no data flow is named"),
        ("raise ValueError('\\x1b[2J')", "ValueError: \\x1b[2J"),
    ],
)
def test_whatever_a_flow_raises_is_its_failure(command: Command, body: str, error: str) -> None:
    command.define(
        f"""
        import sys, heartbeat

        class Odd(heartbeat.DataFlow):
            run_interval = 3600

            def run(self):
                {body}
        """
    )

    done = command("run", "Odd")

    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("Traceback")
    assert done.err.splitlines()[-1].startswith(error)


def test_an_async_flow_that_fails_shows_its_own_frames_only(command: Command) -> None:
    command.define(
        """
        from heartbeat import DataFlow
        import asyncio

        class Later(DataFlow):
            run_interval = 3600

            async def run(self):
                await asyncio.sleep(0)
                raise ValueError("later")
        """
    )

    done = command("run", "Later")

    assert done.status == 1
    assert len(done.err.splitlines()) <= 4, done.err
    assert done.err.splitlines()[-1] == "ValueError: later"


def test_a_failure_that_never_came_to_the_flows_code_is_one_line(command: Command, db: Conn) -> None:
    add_flow(db, "Gone")

    done = command("run", "Gone")

    assert done.status == 1
    (line,) = done.err.splitlines()
    assert "no class 'Gone' is registered" in line


def test_a_run_that_times_out_is_one_line(command: Command, db: Conn) -> None:
    command.define(WAITS)

    done = command("run", "Waits", run_timeout=0.5)

    assert done.status == 1
    assert "RunTimeout: the run took longer than 0.5 s" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("name", ["nosuch", "", "a b", "\udcff", "x" * 10_000])
@pytest.mark.parametrize("subcommand", ["run", "runs"])
def test_a_flow_that_there_is_not_is_status_2(command: Command, subcommand: str, name: str) -> None:
    assert "no data flow is named" in command(subcommand, name).failed_with(2)


def test_a_flow_that_runs_already_is_status_1(command: Command, service: Services, db: Conn) -> None:
    serving = service(source=WAITS, time_budget=0.1)
    serving.beat()

    assert "live run" in command("run", "Waits").failed_with(1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_recorded_before_the_process_ends(
    command: Command, db: Conn, number: signal.Signals
) -> None:
    command.define(WAITS)
    add_flow(db, "Deaf")
    run = command.start("run", "Deaf", drain_timeout=0.5)
    wait_until((command.directory / "begun").exists)

    run.send_signal(number)
    done = ended(run, 20)

    assert done.failed_with(1) == "Error: interrupted; `heartbeat runs Deaf` says how the run ended"
    (recorded,) = runs_of(db, "Deaf")
    assert (recorded.status, recorded.error) == ("failed", "Interrupted: the process stopped while this ran")
    assert db.execute("SELECT count(*) FROM data_flow_runners").fetchone() == (0,)


# --- flows and runs -------------------------------------------------------------------------------------


def columns(db: Conn, *tables: str) -> set[str]:
    found = db.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = ANY (%s)", [list(tables)]
    ).fetchall()
    return {name for (name,) in found}


def test_flows_as_json_are_objects_named_as_the_columns(command: Command, db: Conn) -> None:
    command.define(WORKS_AND_FAILS)
    command("beat")
    add_flow(db, "paused", enabled=False, configuration={"a": [1]}, run_timeout=7)

    flows = {flow["name"]: flow for flow in command("flows", "--json").json}

    assert set(flows) == {"Works", "Fails", "paused"}
    assert set(flows["Works"]) == columns(db, "data_flow_status", "data_flows")
    assert flows["Fails"]["last_error"] == "ValueError: no such order"
    assert (flows["paused"]["configuration"], flows["paused"]["run_timeout"]) == ({"a": [1]}, 7)


def test_runs_as_json_are_objects_named_as_the_columns_with_the_flows_name(
    command: Command, db: Conn
) -> None:
    command.define(WORKS_AND_FAILS)
    command("beat")

    runs = command("runs", "--json").json

    assert [run["id"] for run in runs] == [2, 1]
    assert set(runs[0]) == columns(db, "data_flow_runs") | {"flow_name"}
    failed = next(run for run in runs if run["flow_name"] == "Fails")
    assert failed["error"] == "ValueError: no such order\nsecond line"
    assert failed["backtrace"].startswith("Traceback")
    assert isinstance(failed["duration"], float)


def test_nothing_is_an_empty_array_and_an_empty_table(command: Command) -> None:
    assert command("flows", "--json").json == command("runs", "--json").json == []
    assert [command(name).out for name in ("flows", "runs")] == ["", ""]


def test_runs_are_those_of_the_flow_that_is_named_and_as_many_as_asked_for(
    command: Command, db: Conn
) -> None:
    command.define(WORKS_AND_FAILS)
    for _ in range(3):
        make_due(db)
        command("beat")

    found = command("runs", "Works", "--limit", "2", "--json").json

    assert [run["flow_name"] for run in found] == ["Works", "Works"]
    assert found[0]["id"] > found[1]["id"]


def test_in_a_pipe_a_flow_is_one_plain_line_whatever_its_length(command: Command, db: Conn) -> None:
    name = "a name of many words " * 9
    add_flow(db, name)
    add_flow(db, "[red]not red[/red] \x1b[31m\u202e")

    header, *lines = command("flows").lines

    assert header.split() == [
        "FLOW",
        "EVERY",
        "STATE",
        "LAST",
        "RUN",
        "STATUS",
        "NEXT",
        "RUN",
        "LAST",
        "ERROR",
    ]
    assert len(lines) == 2
    assert lines[0].startswith("[red]not red[/red] \\x1b[31m\\u202e ")
    assert lines[1].startswith(name)
    assert all("1 h" in line and line.isprintable() for line in lines)


def test_on_a_terminal_a_table_is_as_wide_as_it_and_loses_nothing(command: Command, db: Conn) -> None:
    name = "".join(f"{number:03}" for number in range(60))
    add_flow(db, name)

    shown = command.on_a_terminal("flows", columns=80)

    lines = [click.unstyle(line) for line in shown.lines]
    assert max(map(len, lines)) <= 80
    assert "".join(line.split(" ", 1)[0] for line in lines[1:]) == name


def test_a_table_shows_the_first_line_of_an_error_and_cuts_long_results(command: Command) -> None:
    command.define(
        WORKS_AND_FAILS
        + """
class Talks(DataFlow):
    run_interval = 3600

    def run(self):
        return "x" * 10_000
"""
    )
    command("beat")

    lines = {line.split()[1]: line for line in command("runs").lines}

    assert lines["Fails"].endswith("ValueError: no such order")
    assert lines["Talks"].endswith("x…")
    assert len(lines["Talks"]) < 500


def test_the_state_of_a_flow_is_in_the_table(command: Command, db: Conn) -> None:
    add_flow(db, "paused", enabled=False)
    add_flow(db, "requested", enabled=False)
    db.execute("INSERT INTO data_flow_runs (data_flow_id) SELECT id FROM data_flows WHERE name = 'requested'")
    add_flow(db, "due")
    add_flow(db, "later")
    db.execute("UPDATE data_flows SET next_run_at = now() + interval '1 day' WHERE name = 'later'")

    states = {line.split()[0]: line for line in command("flows").lines[1:]}

    assert " paused " in states["paused"]
    assert " requested " in states["requested"]
    assert " due for " in states["due"]
    assert states["later"].split()[1:3] == ["1", "h"]


def test_a_broken_flow_module_is_no_reason_not_to_look(command: Command) -> None:
    command.define("import nosuch")

    assert [command(name).status for name in ("flows", "runs", "prune")] == [0, 0, 0]


def test_a_reader_that_has_seen_enough_hears_no_complaint(command: Command, db: Conn) -> None:
    db.execute(
        "INSERT INTO data_flows (name, run_interval) SELECT 'flow ' || n, 60 FROM generate_series(1, 5000) AS n"
    )
    with command.start("flows") as flows:
        assert flows.stdout is not None
        assert flows.stderr is not None
        flows.stdout.readline()
        flows.stdout.close()

        assert flows.stderr.read() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line(command: Command) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "heartbeat", "beat"],
            cwd=command.directory,
            env=command.environment(log_level="warning"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )

    assert done.returncode == 1
    assert done.stderr == "Error: [Errno 28] No space left on device\n"


# --- prune ----------------------------------------------------------------------------------------------


def old_history(db: Conn) -> None:
    flow = add_flow(db, "old")
    db.execute(
        "INSERT INTO data_flow_runs (data_flow_id, status, started_at, ended_at) "
        "SELECT %s, 'success', moment, moment FROM (SELECT now() - interval '40 days' AS moment) AS _, "
        "generate_series(1, 100)",
        [flow],
    )


def test_prune_deletes_what_is_old_and_is_quiet_in_a_pipe(command: Command, db: Conn) -> None:
    old_history(db)

    done = command("prune")

    assert (done.status, done.out, done.err) == (0, "deleted 100 rows older than 30 days\n", "")
    assert command("prune").out == "deleted 0 rows older than 30 days\n"


def test_prune_shows_its_progress_on_a_terminal(command: Command, db: Conn) -> None:
    old_history(db)

    shown = command.on_a_terminal("prune")

    assert "Deleting" in shown.out
    assert "deleted 100 rows" in shown.out


def test_prune_keeps_everything_where_retention_is_0(command: Command, db: Conn) -> None:
    old_history(db)

    assert "everything is kept" in command("prune", retention_days=0).out
    assert db.execute("SELECT count(*) FROM data_flow_runs").fetchone() == (100,)


# --- check ----------------------------------------------------------------------------------------------


def findings(done: Any) -> dict[str, str]:
    return {line.split("  ")[0].strip(): line.split(": ")[0].split()[-1] for line in done.lines}


def test_check_says_what_it_checked(command: Command) -> None:
    command.define(WORKS_AND_FAILS)

    done = command("check")

    assert done.status == 0
    subjects = ["settings", "flows", "sql files", "database", "schema", "statements", "state"]
    assert list(findings(done)) == subjects
    assert set(findings(done).values()) == {"ok"}
    assert "Works (every 3600 s), Fails (every 3600 s)" in done.out


def test_check_runs_nothing_and_adds_no_row(command: Command, db: Conn) -> None:
    command.define(WORKS_AND_FAILS)

    command("check")

    assert db.execute("SELECT count(*) FROM data_flows").fetchone() == (0,)


def test_check_goes_on_after_a_module_that_does_not_import(command: Command) -> None:
    command.define("import nosuch")

    done = command("check")

    assert done.status == 2
    assert findings(done)["flows"] == "failed"
    assert findings(done)["statements"] == "ok"


def test_check_names_the_problem_with_the_database(tmp_path: Path, empty_database_url: str) -> None:
    unreachable = Command(tmp_path, database_url=UNREACHABLE)("check")
    unmigrated = Command(tmp_path, database_url=empty_database_url)("check")

    assert (unreachable.status, unmigrated.status) == (1, 1)
    assert findings(unreachable)["database"] == "failed"
    assert "schema" not in findings(unreachable)
    assert (findings(unmigrated)["database"], findings(unmigrated)["schema"]) == ("ok", "failed")
    assert "heartbeat migrate" in unmigrated.out


@pytest.fixture
def sql_dir(tmp_path: Path) -> Path:
    """A DBA's own copy of the SQL files."""
    from heartbeat.postgres.queries import SHIPPED

    copy = tmp_path / "our-sql"
    copy.mkdir()
    for file in SHIPPED.glob("*.sql"):
        (copy / file.name).write_text(file.read_text())
    return copy


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("-- name: due_to_run(", "-- name: due_to_go(", "sql files"),
        ("flow.next_run_at,", "flow.nxt_run_at,", "statements"),
    ],
)
def test_check_names_the_file_and_the_statement_of_a_broken_edit(
    command: Command, sql_dir: Path, old: str, new: str, finding: str
) -> None:
    file = sql_dir / "data_flows.sql"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))

    done = command("check", sql_dir=sql_dir)

    assert done.status == 2
    assert findings(done)[finding] == "failed"
    assert findings(done)["database"] == "ok"
    assert "data_flows.sql" in done.out
    assert "due_to_run" in done.out
    assert command("beat", sql_dir=sql_dir).status == 2


# --- the embedded server --------------------------------------------------------------------------------


def server_runs(directory: Path) -> bool:
    return (directory / ".heartbeat" / "postgres" / "postmaster.pid").exists()


def test_commands_share_the_embedded_server_and_the_last_one_out_stops_it(tmp_path: Path) -> None:
    command = Command(tmp_path)
    command.define(WAITS)
    serving = command.start("serve", "--port", "0", token="t")
    assert serving.stderr is not None
    assert "started" in serving.stderr.readline()
    assert "listening" in serving.stderr.readline()

    assert command("flows", "--json").json[0]["name"] == "Waits"
    assert server_runs(tmp_path)

    serving.terminate()
    assert ended(serving).status == 0
    assert not server_runs(tmp_path)
    assert leftovers(tmp_path) == []


def test_a_killed_command_leaves_nothing_that_the_next_one_minds(tmp_path: Path) -> None:
    command = Command(tmp_path)
    command.define(WAITS)
    beat = command.start("beat")
    wait_until((tmp_path / "begun").exists, seconds=30)
    beat.kill()
    ended(beat)

    (flow,) = command("flows", "--json").json

    assert flow["running"]
    assert not server_runs(tmp_path)
    assert leftovers(tmp_path) == []


def test_migrate_and_check_work_on_the_embedded_server(tmp_path: Path) -> None:
    command = Command(tmp_path)

    assert command("migrate").lines[0].startswith("applied 0000")
    assert command("check").status == 0
    assert leftovers(tmp_path) == []
