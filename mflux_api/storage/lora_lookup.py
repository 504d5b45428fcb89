"""Which LoRA file a name means: it is compared with the names of those that were found, and opens nothing."""

import difflib
import os
import unicodedata
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path

from mflux_api.errors import InvalidParameter, LoraNotFound
from mflux_api.ipc.printable import printable
from mflux_api.storage.lora_folders import MAX_DEPTH, SUFFIX, Listing, LoraFile, Skipped, escape, stem

_MOST_CLOSE = 3
_MOST_COMPARED = 2000
"""Files whose names are looked through for close ones: each costs 80 µs."""


def find_file(listing: Listing, name: str, dirs: Sequence[Path]) -> LoraFile:
    """Return the file that a request means by a name or a path, with or without the suffix.

    A name alone also finds a file in a folder below, if only one is called so.

    Args:
        listing: what was found.
        name: what a client sent.
        dirs: the folders of ``lora.dirs``.

    Raises:
        InvalidParameter: no file has this name.
    """
    found = _named(listing.files, name, _normal) or _at_path(listing.files, name)
    if found is not None:
        return found
    wanted = _normal(stem(name))
    below = [file for file in listing.files if _normal(stem(file.path.name)) == wanted]
    if len(below) == 1:
        return below[0]
    hint = ""
    if left_out := _left_out(listing.skipped, name, dirs):
        hint = f"; {left_out.name} is left out: {left_out.reason}"
    elif close := [file.name for file in below[:_MOST_CLOSE]] or _close(listing.files, name):
        hint = f"; close to it: {', '.join(map(printable, close))}"
    raise InvalidParameter.for_field(
        "lora_files",
        f"is invalid: expected the name of a .safetensors file in lora.dirs; GET /api/v1/loras lists them{hint}",
        value=_shown(name),
        limit="a name that GET /api/v1/loras lists",
    )


def find_listed(listing: Listing, name: str) -> LoraFile:
    """Return the file that is listed by this very name, with or without the suffix; a path is not one.

    Raises:
        LoraNotFound: there is none.
    """
    file = _named(listing.files, name, _composed)
    if file is None:
        left_out = next((each for each in listing.skipped if each.name == name), None)
        raise not_found(name, "" if left_out is None else left_out.reason)
    return file


def not_found(name: str, left_out: str = "") -> LoraNotFound:
    """Return the error for a name that no file is listed by.

    Args:
        name: what a client sent.
        left_out: why the list leaves it out, where it does.
    """
    shown, why = escape(_shown(name)), f" (left out: {left_out})" if left_out else ""
    return LoraNotFound(f"LoRA '{shown}' not found{why}; GET /api/v1/loras lists them all", {"name": shown})


def same_stem(one: str, other: str) -> bool:
    """Whether two names are the same but for the suffix."""
    return stem(one) == stem(other)


def _named(files: Sequence[LoraFile], name: str, spelling: Callable[[str], str]) -> LoraFile | None:
    """Return the file that is listed by a name; of those whose suffixes differ in capitals the one that was spelled.

    Else the one whose alias it is: that may have been its name when a job was accepted.
    """
    wanted = spelling(name)
    for which in (attrgetter("name"), attrgetter("alias")):
        names = [spelling(which(file)) for file in files]
        for fits in (str.__eq__, same_stem):
            if found := [file for each, file in zip(names, files, strict=True) if fits(each, wanted)]:
                return found[0]
    return None


def _at_path(files: Sequence[LoraFile], name: str) -> LoraFile | None:
    # A path from the working directory is one, too; os.path does nothing but string work here.
    absolute = _normal(os.path.abspath(name))
    for file in files:
        if same_stem(absolute, _normal(str(file.path))):
            return file
        if os.path.isabs(name) and same_stem(absolute, _normal(os.path.realpath(file.path))):
            return file
    return None


def _left_out(skipped: Sequence[Skipped], name: str, dirs: Sequence[Path]) -> Skipped | None:
    """Return what a name means among what is left out, or the folder above it."""
    below = [_below(Path(os.path.abspath(name)), folder) for folder in dirs] if os.path.isabs(name) else [_normal(name)]
    spellings = {escape(each + end) for each in below if each for end in ("", SUFFIX)}
    parts = [each.split("/", MAX_DEPTH)[:MAX_DEPTH] for each in below if each]
    above = {escape("/".join(each[:depth])) for each in parts for depth in range(1, len(each))}
    found = [each for each in skipped if each.name in spellings] or [each for each in skipped if each.name in above]
    return next(iter(found), None)


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else ""


def _close(files: Sequence[LoraFile], name: str) -> list[str]:
    """Return the names that a client may have meant by one that no file has."""
    wanted = stem(_shown(name)).casefold()
    names = {
        stem(spelling).casefold(): file.name
        for file in reversed(files[:_MOST_COMPARED])
        for spelling in (file.path.name, file.name)
    }
    close = difflib.get_close_matches(wanted, names, n=_MOST_CLOSE)
    if not close and "." in wanted:
        # With the suffix of another format, or a slip in this one.
        close = difflib.get_close_matches(wanted.rpartition(".")[0], names, n=_MOST_CLOSE)
    return list(dict.fromkeys(names[each] for each in close))


def _normal(name: str) -> str:
    """Return one spelling of a path."""
    return _composed(os.path.normpath(name)) if name else ""


def _composed(name: str) -> str:
    """Return one spelling of a name: file systems differ in how they keep accents."""
    return unicodedata.normalize("NFC", name)


def _shown(name: str) -> str:
    """Return what a client sent, cut, without characters that JSON cannot hold."""
    return name[:64].encode("utf-8", "replace").decode() + ("…" if len(name) > 64 else "")
