"""A cache of prompt embeddings, bounded by bytes."""

from collections import OrderedDict

import mlx.core as mx


class PromptCache:
    """Embeddings by their text; the least recently used go first when the arrays exceed ``limit_bytes`` together."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._bytes = 0
        self._entries: OrderedDict[str, mx.array] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Bytes of the arrays held now."""
        return self._bytes

    def get(self, text: str) -> mx.array | None:
        """Return the embedding of ``text``, now the most recently used; None if it is not cached."""
        entry = self._entries.get(text)
        if entry is not None:
            self._entries.move_to_end(text)
        return entry

    def put(self, text: str, embedding: mx.array) -> None:
        """Keep an evaluated embedding; one that alone exceeds the limit is not kept."""
        self._drop(text)
        if embedding.nbytes > self._limit:
            return
        self._entries[text] = embedding
        self._bytes += embedding.nbytes
        while self._bytes > self._limit:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bytes = 0

    def _drop(self, text: str) -> None:
        entry = self._entries.pop(text, None)
        if entry is not None:
            self._bytes -= entry.nbytes
