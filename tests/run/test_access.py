"""Tokens: whole ones alone are used, made for one user alone, and never shown or replaced."""

import os
import threading

import pytest

from emc2dist.errors import LaunchError
from emc2dist.run import access, cluster
from emc2dist.run.access import find_token, headers_for, make_token

NO_TOKENS = [b"ghp_se\ncret", b"se cret", b"se\x00cret", b"se\x1bcret", "\ufeffse-cret".encode(), b"\xffsecret",
             "secret\u2019".encode(), b"secret" * 2000]  # fmt: skip


@pytest.fixture
def home(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    yield tmp_path / ".ray" / "auth_token"
    os.environ.pop("RAY_AUTH_TOKEN", None)
    monkeypatch.undo()
    cluster.AuthenticationTokenLoader.instance().reset_cache()  # it is one of all tests


@pytest.mark.parametrize("content", NO_TOKENS)
def test_what_is_no_token_is_refused_by_its_source_and_not_shown(content, home, monkeypatch, tmp_path):
    home.write_bytes(content)
    with pytest.raises(LaunchError, match=f"^{home}: holds no token") as refused:
        find_token()
    assert "cret" not in str(refused.value)
    assert refused.value.__cause__ is None
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home))
    with pytest.raises(LaunchError, match=f"^RAY_AUTH_TOKEN_PATH: {home}: holds no token"):
        headers_for("http://127.0.0.1:1")
    with pytest.raises(LaunchError, match=f"^{home}: holds no token"):
        headers_for("http://127.0.0.1:1", home)
    if b"\0" not in content:
        monkeypatch.setenv("RAY_AUTH_TOKEN", os.fsdecode(content))
        with pytest.raises(LaunchError, match=r"^RAY_AUTH_TOKEN: holds no token") as refused:
            find_token()
        assert "cret" not in str(refused.value)


@pytest.mark.parametrize("blank", ["", " \n"])
def test_an_empty_setting_is_refused_and_replaces_nothing(blank, home, monkeypatch, tmp_path):
    home.write_text("good")
    empty = tmp_path / "empty"
    empty.write_text(blank)
    for name, value, says in (
        ("RAY_AUTH_TOKEN", blank, "RAY_AUTH_TOKEN: the token is empty"),
        ("RAY_AUTH_TOKEN_PATH", blank, "RAY_AUTH_TOKEN_PATH: is empty"),
        ("RAY_AUTH_TOKEN_PATH", str(empty), f"RAY_AUTH_TOKEN_PATH: {empty}: the token is empty"),
        ("RAY_AUTH_TOKEN_PATH", str(tmp_path), f"RAY_AUTH_TOKEN_PATH: {tmp_path}: .*Is a directory"),
        ("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"), f"{tmp_path}/none: .*No such file"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(LaunchError, match=says):
                cluster._make_token()
    assert home.read_text() == "good"
    cluster._make_token()
    assert home.read_text() == "good"
    home.write_text(blank)
    with pytest.raises(LaunchError, match=f"{home}: the token is empty"):
        cluster._make_token()


def test_a_token_keeps_no_blanks_around_it(home):
    assert find_token() is None
    home.write_text(" good-1+/=\r\n")
    assert find_token() == "good-1+/="


def test_starts_at_once_hold_one_token_which_is_the_users_alone(home, monkeypatch):
    os.rmdir(home.parent)
    found, barrier = [], threading.Barrier(8)

    def start():
        barrier.wait()
        make_token()
        found.append(find_token())

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [home.read_text()] * 8
    assert len(found[0]) == 64
    assert home.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in home.parent.iterdir()] == ["auth_token"]
    make_token()
    assert home.read_text() == found[0]


def test_a_home_that_takes_none_gives_a_token_for_this_ray_alone(home, monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null")
    cluster._make_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_ray_is_told_of_a_token_that_it_does_not_find_itself(home, monkeypatch):
    home.write_text("good")
    monkeypatch.setattr(access, "_DEFAULT", str(home))
    monkeypatch.setenv("HOME", "/dev/null")
    cluster._make_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "good"
