"""A small byte-level tokenizer in the form of Qwen3's: every byte, a few common words, Qwen's special tokens."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

# Frequent in prompts and in the chat template; each costs one token instead of one per letter.
_WORDS = (
    "user",
    "assistant",
    "the",
    "a",
    "an",
    "of",
    "in",
    "on",
    "and",
    "with",
    "at",
    "to",
    "by",
    "for",
    "from",
    "red",
    "blue",
    "green",
    "black",
    "white",
    "small",
    "large",
    "old",
    "light",
    "sky",
    "sea",
    "cat",
    "dog",
    "house",
    "tree",
    "city",
    "street",
    "photo",
    "painting",
    "style",
    "portrait",
    "night",
    "day",
    "sun",
    "water",
    "forest",
    "mountain",
    "flower",
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_THINKING = ("<think>", "</think>")

# Qwen2's pre-tokenizer, as in transformers' tokenization_qwen2.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Qwen3's chat template, reduced to what an image prompt needs: plain messages and the switch for thinking.
_CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return token numbers and merges: the 256 bytes first, then every prefix that the words are built through."""
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    # "Ċ" is a line break and "Ġ" a space in the byte alphabet.
    for word in ["ĊĊ", *_WORDS[:2], *(f"Ġ{word}" for word in _WORDS[2:])]:
        for end in range(1, len(word)):
            prefix, longer = word[:end], word[: end + 1]
            if longer not in vocabulary:
                vocabulary[longer] = len(vocabulary)
                merges.append((prefix, word[end]))
    return vocabulary, merges


def _round_up(size: int, multiple: int = 64) -> int:
    return -(-size // multiple) * multiple


_VOCABULARY, _MERGES = _vocabulary()
VOCABULARY_SIZE = _round_up(len(_VOCABULARY) + len(_SPECIAL) + len(_THINKING))
"""Rows that a text encoder's embedding needs: at least one per token."""
PAD_TOKEN_ID = len(_VOCABULARY)
END_TOKEN_ID = len(_VOCABULARY) + _SPECIAL.index("<|im_end|>")


def write_tokenizer(folder: Path, max_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into the existing ``folder``."""
    tokenizer = Tokenizer(models.BPE(vocab=_VOCABULARY, merges=_MERGES))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _THINKING])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": max_length,
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "unk_token": None,
        "bos_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "errors": "replace",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")
