"""FLUX.2 Klein's prompts: Qwen3's tokenizer and chat template, as mflux reads them."""

from pathlib import Path
from typing import Any

from mflux.models.common.tokenizer import LanguageTokenizer, TokenizerLoader
from mflux.models.common.weights.loading.weight_definition import TokenizerDefinition

from mflux_api.engine.checkpoint import CheckpointError, check_tokenizer_files
from mflux_api.engine.device import LIBRARY_ERRORS


def load_qwen_tokenizer(path: Path, sequence_length: int, vocab_size: int) -> Any:
    """Load the folder ``tokenizer`` of the checkpoint ``path``.

    Raises:
        CheckpointError: files are missing or cannot be loaded, or they do not fit the text encoder.
    """
    check_tokenizer_files(path)
    definition = TokenizerDefinition(
        name="qwen3",
        hf_subdir="tokenizer",
        tokenizer_class="Qwen2TokenizerFast",
        encoder_class=LanguageTokenizer,
        max_length=sequence_length,
        use_chat_template=True,
        chat_template_kwargs={"enable_thinking": False},
    )
    try:
        # An absolute path that is a folder never reaches mflux's branch for repositories, so nothing is downloaded.
        tokenizer: Any = TokenizerLoader.load(definition, str(path.resolve()))
    except LIBRARY_ERRORS:
        raise CheckpointError("tokenizer/ holds files that transformers cannot load.") from None
    raw = tokenizer.tokenizer
    if not raw.chat_template:
        raise CheckpointError("tokenizer/chat_template.jinja is missing, and tokenizer_config.json has no template.")
    if raw.pad_token_id is None:
        raise CheckpointError("tokenizer/tokenizer_config.json names no padding token.")
    # A token beyond the embedding would read memory that is not the embedding's.
    if len(raw) > vocab_size:
        raise CheckpointError(f"tokenizer/ has {len(raw)} tokens, and the text encoder embeds only {vocab_size}.")
    return tokenizer
