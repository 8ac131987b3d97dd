"""The command `heartbeat`."""

from __future__ import annotations

import io
import logging
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime

import click

from heartbeat import __version__, logs
from heartbeat.api import Heartbeat
from heartbeat.cleaning import backtrace_text, error_text, flow_frames
from heartbeat.cli import console
from heartbeat.cli.group import Commands, status_of
from heartbeat.errors import HeartbeatError
from heartbeat.models import DataFlowRun
from heartbeat.postgres.embedded import EmbeddedServer
from heartbeat.process import leave, on_signals
from heartbeat.settings import Settings
from heartbeat.utc import utc_text

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
_strict = click.option("--strict", is_flag=True, help="Exit with status 1 when a flow failed, too.")


def main() -> None:
    """Be the command: run it, and end the process with its status."""
    sys.path.insert(0, "")  # flow modules are found in the current directory, as with `python -m`
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show ends nothing
    try:
        cli()
    except SystemExit as exc:
        leave(exc.code if isinstance(exc.code, int) else 1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="heartbeat", message="%(prog)s %(version)s")
def cli() -> None:
    """Run data flows when a heartbeat arrives.

    What is to run, when, and what became of it stands in a few PostgreSQL tables. Each heartbeat, an HTTP
    POST or `heartbeat beat`, runs what is due.

    \b
    On a fresh machine:
        heartbeat demo
    Your own flows, classes derived from heartbeat.DataFlow in ./flows.py:
        export HEARTBEAT_FLOWS=flows HEARTBEAT_TOKEN=...
        heartbeat serve &
        heartbeat ping http://127.0.0.1:8000/data_flows/heartbeat --every 60
    """


# ── run flows ────────────────────────────────────────────────────────────────────────────────────────────────


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="Port; 0 takes a free one, which the log names.",
)
def serve(host: str, port: int) -> None:
    """Serve the endpoint that takes heartbeats.

    Needs HEARTBEAT_TOKEN or HEARTBEAT_TOKEN_FILE. Logs to stderr. On SIGTERM and SIGINT it claims no more,
    gives running flows HEARTBEAT_DRAIN_TIMEOUT seconds and records the rest as failed; a second signal ends
    the wait.
    """
    from heartbeat.http import create_app
    from heartbeat.http.server import serve as run_server

    settings = _settings()
    heartbeat = Heartbeat(settings=settings)
    sys.exit(run_server(heartbeat, create_app(heartbeat=heartbeat), host=host, port=port))


@cli.command()
@_strict
@_as_json
def beat(strict: bool, as_json: bool) -> None:
    """Send one heartbeat without HTTP, for plain cron.

    Runs what is due in this process and waits until all of it has ended. HEARTBEAT_TIME_BUDGET bounds how
    long it claims, not how long flows take.

    \b
    In a crontab:
        * * * * * cd /srv/shop && heartbeat beat --strict
    """
    heartbeat = Heartbeat(settings=_settings())
    stopped = threading.Event()

    def stop(number: int) -> None:
        heartbeat.stop_claiming(now=stopped.is_set())  # a second signal ends the drain
        stopped.set()

    with on_signals(stop), heartbeat:
        if stopped.is_set():  # while it started, when there was nothing yet to be told
            raise click.ClickException("stopped before anything was claimed")
        report = heartbeat.beat(until_all_ended=True)
    if as_json:
        console.print_json(report.answer())
    else:
        click.echo(console.heartbeat_line(report.answer()))
    if strict and report.flows_failed + report.flows_running:
        sys.exit(1)


@cli.command()
@click.argument("url")
@click.option(
    "--every", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Go on, at this pace."
)
@_strict
@_as_json
def ping(url: str, every: float | None, strict: bool, as_json: bool) -> None:
    """Send a heartbeat to URL, once or every so many seconds.

    The token is the first one of HEARTBEAT_TOKEN or HEARTBEAT_TOKEN_FILE. Exits with status 1 when a
    heartbeat was not answered 200; with --every it goes on all the same, until SIGTERM, SIGINT or SIGHUP.

    \b
    Example:
        heartbeat ping http://127.0.0.1:8000/data_flows/heartbeat --every 60
    """
    from heartbeat.cli.ping import Reply
    from heartbeat.cli.ping import ping as send

    flows_failed = False

    def show(answer: Reply) -> None:
        nonlocal flows_failed
        flows_failed |= bool((answer.body or {}).get("flows_failed"))
        if as_json:
            console.print_json(answer.body or {"error": answer.error}, indent=False)
        elif answer.ok:
            click.echo(console.heartbeat_line(answer.body or {}))
        if not answer.ok:
            click.echo(
                f"{utc_text(datetime.now(UTC), 'seconds')} no heartbeat: {logs.escape(answer.error or 'no answer')}",
                err=True,
            )

    tokens = _settings().tokens
    stop = threading.Event()
    with on_signals(lambda _: stop.set()):
        failures = send(url, tokens, every=every, on_answer=show, stop=stop)
    if failures or (strict and flows_failed):
        sys.exit(1)


@cli.command()
@click.argument("name")
def run(name: str) -> None:
    """Run the flow NAME now, in this process, whatever its schedule says.

    Prints its result. When it fails, prints its traceback and exits with status 1.
    """
    heartbeat = Heartbeat(settings=_settings(is_quiet=True))
    logs.log.addFilter(_is_not_how_it_ended)
    waiting = True

    def stop(number: int) -> None:
        nonlocal waiting
        heartbeat.stop_claiming(now=number == signal.SIGINT or not waiting)
        if waiting:
            waiting = False
            raise _Interrupt

    with on_signals(stop):
        try:
            done = _trigger(heartbeat.start(), name)
        except _Interrupt:
            hint = f"`heartbeat runs {shlex.quote(name)}` says how the run ended"
            raise click.ClickException(f"interrupted; {logs.escape(hint)}") from None
        finally:
            waiting = False
            heartbeat.close()
    took = "" if done.duration is None else f" in {console.duration(done.duration)}"
    result = console.outcome(done)
    click.echo(logs.escape(f"run {done.id} of {done.flow_name} succeeded{took}{result and f': {result}'}"))


def _is_not_how_it_ended(record: logging.LogRecord) -> bool:
    """Leave out of the log what `run` says itself, with the traceback."""
    return getattr(record, "event", None) not in (
        "run_succeeded",
        "run_failed",
        "run_timed_out",
        "run_interrupted",
    )


class _Interrupt(KeyboardInterrupt):
    """A signal, as opposed to a flow that raises KeyboardInterrupt."""


def _trigger(heartbeat: Heartbeat, name: str) -> DataFlowRun:
    """Run a flow; where it fails, show why as the flow's author wants to see it, and exit."""
    try:
        return heartbeat.trigger_run(name)
    except _Interrupt:
        raise
    except BaseException as exc:
        text = backtrace_text(exc) if flow_frames(exc.__traceback__) else None
        if text is None:
            if isinstance(exc, HeartbeatError):
                raise  # not the flow's: there is no such flow, it runs already, the database is away
            text = error_text(exc)  # it never came to the flow's code, or was given up
        for line in text.splitlines():
            click.echo(logs.escape(line), err=True)
        sys.exit(1)


# ── look ─────────────────────────────────────────────────────────────────────────────────────────────────────


@cli.command()
@_as_json
def flows(as_json: bool) -> None:
    """List the flows and how each stands.

    --json has the columns of the view data_flow_status and of data_flows; intervals are seconds.
    """
    with _reading() as heartbeat:
        rows = heartbeat.flow_status()
    if as_json:
        console.print_json(rows)
    elif rows:
        console.print_flows(rows)
    else:
        click.echo("There are no flows: name your modules in HEARTBEAT_FLOWS, or insert rows.", err=True)


@cli.command()
@click.argument("name", required=False)
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="How many, newest first.",
)
@_as_json
def runs(name: str | None, limit: int, as_json: bool) -> None:
    """List the newest runs, of all flows or of the flow NAME.

    The table shows the first line of an error, and cuts long texts. --json has everything, backtraces
    included: the columns of data_flow_runs with the flow's name; durations are seconds.
    """
    with _reading() as heartbeat:
        found = heartbeat.runs(name, limit=limit)
    if as_json:
        console.print_json([asdict(run) for run in found])
    elif found:
        console.print_runs(found)
    else:
        click.echo("Nothing has run yet.", err=True)


@cli.command()
def check() -> None:
    """Check the settings, flow modules, SQL files and the schema.

    Says what it found, one line each, and goes on after a failure to the checks that do not need what
    failed. Runs no flow.
    """
    from heartbeat.cli.check import checkup

    status = 0
    for finding in checkup(_settings(is_quiet=True)):
        problem = finding.problem
        mark = click.style("ok", fg="green") if problem is None else click.style("failed", fg="red")
        click.echo(f"{finding.subject:10}  {mark}: {logs.escape(str(problem or finding.found))}")
        status = max(status, 0 if problem is None else status_of(problem))
    sys.exit(status)


# ── look after the database ──────────────────────────────────────────────────────────────────────────────────


@cli.command()
@click.option(
    "--rollback",
    is_flag=False,
    flag_value=1,
    type=click.IntRange(1),
    metavar="[N]",
    help="Undo the newest N migrations (1) with what their tables hold, instead.",
)
@click.option(
    "--reset",
    is_flag=True,
    help="Drop a schema that an unreleased version made, with all that it holds, and make it anew. Asks.",
)
@click.option("--yes", is_flag=True, help="With --reset: do not ask.")
def migrate(rollback: int | None, reset: bool, yes: bool) -> None:
    """Bring the schema up to this version, or undo its newest migrations.

    The other commands do so by themselves for the embedded server, and for no other. Several at once wait
    for each other.
    """
    from heartbeat.postgres import migrate as migrations

    if reset and rollback is not None:
        raise click.UsageError("--reset and --rollback are two different things: give one of them")
    settings = _settings()
    with _database_url(settings) as url:
        if reset:
            migrations.check_reset(url)
            _confirm(yes, f"Drop every flow, run and heartbeat of {settings.database_label}?")
            done = migrations.reset(url)
        else:
            done = migrations.upgrade(url) if rollback is None else migrations.rollback(url, rollback)
    for migration in done:
        click.echo(f"{'applied' if rollback is None else 'rolled back'} {migration}")
    if not done:
        click.echo("the schema is up to date" if rollback is None else "there is nothing to roll back")


def _confirm(yes: bool, question: str) -> None:
    """Go on only with `yes`, or if somebody at a terminal says so."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("this drops data: say --yes, for there is no terminal to ask at")
    click.confirm(question, default=False, abort=True, err=True)


@cli.command()
def prune() -> None:
    """Delete runs and heartbeats older than HEARTBEAT_RETENTION_DAYS.

    Heartbeats do so bit by bit; this does all at once.
    """
    with _reading() as heartbeat:
        if not heartbeat.settings.retention_days:
            click.echo("HEARTBEAT_RETENTION_DAYS is 0: everything is kept")
            return
        with console.row_progress("Deleting") as progress:
            deleted = heartbeat.prune(progress)
        click.echo(f"deleted {deleted} rows older than {heartbeat.settings.retention_days:g} days")


# ── see it work ──────────────────────────────────────────────────────────────────────────────────────────────


@cli.command()
@click.option(
    "--seconds", default=20.0, show_default=True, type=click.FloatRange(5), help="How long to watch."
)
def demo(seconds: float) -> None:
    """Watch flows run on a heartbeat for some 20 seconds.

    Starts the service and a pinger, and ends them. Uses HEARTBEAT_DATABASE_URL if it is set, else an embedded
    PostgreSQL server under HEARTBEAT_DATA_DIR, and leaves the flows and their tables (demo_...) there to look
    at.
    """
    from heartbeat.cli.demo import show
    from heartbeat.demo import watch

    waiting = True

    def stop(number: int) -> None:
        nonlocal waiting
        if waiting:  # a second signal must not end the clearing up
            waiting = False
            raise _Interrupt

    settings = _settings(is_quiet=True)
    try:
        with (
            on_signals(stop),
            _database_url(settings) as url,
            closing(watch(settings, url, seconds)) as events,
        ):
            show(events)
    except _Interrupt:
        raise click.ClickException("stopped; nothing was left running") from None


# ── what the commands share ──────────────────────────────────────────────────────────────────────────────────


def _settings(*, is_quiet: bool = False) -> Settings:
    """Read the settings and begin to log as they say."""
    settings = Settings.load()
    logs.configure(settings.log_format, settings.log_level, is_quiet=is_quiet)
    return settings


@contextmanager
def _database_url(settings: Settings) -> Iterator[str]:
    """Give the URL of the database, and keep the embedded server up meanwhile, where that is what is used."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    server = EmbeddedServer(settings.data_dir)
    try:
        yield server.start()
    finally:
        server.stop()


@contextmanager
def _reading() -> Iterator[Heartbeat]:
    """Start what reads and deletes, without flows: a flow module that is broken is no reason not to look."""
    with closing(Heartbeat(settings=replace(_settings(is_quiet=True), flows=()))) as heartbeat:
        yield heartbeat.start(run_flows=False)
