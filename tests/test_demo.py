"""`heartbeat demo`, as somebody sees it who types nothing else."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from heartbeat import Settings
from heartbeat.demo import next as next_steps
from tests.support.commands import Command, Done, ended, leftovers
from tests.support.rows import Conn
from tests.support.waiting import wait_until

FLOWS = {"TableSizes", "InstalledDistributions", "EventLoopLag", "CountOrders", "ImportCsv"}


@pytest.fixture
def command(tmp_path: Path, database_url: str) -> Command:
    """`heartbeat` on this test's database."""
    return Command(tmp_path, database_url=database_url)


class Watched:
    """A demo that is under way; what it prints is read as it comes."""

    def __init__(self, command: Command) -> None:
        self.process = command.start("demo")
        self.shown: list[str] = []

    def until(self, pattern: str) -> re.Match[str]:
        """Read on until a line has it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.shown.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"{pattern!r} was never shown:\n{''.join(self.shown)}{ended(self.process)}")

    def until_it_runs(self) -> dict[str, int]:
        """Read until the first heartbeat, and return the processes that it says it has started."""
        pids = {what: int(self.until(rf"^{what} .*\(process (\d+)\)")[1]) for what in ("Service", "Pinger")}
        self.until("heartbeat 1: ")
        return pids


def test_the_demo_ends_by_itself_and_leaves_nothing_running(tmp_path: Path) -> None:
    command = Command(tmp_path)

    done = command("demo", "--seconds", "6")

    assert (done.status, done.err) == (0, "")
    assert leftovers(tmp_path) == []
    assert not (tmp_path / ".heartbeat" / "postgres" / "postmaster.pid").exists()
    assert "heartbeat 1: 5 due, 5 triggered, 4 succeeded, 1 failed" in done.out
    assert "heartbeat 2: " in done.out
    runs = re.findall(r"^  \d\d:\d\d:\d\d  (\w+) +(success|failed) ", done.out, re.MULTILINE)
    assert {name for name, _ in runs} == FLOWS
    assert {name for name, status in runs if status == "failed"} == {"CountOrders"}
    assert 'relation "demo_orders" does not exist' in done.out
    the_commands_that_it_ends_with_work(command, done)


def the_commands_that_it_ends_with_work(command: Command, done: Done) -> None:
    steps = [line.strip() for line in done.out.partition("What to try next")[2].splitlines()]
    serve = next(line for line in steps if line.endswith("serve"))
    curl = next(line for line in steps if line.startswith("curl "))
    status, repair, remove = (line for line in steps if "psql" in line)
    for step in ("4. ", "5. "):
        assert Path(next(line for line in steps if line.startswith(step)).split()[-1]).exists()
    # A port of the test's own instead of the one that the demo names, which others may have.
    with subprocess.Popen(
        f"exec env {serve} --port 0",
        shell=True,
        cwd=command.directory,
        env=command.environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as serving:
        assert serving.stderr is not None
        url = wait_until(lambda: re.search(r"listening on (\S+)", serving.stderr.readline()))[1]
        try:
            assert "UndefinedTable" in shell(command, status)
            assert "CREATE TABLE" in shell(command, repair)
            assert '"heartbeat_id"' in shell(command, curl.rpartition(" ")[0] + f" {url}")
            assert "DROP TABLE" in shell(command, remove)
        finally:
            serving.terminate()


def shell(command: Command, line: str) -> str:
    done = subprocess.run(
        line, shell=True, cwd=command.directory, env=command.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


def test_a_database_that_is_set_is_used_and_other_settings_are_not(
    command: Command, db: Conn, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("HEARTBEAT_FLOWS=nosuch\nHEARTBEAT_ALLOWED_IPS=192.0.2.1\n")

    done = command("demo", "--seconds", "5")

    assert (done.status, done.err) == (0, "")
    pings = db.execute("SELECT client_ip, flows_triggered FROM heartbeats ORDER BY id").fetchall()
    assert len(pings) >= 2
    assert (str(pings[0][0]), pings[0][1]) == ("127.0.0.1", 5)
    assert not (tmp_path / ".heartbeat" / "postgres").exists()
    measured = (tmp_path / ".heartbeat" / "csv" / "machine.csv").read_text().splitlines()
    (imported,) = db.execute("SELECT count(*) FROM demo_csv_rows").fetchone()
    assert 1 <= imported <= len(measured) - 1


def test_a_database_that_was_never_migrated_is_migrated(tmp_path: Path, empty_database_url: str) -> None:
    assert Command(tmp_path, database_url=empty_database_url)("demo", "--seconds", "5").status == 0


def test_the_token_is_in_no_argument_list(command: Command, tmp_path: Path) -> None:
    demo = Watched(command)
    pids = demo.until_it_runs()

    token = next(
        word.partition("=")[2]
        for word in Path(f"/proc/{pids['Service']}/environ").read_text().split("\0")
        if word.startswith("HEARTBEAT_TOKEN=")
    )
    arguments = leftovers(tmp_path)
    demo.process.terminate()
    ended(demo.process)

    assert len(token) >= 32
    assert len(arguments) >= 3
    assert not [words for words in arguments if token in words]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_interrupted_takes_its_processes_along(
    command: Command, tmp_path: Path, number: signal.Signals
) -> None:
    demo = Watched(command)
    demo.until_it_runs()

    demo.process.send_signal(number)
    done = ended(demo.process)

    assert (done.status, done.err) == (1, "Error: stopped; nothing was left running\n")
    assert leftovers(tmp_path) == []


def test_a_demo_that_is_interrupted_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    demo = Watched(Command(tmp_path))
    demo.until("^Database")

    demo.process.send_signal(signal.SIGINT)

    assert ended(demo.process).status == 1
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("what", "name"), [("Service", "serve"), ("Pinger", "ping")])
def test_a_process_that_ends_ends_the_demo_which_says_so(
    command: Command, tmp_path: Path, what: str, name: str
) -> None:
    demo = Watched(command)
    pids = demo.until_it_runs()

    os.kill(pids[what], signal.SIGKILL)
    done = ended(demo.process)

    assert done.status == 1
    assert f"Error: `heartbeat {name}` ended with status -9; " in done.err
    assert ("serve: " in done.err) == (name == "serve")  # the pinger had nothing to log
    assert leftovers(tmp_path) == []


def test_a_service_that_does_not_start_ends_the_demo_with_its_last_lines(
    command: Command, db: Conn, tmp_path: Path
) -> None:
    # The demo's own start checks the schema too, but only the service adds rows.
    db.execute("ALTER TABLE data_flows ADD CONSTRAINT nothing_new CHECK (name = '')")

    done = command("demo")

    assert done.status == 1
    assert "  serve: Error: " in done.err
    assert "nothing_new" in done.err
    assert "Error: `heartbeat serve` ended with status 1; its last lines are above" in done.err
    assert leftovers(tmp_path) == []


def test_a_data_directory_that_cannot_be_written_is_one_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert "machine.csv" in command("demo", data_dir="file/below").failed_with(1)


# --- what to try next -----------------------------------------------------------------------------------


def psql_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if "psql" in line]


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    url = "postgresql://me:s3cret@db.example/shop?sslmode=require"

    text = next_steps.steps(Settings.load(database_url=url), url, tmp_path)

    assert "s3cret" not in text
    assert shlex.split(psql_lines(text)[0])[1].split() == [
        "user=me",
        "dbname=shop",
        "host=db.example",
        "sslmode=require",
    ]


def test_a_url_that_is_in_the_environment_is_taken_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEARTBEAT_DATABASE_URL", "postgresql://me:s3cret@db.example/shop")

    text = next_steps.steps(Settings.load(), "postgresql://me:s3cret@db.example/shop", tmp_path)

    assert ' "$HEARTBEAT_DATABASE_URL" ' in psql_lines(text)[0]


def test_a_data_directory_that_is_not_the_default_is_named(tmp_path: Path) -> None:
    settings = Settings.load(data_dir=tmp_path / "my data")

    text = next_steps.steps(settings, "postgresql:///x", tmp_path)

    assert f"HEARTBEAT_DATA_DIR='{tmp_path}/my data' " in text


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("bin/heartbeat", "bin/heartbeat"),
        ("with blank/heartbeat", "'with blank/heartbeat'"),
        ("on path/heartbeat", "heartbeat"),
        ("/x/heartbeat/__main__.py", f"{sys.executable} -m heartbeat"),
    ],
)
def test_the_program_is_shown_as_it_can_be_typed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, shown: str
) -> None:
    for directory in ("bin", "with blank", "on path"):
        script = tmp_path / directory / "heartbeat"
        script.parent.mkdir()
        script.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "on path"))
    monkeypatch.setattr(sys, "argv", [typed, "demo"])

    text = next_steps.steps(Settings.load(), "postgresql:///x", tmp_path)

    assert f" {shown} serve\n" in text
