"""FLUX.2-dev's prompts: the conversation that diffusers' ``Flux2Pipeline`` writes, and its tokens."""

from pathlib import Path
from typing import Any

import mlx.core as mx
from mflux.models.common.tokenizer.tokenizer_output import TokenizerOutput
from transformers import PreTrainedTokenizerFast

from mflux_api.engine.checkpoint import CheckpointError, check_tokenizer_files
from mflux_api.engine.device import LIBRARY_ERRORS

SYSTEM_MESSAGE = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)
"""What the model was trained with, line break included: another text gives other images."""

# It stands for an image in the conversation; a prompt has none.
_IMAGE_TOKEN = "[IMG]"
_PROBE = "a cat on a red roof"


class ConversationTokenizer:
    """Prompts to token numbers, padded on the side that the checkpoint's configuration says (FLUX.2-dev: the left)."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self._max_length = max_length

    def tokenize(self, prompt: str, max_length: int | None = None, **_: object) -> TokenizerOutput:
        """Return the prompt's token numbers and their mask, each [1, max_length], as mflux's tokenizers do."""
        text = self.render(prompt)
        tokens = self.tokenizer(
            [text],
            padding="max_length",
            truncation=True,
            max_length=max_length or self._max_length,
            add_special_tokens=self.adds_start(text),
            return_tensors="np",
        )
        return TokenizerOutput(
            input_ids=mx.array(tokens["input_ids"]), attention_mask=mx.array(tokens["attention_mask"])
        )

    def adds_start(self, text: str) -> bool:
        """Whether the first token is added to a text: a template that writes it itself must not get a second one."""
        start = self.tokenizer.bos_token
        return start is None or not text.startswith(start)

    def render(self, prompt: str) -> str:
        """Return the conversation with this prompt as text."""
        parts = (("system", SYSTEM_MESSAGE), ("user", prompt.replace(_IMAGE_TOKEN, "")))
        messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in parts]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))


def load_conversation_tokenizer(path: Path, sequence_length: int, vocab_size: int) -> ConversationTokenizer:
    """Load the folder ``tokenizer`` of the checkpoint ``path``.

    Raises:
        CheckpointError: files are missing or cannot be loaded, or the chat template loses a part of the conversation.
    """
    check_tokenizer_files(path)
    try:
        # tokenizer.json as it stands: the class that the configuration names may build another one of its vocabulary.
        raw = PreTrainedTokenizerFast.from_pretrained(str((path / "tokenizer").resolve()), local_files_only=True)
    except LIBRARY_ERRORS:
        raise CheckpointError("tokenizer/ holds files that transformers cannot load.") from None
    if not raw.chat_template:
        raise CheckpointError("tokenizer/chat_template.jinja is missing, and tokenizer_config.json has no template.")
    if raw.pad_token_id is None:
        raise CheckpointError("tokenizer/tokenizer_config.json names no padding token.")
    if len(raw) > vocab_size:
        raise CheckpointError(f"tokenizer/ has {len(raw)} tokens, and the text encoder embeds only {vocab_size}.")
    tokenizer = ConversationTokenizer(raw, sequence_length)
    _check_template(tokenizer)
    return tokenizer


def _check_template(tokenizer: ConversationTokenizer) -> None:
    try:
        text = tokenizer.render(_PROBE)
    # A template is a program of the checkpoint's own, and may fail with anything.
    except Exception as error:  # noqa: BLE001
        raise CheckpointError(f"tokenizer/: the chat template cannot be used ({type(error).__name__}).") from None
    if SYSTEM_MESSAGE not in text or _PROBE not in text or "'type'" in text:
        raise CheckpointError("tokenizer/: the chat template does not write the system message and the prompt.")
