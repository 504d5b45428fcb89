"""The file of keys: what is in it, who may reach it, and that it is whole or as it was."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mflux_api.access.access import Access
from mflux_api.access.keys import Scope
from mflux_api.access.keys_file import MAX_FILE_BYTES, append, new_entry, new_secret, read_file, read_keys, weak_keys
from mflux_api.access.visibility import ALL_JOBS, Visibility
from mflux_api.config import SecuritySettings
from mflux_api.errors import ConfigError

SECRET = "a key of nineteen letters"
HASH = "sha256:" + "0" * 64


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys.toml"
    path.write_text(text, "utf-8")
    path.chmod(mode)
    return path


def entry(name: str = "ana", digest: str = HASH, scopes: str = '["generate"]', more: str = "") -> str:
    return f'[[keys]]\nname = "{name}"\nhash = "{digest}"\nscopes = {scopes}\n{more}\n'


def test_new_keys_are_found_by_their_secret_alone(tmp_path: Path) -> None:
    path, secrets = tmp_path / "keys.toml", [new_secret(), new_secret()]
    append(path, new_entry("ana", secrets[0], [Scope.GENERATE, Scope.GENERATE], 5))
    append(path, new_entry("bob", secrets[1], [Scope.READ, Scope.MANAGE], None))
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["keys.toml"]
    assert not any(secret in path.read_text("utf-8") for secret in secrets)
    ring = read_keys(SecuritySettings(keys_file=path))
    ana, bob = (ring.find([b"another", secret.encode()]) for secret in secrets)
    assert ana is not None
    assert (ana.name, ana.owner, set(ana.scopes), ana.max_jobs) == ("ana", "key ana", {Scope.GENERATE}, 5)
    assert bob is not None
    assert bob.allows(Scope.GENERATE)
    assert ring.find([HASH.encode(), b"", b"ana"]) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o610])
def test_file_that_others_can_reach_is_refused_with_the_command_that_helps(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=r"keys\.toml.*chmod 600"):
        read_file(written(tmp_path, entry(), mode))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no key"),
        ("keys = []", "holds no key"),
        ("keys = 3", "keys"),
        ("keys = [3]", "keys"),
        ("nonsense", "not valid TOML"),
        ("key = 1", "unknown key 'key'"),
        (entry(more="hsah = 1"), r"unknown key 'keys\.hsah'"),
        (entry(name=""), "name"),
        (entry(name="a b"), "name"),
        (entry(name="0123abcd"), "eight hexadecimal digits"),
        (entry(digest="a secret in the clear"), "hash"),
        (entry(digest="sha256:00"), "hash"),
        (entry(scopes="[]"), "scopes"),
        (entry(scopes='["admin"]'), "scopes"),
        (entry(more="max_jobs = 0"), "max_jobs"),
        (entry() + entry(digest="sha256:" + "1" * 64), "used twice"),
        (entry() + entry(name="bob"), "another name"),
        ("#" * (MAX_FILE_BYTES + 1), "over 1 MB"),
        ("[" * 100_000, "not valid TOML"),
    ],
)
def test_mistake_is_named_without_a_path_or_a_secret(tmp_path: Path, text: str, expected: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=expected) as caught:
        read_keys(SecuritySettings(keys_file=path))
    assert str(tmp_path) not in str(caught.value)
    assert "secret in the clear" not in str(caught.value)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name, expected in (("pipe", "not a regular file"), (".", "regular file|cannot be"), ("no", "no such file")):
        with pytest.raises(ConfigError, match=expected):
            read_file(tmp_path / name)


def test_name_that_is_taken_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path, entry())
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"keys\.toml.*'ana' is used twice"):
        append(path, new_entry("ana", SECRET, [Scope.READ], None))
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["keys.toml"]


def test_new_key_goes_to_the_file_behind_a_link(tmp_path: Path) -> None:
    path, link = written(tmp_path, "# ours\n"), tmp_path / "link.toml"
    link.symlink_to(path)
    append(link, new_entry("ana", SECRET, [Scope.READ], None))
    assert link.is_symlink()
    assert [key.name for key in read_file(path)] == ["ana"]
    assert path.read_text("utf-8").startswith("# ours\n")


def test_folder_that_is_not_there_is_named_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its folder is not there") as caught:
        append(tmp_path / "no" / "keys.toml", new_entry("ana", SECRET, [Scope.READ], None))
    assert str(tmp_path) not in str(caught.value)


def test_key_of_the_configuration_has_all_scopes_and_the_name_that_its_jobs_have_had() -> None:
    ring = read_keys(SecuritySettings(api_keys=(SECRET, "короткий", SECRET)))
    assert len(ring.keys) == 2
    key = ring.find([SECRET.encode()])
    assert key is not None
    assert key.owner == f"key {hashlib.sha256(SECRET.encode()).hexdigest()[:8]}"
    assert all(map(key.allows, Scope))
    assert ring.find(["короткий".encode()]) is not None
    assert SECRET not in repr(ring)


def test_one_secret_under_two_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    append(path, new_entry("ana", SECRET, [Scope.READ], None))
    with pytest.raises(ConfigError, match=r"'ana' is also in security\.api_keys"):
        read_keys(SecuritySettings(api_keys=(SECRET,), keys_file=path))


def test_short_keys_are_counted() -> None:
    assert weak_keys(SecuritySettings(api_keys=("x" * 15, "x" * 16, "first"))) == 2


def test_broken_file_keeps_the_keys_that_were(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    append(path, new_entry("ana", SECRET, [Scope.READ], None))
    access = Access(SecuritySettings(keys_file=path))
    caller = access.caller(access.keys.find([SECRET.encode()]), "10.0.0.1")
    for text in ("nonsense", "keys = []", entry(scopes="[1]")):
        written(tmp_path, text)
        with pytest.raises(ConfigError):
            access.reload()
        assert access.holds(caller)
    written(tmp_path, entry(name="bob"))
    assert access.reload() == 1
    assert not access.holds(caller)


def test_reload_never_opens_a_service_that_had_keys() -> None:
    access = Access(SecuritySettings(api_keys=(SECRET,)))
    with pytest.raises(ConfigError, match="no key is left"):
        access.reload(SecuritySettings())
    assert access.keys


@pytest.mark.parametrize(
    ("shared", "scope", "sees"),
    [(False, "read", Visibility(only="key ana")), (True, "read", ALL_JOBS), (False, "manage", ALL_JOBS)],
)
def test_key_sees_its_own_jobs_and_all_where_they_are_shared_or_it_manages(
    tmp_path: Path, shared: bool, scope: str, sees: Visibility
) -> None:
    path = written(tmp_path, entry(scopes=f'["{scope}"]'))
    access = Access(SecuritySettings(keys_file=path, shared_jobs=shared))
    assert access.caller(access.keys.keys[0], "10.0.0.1").sees == sees
    assert access.caller(None, "10.0.0.1").sees == Visibility(only="10.0.0.1")
    assert Access(SecuritySettings()).caller(None, "10.0.0.1").sees == ALL_JOBS


def test_keys_of_the_configuration_see_all_jobs_but_those_of_other_keys(tmp_path: Path) -> None:
    settings = SecuritySettings(api_keys=("first of them", SECRET), keys_file=written(tmp_path, entry()))
    access = Access(settings)
    first, second, _ = access.keys.keys
    sees = access.caller(first, "10.0.0.1").sees
    assert [sees.shows(owner) for owner in (first.owner, "", "10.0.0.1", "key removed")] == [True] * 4
    assert [sees.shows(owner) for owner in (second.owner, "key ana")] == [False] * 2


def test_keys_that_are_made_at_one_time_are_all_in_the_file(tmp_path: Path) -> None:
    """Each was shown as added; a file that another command had read before lost it."""
    path = tmp_path / "keys.toml"
    names = [f"key-{number}" for number in range(12)]

    def make(name: str) -> None:
        append(path, new_entry(name, new_secret(), [Scope.GENERATE], None))

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(make, names))
    assert sorted(key.name for key in read_file(path)) == sorted(names)
