"""Prompts that are longer than a text encoder reads: how many tokens they have, and where they are cut."""

from typing import Any

from mflux_api.engine.dev.conversation import ConversationTokenizer

_SHOWN = 32
"""Characters of the prompt before the cut that a warning has, up to a word's beginning."""


def explain_cut(tokenizer: Any, prompt: str, limit: int, *, name: str = "prompt") -> str | None:
    """Return a sentence about a prompt whose end is not read; ``None`` for one that is read as a whole.

    Args:
        tokenizer: the checkpoint's, Qwen's or a :class:`ConversationTokenizer`.
        prompt: the text.
        limit: how many tokens are read, those of the chat template included.
        name: what the client calls the text.
    """
    text, special = _as_tokenized(tokenizer, prompt)
    if len(text.encode()) < limit:
        # A token is a byte at least; one more begins the text.
        return None
    # Not truncated here: what is beyond the limit is to be counted.
    encoding = tokenizer.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    count, ends = len(encoding["input_ids"]), [end for _, end in encoding["offset_mapping"]]
    if count <= limit:
        return None
    what = f"The {name} has {count} tokens with its chat template, and this model reads {limit}"
    if tokenizer.tokenizer.truncation_side == "left":
        return f"{what}: its beginning was left out"
    inner = prompt.strip()
    begins = text.find(inner)
    if begins < 0:
        # The template writes it in another way.
        return f"{what}: its end was left out"
    read = max(0, max(ends[:limit]) - begins)
    if read >= len(inner):
        # It is the end of the template that is cut.
        return None
    return f"{what}: what comes after '{_last_words(inner[:read])}' was left out"


def _as_tokenized(tokenizer: Any, prompt: str) -> tuple[str, bool]:
    """Return the text that is split into tokens, and whether tokens are added to it."""
    if isinstance(tokenizer, ConversationTokenizer):
        text = tokenizer.render(prompt)
        return text, tokenizer.adds_start(text)
    messages = [{"role": "user", "content": prompt}]
    options = tokenizer.chat_template_kwargs
    text = tokenizer.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    return str(text), bool(tokenizer.add_special_tokens)


def _last_words(text: str) -> str:
    words = " ".join(text.split())
    if len(words) <= _SHOWN:
        return words
    tail = words[-_SHOWN:]
    return f"…{tail.partition(' ')[2] or tail}"
