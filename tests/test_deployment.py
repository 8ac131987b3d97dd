"""compose.yaml and the Dockerfile say things that the program must understand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from heartbeat.settings import Settings
from tests.support.environment import environment

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "compose.yaml"
DOCKERFILE = ROOT / "Dockerfile"

# ${NAME}, ${NAME:-default} and ${NAME:?message}, as compose understands them.
INTERPOLATION = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)?\}")


def services() -> dict[str, Any]:
    return dict(yaml.safe_load(COMPOSE.read_text())["services"])


def ours() -> dict[str, Any]:
    return {name: service for name, service in services().items() if name != "postgres"}


def interpolated(text: str, **given: str) -> str:
    """Do what compose does with a value, for the names in `given`."""
    return INTERPOLATION.sub(lambda match: given.get(match["name"], match["default"] or ""), text)


def settings_of(service: dict[str, Any]) -> Settings:
    """Load the settings that a service's container would find; an unknown variable is refused."""
    given = {"HEARTBEAT_TOKEN": "a-token", "POSTGRES_PASSWORD": "c0ffee"}
    environ = {name: interpolated(value, **given) for name, value in service["environment"].items()}
    return Settings.load(environ=environ, dotenv=None)


@pytest.mark.parametrize("name", ours())
def test_the_settings_of_every_compose_service_are_accepted(name: str) -> None:
    settings_of(ours()[name])


@pytest.mark.parametrize("name", ["migrate", "app"])
def test_the_database_of_compose_is_the_one_that_its_postgres_makes(name: str) -> None:
    postgres = services()["postgres"]["environment"]

    url = settings_of(services()[name]).database_url

    assert url == f"postgresql://{postgres['POSTGRES_USER']}:c0ffee@postgres:5432/{postgres['POSTGRES_DB']}"


def test_every_setting_that_the_files_name_exists() -> None:
    named = set(re.findall(r"HEARTBEAT_\w+", COMPOSE.read_text() + DOCKERFILE.read_text()))

    unknown = {
        name for name in named if name.removeprefix("HEARTBEAT_").lower() not in Settings.__annotations__
    }

    assert not unknown


@pytest.mark.parametrize(
    ("service", "variable"), [("app", "HEARTBEAT_TOKEN"), ("postgres", "POSTGRES_PASSWORD")]
)
def test_compose_refuses_to_start_without_its_secrets(service: str, variable: str) -> None:
    assert services()[service]["environment"][variable].startswith(f"${{{variable}:?")


def test_compose_publishes_on_the_loopback_only() -> None:
    published = [port for service in services().values() for port in service.get("ports", [])]

    assert published == ["127.0.0.1:8000:8000"]


def test_the_app_starts_after_the_migrations_and_is_asked_at_its_own_health_path() -> None:
    app = services()["app"]

    assert app["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert f":8000{settings_of(app).health_path}" in app["healthcheck"]["test"][-1]


def test_the_pinger_pings_the_app_at_its_own_path() -> None:
    assert services()["pinger"]["command"][1] == f"http://app:8000{settings_of(services()['app']).path}"


def test_stopping_leaves_the_app_the_time_that_it_needs_to_drain() -> None:
    app = services()["app"]

    assert int(app["stop_grace_period"].removesuffix("s")) > settings_of(app).drain_timeout


@pytest.mark.parametrize("command", ["migrate", "ping", "serve"])
def test_the_commands_of_the_containers_exist(command: str, tmp_path: Path) -> None:
    help_asked = [sys.executable, "-m", "heartbeat", command, "--help"]

    answer = subprocess.run(
        help_asked, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=30
    )

    assert answer.returncode == 0, answer.stderr


def test_the_build_context_holds_what_the_dockerfile_copies_and_nothing_else() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)", DOCKERFILE.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    }
    admitted = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }

    assert copied == admitted
    assert all((ROOT / source).exists() for source in copied)


def test_the_container_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (.*)", DOCKERFILE.read_text(), re.MULTILINE)

    assert users
    assert users[-1] not in {"0", "root"}
