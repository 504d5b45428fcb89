"""The keys of the configuration and of ``security.keys_file``, read with all checks; a file holds digests only."""

import fcntl
import hashlib
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import attrs
import msgspec
from msgspec import Meta

from mflux_api.access.keys import Key, KeyRing, Scope, digest_of
from mflux_api.config import SecuritySettings
from mflux_api.errors import ConfigError
from mflux_api.system.durable import PendingFile
from mflux_api.system.private_files import FILE_MODE

MIN_LENGTH = 16
"""Characters of a key: the least that cannot be guessed over a network when they are random."""

MAX_FILE_BYTES = 1024 * 1024
_PREFIX = "mflux_"
_HASH = "sha256:"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
# A key of security.api_keys is called by eight such digits.
_UNNAMED = re.compile("[0-9a-f]{8}")


@attrs.frozen(kw_only=True)
class _Entry:
    name: Annotated[str, Meta(pattern=f"^{_NAME}$")]
    hash: Annotated[str, Meta(pattern=f"^{_HASH}[0-9a-f]{{64}}$")]
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)]
    max_jobs: Annotated[int, Meta(ge=1)] | None = None


@attrs.frozen(kw_only=True)
class _File:
    keys: tuple[_Entry, ...] = ()


def read_keys(security: SecuritySettings) -> KeyRing:
    """Return all keys that the settings name.

    Raises:
        ConfigError: the file of keys cannot be used, or two keys are the same.
    """
    keys = [_unnamed(text) for text in dict.fromkeys(security.api_keys)]
    if security.keys_file is not None:
        keys += read_file(security.keys_file)
    by_digest: dict[bytes, Key] = {}
    for key in keys:
        other = by_digest.setdefault(key.digest, key)
        if other is not key:
            raise ConfigError(
                f"security.keys_file: key '{key.name}' is also in security.api_keys or under another name; keep one"
            )
    return KeyRing(tuple(keys))


def read_file(path: Path) -> tuple[Key, ...]:
    """Return the keys of a file.

    Raises:
        ConfigError: it cannot be read, others can read it, or an entry is wrong; the message says what to do.
    """
    where = f"security.keys_file ({path.name})"
    tree = _parse(path, where)
    for name in tree.keys() - {"keys"}:
        raise ConfigError(f"{where}: unknown key '{name}'; write [[keys]] entries")
    listed = tree.get("keys", [])
    for entry in listed if isinstance(listed, list) else ():
        unknown = entry.keys() - {field.name for field in attrs.fields(_Entry)} if isinstance(entry, dict) else ()
        for name in unknown:
            raise ConfigError(f"{where}: unknown key 'keys.{name}'; known keys here: name, hash, scopes, max_jobs")
    try:
        entries = msgspec.convert(tree, _File).keys
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at ")
        raise ConfigError(f"{where}: '{at.strip('`').removeprefix('$.')}': {message}") from None
    if not entries:
        raise ConfigError(f"{where}: it holds no key; add one with `mflux-api keys new NAME --scopes generate`")
    keys = tuple(_named(entry) for entry in entries)
    _check_unique(keys, where)
    return keys


def weak_keys(security: SecuritySettings) -> int:
    """Return how many keys of the configuration are shorter than :data:`MIN_LENGTH`."""
    return sum(len(text) < MIN_LENGTH for text in security.api_keys)


def new_secret() -> str:
    """Return a key that was never used: 256 random bits behind a prefix that secret scanners can know."""
    return _PREFIX + secrets.token_urlsafe(32)


def new_entry(name: str, secret: str, scopes: Sequence[Scope], max_jobs: int | None) -> str:
    """Return the entry of a key as TOML.

    Raises:
        ConfigError: the name cannot be one.
    """
    if re.fullmatch(_NAME, name) is None or _UNNAMED.fullmatch(name):
        raise ConfigError(_bad_name(name))
    listed = ", ".join(f'"{scope}"' for scope in dict.fromkeys(scopes))
    limit = "" if max_jobs is None else f"max_jobs = {max_jobs}\n"
    lines = (
        "[[keys]]",
        f'name = "{name}"',
        f'hash = "{_HASH}{digest_of(secret.encode()).hex()}"',
        f"scopes = [{listed}]",
    )
    return "\n".join(lines) + f"\n{limit}"


def append(path: Path, entry: str) -> None:
    """Add an entry to the file, which is made if it is not there, for its owner alone.

    Raises:
        ConfigError: the file that is there cannot be used, or has a key of that name.
        OSError: it cannot be written.
    """
    # A link to the file stays one.
    path, where, before = path.resolve(), f"security.keys_file ({path.name})", b""
    if not path.parent.is_dir():
        raise ConfigError(f"{where}: its folder is not there; make it first")
    with _one_at_a_time(path.parent):
        if path.exists():
            # Also an empty file is a file of keys here.
            _parse(path, where)
            before = path.read_bytes().rstrip()
        text = before + (b"\n\n" if before else b"") + entry.encode()
        # Checked as a whole before the running server's file is touched; whole or not at all.
        with PendingFile(path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp"), FILE_MODE) as pending:
            pending.write(text)
            try:
                read_file(pending.path)
            except ConfigError as error:
                raise ConfigError(str(error).replace(pending.path.name, path.name)) from None
            pending.publish(path)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let no other command write in between: the key that it has shown would be lost."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # A disk without locks is written as before.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _parse(path: Path, where: str) -> dict[str, Any]:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{where}: is not a regular file")
            if status.st_mode & _OTHERS:
                mode = stat.S_IMODE(status.st_mode)
                raise ConfigError(f"{where}: its mode is {mode:o}, so other users can reach it; run `chmod 600` on it")
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such file; `mflux-api keys new NAME --scopes generate` makes it") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{where}: is over {MAX_FILE_BYTES // 2**20} MB; a key takes about 150 bytes")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
        # The parser's own message may quote a line of the file.
        raise ConfigError(f"{where}: not valid TOML; compare it with docs/operations.md") from None


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting: a pipe in its place would hold up the start for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_unique(keys: Sequence[Key], where: str) -> None:
    names: set[str] = set()
    for key in keys:
        if _UNNAMED.fullmatch(key.name):
            raise ConfigError(f"{where}: {_bad_name(key.name)}")
        if key.name in names:
            raise ConfigError(f"{where}: the name '{key.name}' is used twice; give every key a name of its own")
        names.add(key.name)


def _bad_name(name: str) -> str:
    return (
        f"'{name[:64]}' cannot be a key's name; expected up to 64 letters, digits, '.', '_' and '-', and not eight "
        "hexadecimal digits"
    )


def _named(entry: _Entry) -> Key:
    return Key(
        name=entry.name,
        digest=bytes.fromhex(entry.hash.removeprefix(_HASH)),
        scopes=frozenset(entry.scopes),
        max_jobs=entry.max_jobs,
    )


def _unnamed(text: str) -> Key:
    """Return a key of ``security.api_keys``: it has all scopes, and is called by its digest."""
    return Key(name=hashlib.sha256(text.encode()).hexdigest()[:8], digest=digest_of(text.encode()), unnamed_secret=text)
