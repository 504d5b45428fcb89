"""Prompts to embeddings through the checkpoint's tokenizer and text encoder, each computed once and then cached."""

from collections.abc import Sequence

import mlx.core as mx

from mflux_api.engine.sampling.prompt_cache import PromptCache
from mflux_api.engine.sampling.prompt_length import explain_cut
from mflux_api.engine.weights.components import Components

CACHE_BYTES = 64 << 20
# What mflux encodes where no negative prompt is given.
_NO_NEGATIVE_PROMPT = " "


class PromptEncoder:
    """The text side of one checkpoint; its text encoder is used only for prompts that are not cached."""

    def __init__(self, components: Components, cache_bytes: int = CACHE_BYTES) -> None:
        self._components = components
        self.cache = PromptCache(cache_bytes)

    def has_cached(self, texts: Sequence[str]) -> bool:
        """Whether the text encoder is not needed for any of the texts."""
        return all(self.cache.get(text) is not None for text in texts)

    def encode(self, text: str) -> mx.array:
        """Return the embedding of a prompt, [1, tokens, width], computed.

        Raises:
            CheckpointError: the text encoder is not in memory and cannot be read again.
        """
        cached = self.cache.get(text)
        if cached is not None:
            return cached
        info = self._components.info
        tokens = self._components.tokenizer.tokenize(prompt=text, max_length=info.max_sequence_length, keep_empty=True)
        embedding: mx.array = self._components.text_encoder.get_prompt_embeds(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            hidden_state_layers=info.text_encoder_out_layers,
        )
        mx.eval(embedding)
        self.cache.put(text, embedding)
        return embedding

    def explain_cuts(self, texts: Sequence[str]) -> list[str]:
        """Return a sentence for each of a pass's texts that is longer than what is read of it."""
        limit = self._components.info.max_sequence_length
        names = ("prompt", "negative prompt")
        told = [
            explain_cut(self._components.tokenizer, text, limit, name=name)
            for text, name in zip(texts, names, strict=False)
        ]
        return [sentence for sentence in told if sentence is not None]


def branch_texts(prompt: str, negative_prompt: str | None, branches: int) -> list[str]:
    """Return the text of each branch of guidance: the prompt, and the negative one where there are two."""
    if branches == 1:
        return [prompt]
    return [prompt, _NO_NEGATIVE_PROMPT if negative_prompt is None else negative_prompt]
