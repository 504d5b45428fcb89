"""Train the tokenizer: byte-level BPE over captions and English words, in the files of Qwen's tokenizer.

python -m training.demo.tokenizer training/demo/tokenizer
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from training.demo import words
from training.demo.captions import sample
from training.demo.shape import END, PAD, SEQUENCE_LENGTH, START, VOCABULARY_SIZE

FOLDER = Path(__file__).parent / "tokenizer"
# Qwen2's pre-tokenizer, as in transformers' tokenization_qwen2.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Only the prompt: a longer template costs tokens, and every token costs time.
_CHAT_TEMPLATE = "{%- for message in messages %}{{- '<|im_start|>' + message.content + '<|im_end|>' }}{%- endfor %}"


def _corpus(captions: int) -> Iterator[str]:
    rng = random.Random(7)
    for _ in range(captions):
        yield sample(rng)[1]
    known = [*words.WORDS, *" ".join((*words.STRANGERS, *words.FLUFF, *words.NEGATIVES)).replace(",", "").split()]
    for _ in range(30):
        yield " ".join(known)
        yield " ".join(word.title() for word in known)


def train(folder: Path, captions: int = 60_000) -> None:
    """Train on so many ``captions``, and write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=3,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in (PAD, START, END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_corpus(captions), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": SEQUENCE_LENGTH,
        "pad_token": PAD,
        "eos_token": END,
        "unk_token": None,
        "bos_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "errors": "replace",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")


class PromptTokenizer:
    """Turns prompts into token rows, exactly as the engine's tokenizer does with the chat template."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_padding(length=SEQUENCE_LENGTH, pad_id=0, pad_token=PAD)
        self._tokenizer.enable_truncation(SEQUENCE_LENGTH)

    def __call__(self, prompts: list[str]) -> npt.NDArray[np.int16]:
        """Return token numbers [n, 64], padded with 0."""
        encoded = self._tokenizer.encode_batch(
            [f"{START}{prompt}{END}" for prompt in prompts], add_special_tokens=False
        )
        return np.array([row.ids for row in encoded], dtype=np.int16)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the demo model's tokenizer.")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    train(parser.parse_args().folder)
