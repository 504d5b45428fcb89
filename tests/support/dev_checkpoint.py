"""Random checkpoints in the layout of FLUX.2-dev's repository: Mistral3 with its vision half, guidance embedded.

diffusers' ``Flux2Pipeline`` loads the folder too; ``model_index.json`` carries its two call arguments, as elsewhere.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mflux_api.catalog.files import CONFIG_FILE, DEV_MODEL_TYPE, MODEL_INDEX
from mflux_api.engine.demo import byte_tokenizer, layout
from mflux_api.engine.demo.layout import CheckpointShape, Tensors
from mflux_api.engine.demo.random_checkpoint import Dtype, _values, _write_json, _write_safetensors

_SPECIAL = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
)
_BYTES = byte_tokenizer._VOCABULARY
VOCABULARY_SIZE = byte_tokenizer._round_up(len(_BYTES) + len(_SPECIAL))

# Mistral's template, reduced to text: messages are lists of parts, and the first token is in the text.
_CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' }}{%- else %}{{- '[INST]' }}{%- endif %}
    {%- for part in message['content'] %}
        {%- if part['type'] == 'text' %}{{- part['text'] }}{%- endif %}
    {%- endfor %}
    {%- if message['role'] == 'system' %}{{- '[/SYSTEM_PROMPT]' }}{%- else %}{{- '[/INST]' }}{%- endif %}
{%- endfor %}"""

SHAPE = CheckpointShape(
    vae_widths=(16, 32, 32, 48),
    double_blocks=2,
    single_blocks=3,
    heads=2,
    text_width=64,
    text_layers=7,
    text_out_layers=(2, 3, 5),
    # All heads together are wider than the model; in Mistral Small 3 they are narrower: the widths must differ.
    text_heads=4,
    text_key_value_heads=2,
    text_head_dim=32,
    text_mlp_width=128,
    # The system message alone is 190 tokens of this tokenizer.
    max_sequence_length=288,
)


def write_dev_checkpoint(
    folder: Path, shape: CheckpointShape = SHAPE, *, seed: int = 0, dtype: Dtype = "float32", padding: str = "left"
) -> Path:
    """Write the checkpoint to ``folder``, which must not exist, and return it."""
    transformer = {**layout.transformer_config(shape), "guidance_embeds": True}
    components = {
        "transformer": (
            "diffusion_pytorch_model.safetensors",
            transformer,
            (*layout.transformer_tensors(shape), *_guidance_tensors(shape)),
        ),
        "vae": ("diffusion_pytorch_model.safetensors", layout.vae_config(shape), layout.vae_tensors(shape)),
        "text_encoder": ("model.safetensors", _text_encoder_config(shape, dtype), _text_encoder_tensors(shape)),
    }
    for component, (file, config, tensors) in components.items():
        (folder / component).mkdir(parents=True)
        _write_json(folder / component / CONFIG_FILE, config)
        arrays = {name: _values(f"{component}/{name}", dims, std, seed) for name, dims, std in tensors}
        _write_safetensors(folder / component / file, arrays, dtype)
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", layout.scheduler_config())
    _write_tokenizer(folder / "tokenizer", shape.max_sequence_length, padding)
    index = {
        **layout.model_index(shape),
        "_class_name": "Flux2Pipeline",
        "text_encoder": ["transformers", "Mistral3ForConditionalGeneration"],
        "tokenizer": ["transformers", "PixtralProcessor"],
    }
    del index["is_distilled"]
    _write_json(folder / MODEL_INDEX, index)
    return folder


def _guidance_tensors(shape: CheckpointShape) -> Tensors:
    yield from layout._linear("time_guidance_embed.guidance_embedder.linear_1", 256, shape.width)
    yield from layout._linear("time_guidance_embed.guidance_embedder.linear_2", shape.width, shape.width)


def _text_encoder_tensors(shape: CheckpointShape) -> Tensors:
    for name, dims, std in layout.text_encoder_tensors(shape):
        if "q_norm" in name or "k_norm" in name:
            continue
        dims = (VOCABULARY_SIZE, dims[1]) if "embed_tokens" in name else dims
        yield f"language_model.{name}", dims, std
    yield "language_model.lm_head.weight", (VOCABULARY_SIZE, shape.text_width), 0.1
    for name, dims in _VISION.items():
        yield name, dims, layout.ONES if "norm" in name or "ln" in name else 0.1


_VISION_WIDTH = 32
_VISION_LAYER = "vision_tower.transformer.layers.0"
_VISION: dict[str, tuple[int, ...]] = {
    "multi_modal_projector.linear_1.weight": (SHAPE.text_width, _VISION_WIDTH),
    "multi_modal_projector.linear_2.weight": (SHAPE.text_width, SHAPE.text_width),
    "multi_modal_projector.norm.weight": (_VISION_WIDTH,),
    "multi_modal_projector.patch_merger.merging_layer.weight": (_VISION_WIDTH, 4 * _VISION_WIDTH),
    "vision_tower.ln_pre.weight": (_VISION_WIDTH,),
    "vision_tower.patch_conv.weight": (_VISION_WIDTH, 3, 16, 16),
    **{f"{_VISION_LAYER}.attention.{name}_proj.weight": (_VISION_WIDTH, _VISION_WIDTH) for name in "kqvo"},
    **{f"{_VISION_LAYER}.feed_forward.{name}_proj.weight": (_VISION_WIDTH,) * 2 for name in ("down", "gate", "up")},
    f"{_VISION_LAYER}.attention_norm.weight": (_VISION_WIDTH,),
    f"{_VISION_LAYER}.ffn_norm.weight": (_VISION_WIDTH,),
}


def _text_encoder_config(shape: CheckpointShape, dtype: Dtype) -> dict[str, object]:
    rope = {"rope_type": "default", "rope_theta": 1e9}
    return {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": DEV_MODEL_TYPE,
        "dtype": dtype,
        "image_token_index": len(_BYTES) + _SPECIAL.index("[IMG]"),
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": 2,
        "vision_feature_layer": -1,
        "text_config": {
            "model_type": "mistral",
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": shape.text_width,
            "intermediate_size": shape.text_mlp_width,
            "num_hidden_layers": shape.text_layers,
            "num_attention_heads": shape.text_heads,
            "num_key_value_heads": shape.text_key_value_heads,
            "head_dim": shape.text_head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e9,
            "rope_parameters": rope,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": _VISION_WIDTH,
            "intermediate_size": _VISION_WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": _VISION_WIDTH // 2,
            "image_size": 32,
            "patch_size": 16,
            "num_channels": 3,
            "hidden_act": "gelu",
            "rope_theta": 10000.0,
        },
    }


def _write_tokenizer(folder: Path, max_length: int, padding: str) -> None:
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE(vocab=_BYTES, merges=byte_tokenizer._MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "PixtralProcessor",
        "model_max_length": max_length,
        "padding_side": padding,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")
    processor = {
        "processor_class": "PixtralProcessor",
        "image_processor": {
            "image_processor_type": "PixtralImageProcessor",
            "patch_size": 16,
            "size": {"longest_edge": 32},
        },
        "patch_size": 16,
        "spatial_merge_size": 2,
        "image_token": "[IMG]",
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
    }
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
