"""Snapshots that another program downloaded into the cache: which one a revision is, and whether it is whole.

Such a program leaves no mark of ours. What it leaves: ``refs/{branch}`` with the commit, newer ones also
``trees/{commit}.json`` with the size of every file. Where there is no list, the files themselves have to tell.
"""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import msgspec

from mflux_api.catalog.files import (
    COMPANION_PREFIX,
    COMPONENTS,
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    MAX_INDEX_BYTES,
    MODEL_INDEX,
    SAVED_INDEX,
    TEMPLATE_FILE,
    TOKENIZER_FILES,
    UPSCALER_FILES,
    WEIGHT_FILES,
    WEIGHT_INDEXES,
)
from mflux_api.catalog.safetensors_rules import CHECKPOINT, SafetensorsRuleError, read_file
from mflux_api.hub.cache import MAIN, HubCache
from mflux_api.system.regular_files import open_regular, read_regular

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_REFERENCE_BYTES = 1024
_MAX_TREE_BYTES = 16 << 20


class _Entry(msgspec.Struct):
    size: int
    lfs_size: int | None = None


class _Tree(msgspec.Struct):
    format_version: int
    files: dict[str, _Entry]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def whole_snapshot(cache: HubCache, repo: str, revision: str | None, patterns: Sequence[str]) -> Path | None:
    """Return the folder of a snapshot that has every file of a model; ``None`` where one is missing or cut.

    Reads the headers of weight files where no list says their sizes, so call it in a thread.

    Args:
        cache: where to look.
        repo: the repository.
        revision: a branch, tag or commit; ``None`` for the main branch.
        patterns: the files of the repository that the model needs.
    """
    repository = cache.repository(repo)
    with suppress(OSError, ValueError):
        commit = _commit(repository, revision or MAIN)
        if commit is not None:
            folder = repository / "snapshots" / commit
            tree = _tree(repository / "trees" / f"{commit}.json", patterns)
            whole = _has_sizes(folder, tree) if tree is not None else _looks_whole(folder)
            return folder if whole else None
    return None


def _commit(repository: Path, revision: str) -> str | None:
    if _COMMIT.fullmatch(revision):
        return revision
    reference = PurePosixPath(revision)
    if reference.is_absolute() or ".." in reference.parts:
        return None
    text = read_regular(repository / "refs" / reference, _MAX_REFERENCE_BYTES).decode("ascii", "replace").strip()
    return text if _COMMIT.fullmatch(text) else None


def _tree(path: Path, patterns: Sequence[str]) -> dict[str, int] | None:
    """Return the sizes of the files that are wanted, as huggingface_hub wrote them down; ``None`` without a list."""
    try:
        tree = msgspec.json.decode(read_regular(path, _MAX_TREE_BYTES), type=_Tree)
    except (OSError, msgspec.MsgspecError):
        return None
    wanted = {
        name: entry.size if entry.lfs_size is None else entry.lfs_size
        for name, entry in tree.files.items()
        if any(fnmatch(name, pattern) for pattern in patterns)
    }
    return wanted if tree.format_version == 1 and wanted else None


def _has_sizes(folder: Path, sizes: dict[str, int]) -> bool:
    return all(os.stat(folder / name).st_size == size for name, size in sizes.items())


def _looks_whole(folder: Path) -> bool:
    if (folder / UPSCALER_FILES["transformer"]).exists():
        return all(_is_whole(folder / name) for name in UPSCALER_FILES.values())
    saved = (folder / "transformer" / SAVED_INDEX).is_file() and not (folder / MODEL_INDEX).exists()
    if not saved:
        # mflux saves no configurations.
        for name in (MODEL_INDEX, *(f"{component}/{CONFIG_FILE}" for component in COMPONENTS)):
            msgspec.json.decode(read_regular(folder / name, MAX_CONFIG_BYTES), type=dict[str, msgspec.Raw])
    if not _has_tokenizer(folder / "tokenizer"):
        return False
    return all(_has_weights(folder / component) for component in COMPONENTS)


def _has_tokenizer(folder: Path) -> bool:
    if not all((folder / name).is_file() for name in TOKENIZER_FILES):
        return False
    config = msgspec.json.decode(
        read_regular(folder / TOKENIZER_FILES[1], _MAX_TREE_BYTES), type=dict[str, msgspec.Raw]
    )
    return "chat_template" in config or (folder / TEMPLATE_FILE).is_file()


def _has_weights(folder: Path) -> bool:
    indexes = sorted(folder.glob(WEIGHT_INDEXES))
    if indexes:
        index = msgspec.json.decode(read_regular(indexes[0], MAX_INDEX_BYTES), type=_Index)
        files = [folder / Path(name).name for name in sorted(set(index.weight_map.values()))]
    else:
        files = [path for path in folder.glob(WEIGHT_FILES) if not path.name.startswith(COMPANION_PREFIX)]
    return bool(files) and all(_is_whole(file) for file in files)


def _is_whole(file: Path) -> bool:
    try:
        with open_regular(file) as stream:
            read_file(stream, os.fstat(stream.fileno()).st_size, CHECKPOINT)
    except SafetensorsRuleError:
        return False
    return True
