"""The fake behind which the app and the server are tested offers what they use, as the real Heartbeat does."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from heartbeat import Heartbeat, http
from tests.support.fake_heartbeat import FakeHeartbeat

METHODS = [
    name for name, _ in inspect.getmembers(FakeHeartbeat, inspect.isfunction) if not name.startswith("_")
]
CALLED = ("heartbeat", "self._heartbeat", "self._core")  # what the modules call their Heartbeat


@pytest.mark.parametrize("name", METHODS)
def test_the_fake_takes_the_arguments_of_the_real_one(name: str) -> None:
    fake, real = (inspect.signature(getattr(cls, name)) for cls in (FakeHeartbeat, Heartbeat))
    assert list(fake.parameters.values()) == list(real.parameters.values())


def test_the_fake_offers_what_the_app_and_the_server_use_and_no_more() -> None:
    used = {
        node.attr
        for module in Path(http.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in CALLED
    }
    assert used == {*METHODS, "settings"}
    assert type(FakeHeartbeat().settings) is type(Heartbeat().settings)
