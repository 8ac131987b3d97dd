"""Whatever a flow raises or returns becomes text that Postgres stores."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from heartbeat.cleaning import (
    BACKTRACE_LIMIT,
    ERROR_LIMIT,
    RESULT_LIMIT,
    backtrace_text,
    clean,
    error_text,
    parse_json,
    result_json,
)
from tests.support.rows import Conn

ANY_TEXT = st.text(st.characters(exclude_categories=[]))  # lone surrogates and NUL included
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner),
    max_leaves=20,
)


def is_stored(db: psycopg.Connection[Any], text: str) -> bool:
    """Tell whether Postgres gives text back as it was."""
    return bool(db.execute("SELECT %s::text", [text]).fetchone() == (text,))


def raised(exc: BaseException) -> BaseException:
    """Give an exception its traceback."""
    try:
        raise exc
    except BaseException as caught:
        return caught


# One database for all the examples of a test: nothing is written into it.
many = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@many
@given(text=ANY_TEXT, limit=st.integers(1, 60))
@example(text="\0" * 100, limit=50)
@example(text="\ud800" * 100, limit=50)
def test_any_text_becomes_text_that_postgres_stores(db: Conn, text: str, limit: int) -> None:
    assert is_stored(db, clean(text, limit))


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_text_that_is_fine_is_left_alone(text: str) -> None:
    assert clean(text, max(1, len(text))) == text


@given(text=ANY_TEXT, limit=st.integers(10, 60))
def test_what_is_too_long_is_cut_and_what_is_not_is_not(text: str, limit: int) -> None:
    if len(text) <= limit:
        assert "characters cut" not in clean(text, limit) or "characters cut" in text
    else:
        assert f"{len(text) - 2 * (limit // 2)} characters cut" in clean(text, limit)


def test_megabytes_keep_their_head_and_their_tail() -> None:
    exc = ValueError("first line\n" + "x" * 5_000_000 + "\nlast line")
    text = error_text(exc)
    assert text.startswith("ValueError: first line\n")
    assert text.endswith("\nlast line")
    assert len(text) < ERROR_LIMIT + 100
    assert len(backtrace_text(exc)) < BACKTRACE_LIMIT + 100


@many
@given(message=ANY_TEXT)
def test_any_message_can_be_recorded(db: Conn, message: str) -> None:
    exc = raised(RuntimeError(message))
    assert is_stored(db, error_text(exc))
    assert is_stored(db, backtrace_text(exc))
    assert error_text(exc).startswith("RuntimeError")


def test_an_error_without_a_message_is_its_type() -> None:
    assert error_text(KeyError()) == "KeyError"
    assert error_text(KeyboardInterrupt()) == "KeyboardInterrupt"


class Sly(str):
    """Text that misbehaves wherever it is used."""

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no")

    __format__ = __len__ = __getitem__ = __add__ = __radd__ = __bool__ = __str__ = __eq__ = _refuse
    __hash__ = str.__hash__
    encode = replace = join = split = splitlines = strip = _refuse


class Odd(Exception):
    def __init__(self, misbehave: Any) -> None:
        self.misbehave = misbehave

    def __str__(self) -> str:
        return self.misbehave()  # type: ignore[no-any-return]

    __repr__ = __str__


def raises(exc: BaseException) -> Any:
    def misbehave() -> str:
        raise exc

    return misbehave


MISBEHAVING = {
    "ValueError": raises(ValueError("x")),
    "SystemExit": raises(SystemExit(3)),
    "KeyboardInterrupt": raises(KeyboardInterrupt()),
    "RecursionError": raises(RecursionError()),
    "GeneratorExit": raises(GeneratorExit()),
    "a number": lambda: 5,
    "None": lambda: None,
    "bytes": lambda: b"bytes",
    "sly text": lambda: Sly("sly"),
}


@pytest.mark.parametrize("misbehave", MISBEHAVING.values(), ids=MISBEHAVING.keys())
def test_an_exception_whose_str_misbehaves_is_told_by_its_type(db: Conn, misbehave: Any) -> None:
    exc = raised(Odd(misbehave))
    error, backtrace = error_text(exc), backtrace_text(exc)
    assert error.startswith("Odd")
    assert is_stored(db, error)
    assert is_stored(db, backtrace)


def test_exceptions_that_cause_each_other_have_an_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert "first" in backtrace_text(first)


def test_a_group_shows_what_it_holds() -> None:
    group = ExceptionGroup("several", [ValueError("one"), TypeError("two")])
    assert "several" in error_text(group)
    assert "TypeError: two" in backtrace_text(group)


# --- results --------------------------------------------------------------------------------------------


@many
@given(value=JSON)
@example(value="a\0b")
@example(value={"a\ud800": 1})
@example(value=float("nan"))
@example(value=[float("inf")])
@example(value=10**4000)
@example(value="\\u0000")
@example(value=1e308)
def test_any_result_becomes_json_that_postgres_stores(db: Conn, value: Any) -> None:
    text, problem = result_json(value)
    assert (text is None) == (value is None)
    stored = db.execute("SELECT %s::jsonb::text", [text]).fetchone()[0]
    if value is None:
        assert stored is None
    elif problem is None:
        assert exactly(stored) == exactly(json.dumps(value)), "also numbers that Postgres writes otherwise"
    else:
        assert isinstance(json.loads(stored), str)


def exactly(text: str) -> Any:
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


@given(value=JSON)
@example(value="\\u0000")
@example(value="C:\\u0000\\\\u0000")
def test_a_result_that_is_json_is_kept_as_it_is(value: Any) -> None:
    try:
        expected = json.dumps(value, allow_nan=False)
        json.dumps(value, ensure_ascii=False).encode()
        fine = "\0" not in str(strings_in(value))
    except (ValueError, UnicodeEncodeError):
        fine = False
    text, problem = result_json(value)
    if fine:
        assert problem is None
        assert value is None or json.loads(text or "") == json.loads(expected)
    else:
        assert problem is not None


def strings_in(value: Any) -> str:
    """Return all text in a JSON value, run together."""
    match value:
        case str():
            return value
        case list():
            return "".join(map(strings_in, value))
        case dict():
            return "".join(key + strings_in(inner) for key, inner in value.items())
    return ""


class Unshowable:
    def __repr__(self) -> str:
        raise ValueError("no")


class SlyRepr:
    def __repr__(self) -> str:
        return Sly("sly")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (object(), "<object object"),
        ({1, 2}, "{1, 2}"),
        (b"abc", "b'abc'"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        (float("nan"), "nan"),
        ({"a": float("-inf")}, "{'a': -inf}"),
        ("a\0b", "a\\x00b"),
        ("\ud800", "\\ud800"),
        (Unshowable(), "Unshowable"),
        ([Unshowable()], "list"),
        (lambda: None, "function"),
        (Ellipsis, "Ellipsis"),
        (10**5000, "int"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_result_that_is_no_json_is_kept_as_the_text_of_its_repr(db: Conn, value: Any, says: str) -> None:
    text, problem = result_json(value)
    assert problem
    kept = db.execute("SELECT %s::jsonb #>> '{}'", [text]).fetchone()[0]
    assert says in kept


def test_a_result_whose_repr_misbehaves_is_kept_all_the_same() -> None:
    text, problem = result_json(SlyRepr())
    assert problem
    assert isinstance(json.loads(text or ""), str)


def test_a_result_that_is_too_large_is_cut_and_a_large_one_is_not(db: Conn) -> None:
    large, too_large = "x" * (RESULT_LIMIT - 2), "x" * RESULT_LIMIT
    assert result_json(large) == (json.dumps(large), None)
    text, problem = result_json(too_large)
    assert problem
    assert "too large" in problem
    assert len(text or "") < 20_000


def test_a_list_that_holds_itself_is_kept_as_text() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert result_json(endless)[0] == '"[[...]]"'


def test_a_result_deeper_than_python_reads_is_kept_as_text() -> None:
    deep: Any = []
    for _ in range(200_000):
        deep = [deep]
    text, problem = result_json(deep)
    assert problem
    assert isinstance(json.loads(text or ""), str)


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 200_000 + "]" * 200_000, "nonsense", ""])
def test_json_beyond_python_is_none(text: str) -> None:
    assert parse_json(text) is None


def test_no_json_is_none_too() -> None:
    assert parse_json(None) is None
    assert parse_json("null") is None
