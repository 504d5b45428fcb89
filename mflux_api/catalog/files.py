"""What a checkpoint's folder holds: the names, keys and limits that the engine and storage both need.

The engine loads these folders; storage finds, measures and deletes them without the model code. Facts about the files
stand here once; what is done with them does not belong here.
"""

import re
from collections.abc import Mapping
from typing import Literal, TypeAlias

# --- FLUX.2, Klein and dev ---

ComponentName: TypeAlias = Literal["text_encoder", "transformer", "vae"]
COMPONENTS: tuple[ComponentName, ...] = ("text_encoder", "transformer", "vae")
"""The folders with weights, in the order in which an image needs them."""

MODEL_INDEX = "model_index.json"
"""The file at the top of every checkpoint in diffusers' layout."""
OUT_LAYERS_KEY = "text_encoder_out_layers"
"""In the model index: the text encoder's layers whose outputs, side by side, condition the transformer."""
SEQUENCE_LENGTH_KEY = "max_sequence_length"
"""In the model index: the tokens that every prompt is padded or cut to."""
DEFAULT_SEQUENCE_LENGTH = 512
"""The default of that call argument in diffusers."""
KLEIN_OUT_LAYERS = (9, 18, 27)
"""The layers in diffusers for FLUX.2 Klein, where the model index names no layers."""
DEV_OUT_LAYERS = (10, 20, 30)
"""The same for FLUX.2-dev."""

CONFIG_FILE = "config.json"
"""In each component's folder: its dimensions."""
MAX_CONFIG_BYTES = 1 << 20
"""Configurations of released models have a few kilobytes."""
DEV_MODEL_TYPE = "mistral3"
"""The name in transformers for FLUX.2-dev's text encoder in its configuration file."""
# transformers 4 and 5 put the same parts under different names.
DEV_LANGUAGE_MODEL = re.compile(r"(language_model\.model|model\.language_model)\.")
"""What the names of the language model's tensors begin with in FLUX.2-dev's text encoder."""
DEV_NOT_NEEDED = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.|(language_model\.)?lm_head\.")
"""What the names of those tensors begin with that no prompt needs: image input and next-token prediction."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""In the folder ``tokenizer``: what every tokenizer has; the second may hold the chat template, too."""
TEMPLATE_FILE = "chat_template.jinja"
"""There, too: how a prompt becomes a message to the language model."""

# --- safetensors ---

WEIGHT_FILES = "*.safetensors"
"""Pattern of a component's weight files."""
WEIGHT_INDEXES = "*.safetensors.index.json"
"""Pattern of the file that says which weight file holds which tensor; where there is one, it decides."""
SAVED_INDEX = "model.safetensors.index.json"
"""The index that mflux writes into each component's folder of a saved model."""
COMPANION_PREFIX = "._"
"""What macOS puts before a file's name for its companion on foreign file systems; those are not weights."""
MAX_INDEX_BYTES = 64 << 20
MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit for a file's header."""

GROUP_SIZE = 64
"""Numbers that share a scale when this service quantizes weights; mflux's own choice."""

# --- SeedVR2 ---

UPSCALER_FILES: Mapping[str, str] = {
    "transformer": "seedvr2_ema_3b_fp16.safetensors",
    "vae": "ema_vae_fp16.safetensors",
}
"""The two files, side by side, by what is in them."""
