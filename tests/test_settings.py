"""Settings: where they come from, what is refused, and what is never shown."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat.errors import SettingsError
from heartbeat.settings import SETTINGS, Settings


def load(environ: Mapping[str, str] | None = None, dotenv: Path | None = None, **overrides: Any) -> Settings:
    return Settings.load(environ=environ or {}, dotenv=dotenv, **overrides)


def refusal(environ: Mapping[str, str] | None = None, dotenv: Path | None = None, **overrides: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(environ, dotenv, **overrides)
    message = str(caught.value)
    assert message.isprintable(), "one line"
    return message


def test_without_any_source_the_defaults_of_the_contract_hold() -> None:
    settings = load()
    assert settings == Settings()
    assert (settings.concurrency, settings.async_concurrency) == (8, 100)
    assert (settings.time_budget, settings.run_timeout) == (25, 3600)
    assert (settings.run_tolerance, settings.runner_ttl, settings.drain_timeout) == (0.5, 30, 20)
    assert (settings.path, settings.health_path) == ("/data_flows/heartbeat", "/data_flows/health")
    assert settings.tokens == ()


def test_a_keyword_wins_over_the_environment_which_wins_over_the_dotenv_file(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("HEARTBEAT_CONCURRENCY=1\nHEARTBEAT_TIME_BUDGET=1\nHEARTBEAT_RUNNER_TTL=1\nOTHER=x\n")
    environ = {"HEARTBEAT_CONCURRENCY": "2", "HEARTBEAT_TIME_BUDGET": "2", "PATH": "/bin"}
    settings = load(environ, dotenv, concurrency=3)
    assert (settings.concurrency, settings.time_budget, settings.runner_ttl) == (3, 2, 1)


def test_a_missing_dotenv_file_is_no_error_and_an_unreadable_one_is(tmp_path: Path) -> None:
    assert load(dotenv=tmp_path / "none") == Settings()
    (tmp_path / "binary").write_bytes(b"HEARTBEAT_TOKEN=\xff\xfe\n")
    assert "binary cannot be read" in refusal(dotenv=tmp_path / "binary")


def test_a_dollar_in_the_dotenv_file_is_itself(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("HEARTBEAT_TOKEN='a${HOME}b'\n")
    assert load(dotenv=tmp_path / ".env").tokens == (b"a${HOME}b",)


@pytest.mark.parametrize("nothing", ["", None])
def test_an_empty_value_is_the_default_and_hides_a_weaker_source(nothing: str | None) -> None:
    assert load({"HEARTBEAT_CONCURRENCY": "2"}, concurrency=nothing).concurrency == 8
    assert load({"HEARTBEAT_TOKEN": ""}).tokens == ()


@pytest.mark.parametrize("variable", ["HEARTBEAT_TOKENS", "HEARTBEAT_TOKNE", "HEARTBEAT_token"])
def test_a_variable_that_does_not_exist_is_named_with_the_one_meant(variable: str) -> None:
    message = refusal({variable: "s3cret"})
    assert message.startswith(f"{variable} is not a setting")
    assert "s3cret" not in message


def test_a_mistyped_variable_of_the_dotenv_file_says_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("HEARTBEAT_CONCURENCY=1\n")
    message = refusal(dotenv=tmp_path / ".env")
    assert message.endswith("/.env is not a setting; did you mean HEARTBEAT_CONCURRENCY?")


def test_a_mistyped_keyword_is_named_with_the_one_meant() -> None:
    assert refusal(alowed_ips="") == "alowed_ips is not a setting; did you mean allowed_ips?"


def test_what_kubernetes_and_the_tests_put_into_the_environment_is_none_of_ours() -> None:
    environ = {
        "HEARTBEAT_TEST_POSTGRES": "embedded",
        "HEARTBEAT_SERVICE_HOST": "10.0.0.1",
        "HEARTBEAT_SERVICE_PORT": "80",
        "HEARTBEAT_SERVICE_PORT_HTTP": "80",
        "HEARTBEAT_PORT": "tcp://10.0.0.1:80",
        "HEARTBEAT_PORT_80_TCP": "tcp://10.0.0.1:80",
        "HEARTBEAT_PORT_80_TCP_ADDR": "10.0.0.1",
        "HEARTBEAT_DB_SERVICE_HOST": "10.0.0.2",
        "HEARTBEAT_DB_PORT": "tcp://10.0.0.2:5432",
    }
    assert load(environ) == Settings()
    assert "HEARTBEAT_PORT is not a setting" in refusal({"HEARTBEAT_PORT": "8000"})


BAD: dict[str, list[Any]] = {
    "concurrency": ["0", "1001", "-1", "1.5", "8_0", "٨", "x", True, 1.0, 0],
    "async_concurrency": ["0", "10001"],
    "time_budget": ["0", 0, "-1", "nan", "inf", "1e400", float("nan"), float("inf"), True, [], 1e30],
    "run_timeout": ["-1", -1],
    "run_tolerance": ["-0.5", "half"],
    "runner_ttl": ["0", 0.9],
    "drain_timeout": ["-1"],
    "retention_days": ["-1", 36_501],
    "allow_anonymous": ["maybe", 2, 1, "tru"],
    "log_format": ["xml", "JSON", 1],
    "log_level": ["verbose", "INFO", 20],
    "data_dir": [" ", "a\0b", 1, b"x"],
    "sql_dir": ["/nowhere/at/all"],
    "flows": ["a,,b", "a-b", "a.b:C", "1a", ".a", 7],
    "path": [
        *("x", "/", "/a/", "//a", "/a//b", "/a?b", "/a#b", "/{a}", "/a b", "/ä", "/%41", 1),
        *("/a/../b", "/./b", "/a/..", "/a\n", "/health", "/a/health", "/a/live", "http://h/a"),
    ],
    "allowed_ips": [10, [10], "10", "1.2.3", "10.0.0.0/33", "x", " ", ",", "10.0.0.1,"],
    "trusted_proxies": [b"\x0a\0\0\1", [b"\x0a\0\0\1"], "fe80::1%eth0", "::/129", {}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD for value in BAD[name]])
def test_a_bad_value_is_refused_in_one_line_that_names_it_and_what_is_expected(name: str, value: Any) -> None:
    message = refusal(**{name: value})
    assert message.startswith(f"{name} is ")
    assert "; expected " in message
    if isinstance(value, str):
        assert repr(value) in message
        assert refusal({f"HEARTBEAT_{name.upper()}": value}).startswith(f"HEARTBEAT_{name.upper()} is ")


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("1", True), ("Yes", True), ("ON", True), ("0", False), ("No", False), ("off", False)],
)
def test_a_boolean_takes_the_usual_words(text: str, value: bool) -> None:
    assert load({"HEARTBEAT_ALLOW_ANONYMOUS": text}).allow_anonymous is value


def test_a_network_with_host_bits_is_refused_with_the_ones_that_may_be_meant() -> None:
    message = refusal(allowed_ips=["10.0.0.5/8"])
    assert message.endswith("for 10.0.0.5/8 write 10.0.0.0/8, or 10.0.0.5")


def test_networks_come_as_text_or_as_a_list_and_mapped_ones_are_unwrapped() -> None:
    expected = tuple(ip_network(text) for text in ("10.0.0.0/8", "192.0.2.1", "2001:db8::/32"))
    assert load(allowed_ips="::ffff:10.0.0.0/104, 192.0.2.1,2001:db8::/32").allowed_ips == expected
    given = ["10.0.0.0/8", ip_address("192.0.2.1"), ip_network("2001:db8::/32")]
    assert load(allowed_ips=given).allowed_ips == expected
    assert load(trusted_proxies=[]).trusted_proxies == ()


def test_flow_modules_come_as_text_or_as_a_list_each_once() -> None:
    assert load({"HEARTBEAT_FLOWS": "shop.flows, x , x"}).flows == ("shop.flows", "x")
    assert load(flows=["shop.flows"]).flows == ("shop.flows",)


def test_several_tokens_are_accepted_for_rotation() -> None:
    assert load({"HEARTBEAT_TOKEN": "new, old,new"}).tokens == (b"new", b"old")
    assert load(token=["new", "öld"]).tokens == (b"new", "öld".encode())


@pytest.mark.parametrize(
    "token", [",", " ", "a,,b", "a b", "a\tb", "a\nb", "a\x7f", "a\u2028b", "a\ud800", 7, b"a"]
)
def test_an_empty_or_unsendable_token_is_refused_and_not_shown(token: Any) -> None:
    message = refusal(token=token)
    assert message.startswith("token cannot be used; expected ")


def test_a_token_file_holds_the_same_as_the_variable(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes("\ufeffnew,old\r\n".encode())
    assert load(token_file=file).tokens == (b"new", b"old")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "one of them is empty"),
        (b"\n", "one of them is empty"),
        (b"s3cret\ns3cret", "white space"),
        (b"s3cret\xff", "not UTF-8"),
        (b"s" * 70_000, "at most"),
    ],
)
def test_a_token_file_without_a_usable_token_is_refused(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    message = refusal({"HEARTBEAT_TOKEN_FILE": str(file)})
    assert message.startswith("HEARTBEAT_TOKEN_FILE: ")
    assert expected in message
    assert "s3cret" not in message


def test_a_token_file_that_is_missing_or_a_directory_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(token_file=tmp_path / "none")
    assert "Is a directory" in refusal(token_file=tmp_path)


def test_a_token_both_by_value_and_by_file_is_refused_across_sources_too(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("b")
    (tmp_path / ".env").write_text(f"HEARTBEAT_TOKEN_FILE={file}\n")
    message = refusal(dotenv=tmp_path / ".env", token="s3cret")
    assert message.startswith("token and HEARTBEAT_TOKEN_FILE in ")
    assert "s3cret" not in message
    assert load({"HEARTBEAT_TOKEN": "a"}, token_file=file, token=None).tokens == (b"b",)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3cret@h:x y/d",
        "postgresql://u:s3cret@h/d?nonsense=1",
        "postgresql://u:s3cret@h/d?password=%zz",
        "postgresql+psycopg://u:s3cret@h/d",
        "host=h password=s3cret",
        "mysql://u:s3cret@h/d",
        "postgresql://u:s3cret\ud800@h/d",
        "postgresql://u:s3cret\0@h/d",
    ],
)
def test_a_database_url_that_libpq_refuses_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(SettingsError, match="expected a URL such as") as caught:
        load(database_url=url)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None, "libpq's message quotes the URL"


def test_no_secret_shows_in_a_repr() -> None:
    settings = load(
        token="t0ken", database_url="postgresql://u:s3cret@h:1/d?password=s3cret&sslpassword=s3cret"
    )
    assert "t0ken" not in repr(settings)
    assert "s3cret" not in repr(settings)
    assert "postgresql://u@h:1/d" in repr(settings)


def test_a_setting_is_its_one_entry_and_only_the_tokens_read_from_another_are_none() -> None:
    assert set(Settings.__dataclass_fields__) - set(SETTINGS) == {"tokens"}
    assert all(setting.metadata["meaning"] for setting in SETTINGS.values())


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        load().path = "/x"  # type: ignore[misc]


names = st.sampled_from(list(SETTINGS))
scraps = st.one_of(
    st.text(), st.integers(), st.floats(), st.booleans(), st.binary(), st.lists(st.text() | st.integers())
)


@given(name=names, value=scraps)
def test_whatever_is_given_is_taken_or_refused_by_name(name: str, value: Any) -> None:
    message = ""
    try:
        load(**{name: value})
    except SettingsError as exc:
        message = str(exc)
    assert message == "" or (message.startswith(name) and message.isprintable())
