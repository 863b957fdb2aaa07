"""Any classifier of transformers as a tiny random model: rules that shrink a config by the names of its fields."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pico
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TASKS = {
    "sequence": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "image": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "audio": modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    "token": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}

LABELS = {0: "calm", 1: "stormy", 2: "closed"}
SIZE = 32
NARROW = "an eighth"

RULES: list[tuple[str, Any]] = [  # the first pattern that is the whole of a field's name gives its value
    (r"(pad|bos|eos|sep|cls|forced_eos|decoder_start)_token_id|.*_index", None),
    (r".*_token_id", 63),
    (r"(task_)?type_vocab_size|num_labels", None),
    (r".*vocab_size", 64),
    (r"num_mtp_layers|first_k_dense_replace|n_group|topk_group|num_mem_blocks|.*_per_block", 1),
    (r"(num_|n_)?(hidden_|encoder_|decoder_)?layers?|max_window_layers|num_experts_per_tok|moe_topk", 2),
    (r"num_experts|num_local_experts|n_routed_experts", 4),
    (r"(num|n|encoder|decoder|linear|index)_(.*_)?heads?", 2),
    (r"depths?|num_block_repeats|stage_num_blocks|stage_numb_of_layers", 1),
    (r".*head_dim|d_kv|d_head|kv_channels|attention_head_size|query_pre_attn_scalar|.*lora_rank", 16),
    (r"rotary_dim|patch_size|num_conv_pos_embeddings", 8),
    (r"hidden_size|d_model|n_embd|dim|(.*_)?embedding_size|emb_dim|d_latents|out_hidden_size|projection_dim", 32),
    (r".*intermediate_size|.*ffn_dim|d_ff|d_inner|dff|hidden_dim|feed_forward_size|classifier_proj_size", 64),
    (r"max_position_embeddings|n_positions|max_seq_len", 128),
    (r"image_size|input_size", SIZE),
    (r"hidden_sizes|embed_dims?|st(em|age)_.*channels|conv_dim|tdnn_dim|neck_hidden_sizes", NARROW),
]
FIELDS: dict[str, dict[str, Any]] = {  # what the rules do not know, by model type
    "audio-spectrogram-transformer": {"num_mel_bins": 32, "max_length": 32},
    "bit": {"num_groups": 8},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}},
    "cvt": {"depth": [1, 2, 3]},
    "donut-swin": {"patch_size": 2, "window_size": 2},
    "convnext": {"patch_size": 4},
    "convnextv2": {"patch_size": 4},
    "data2vec-audio": {"conv_pos_kernel_size": 3, "num_conv_pos_embedding_groups": 2},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "levit": {"patch_size": 16},
    "lilt": {"hidden_size": 24},
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "mobilevitv2": {"patch_size": 1, "width_multiplier": 0.25},
    "perceiver": {"num_cross_attention_heads": 1, "num_latents": 8},
    "pvt": {"num_labels": len(LABELS)},
    "qwen3_5_text": {"num_hidden_layers": 4},
    "qwen3_next": {"num_hidden_layers": 4},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": (8, 16),
        "axial_pos_embds_dim": (16, 16),
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "swin": {"patch_size": 2, "window_size": 2},
    "swinv2": {"patch_size": 2, "window_size": 2},
    "textnet": {"stem_out_channels": 8, "stem_num_channels": 3},
    "whisper": {"max_source_positions": 50, "num_mel_bins": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "attn_layer_period": 3, "attn_layer_offset": 0},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
}
TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "sep_token_id": 2, "decoder_start_token_id": 0}


PROCESSORS: dict[tuple[str, str], Callable[[], Any]] = {  # that are not the usual one of their task
    ("image", "imagegpt"): lambda: transformers.ImageGPTImageProcessor(
        clusters=torch.linspace(-1, 1, 63)[:, None].expand(-1, 3).tolist(), size={"height": 8, "width": 8}
    ),
    ("image", "siglip2"): partial(transformers.Siglip2ImageProcessor, patch_size=8, max_num_patches=16),
    ("audio", "audio-spectrogram-transformer"): partial(
        transformers.ASTFeatureExtractor, num_mel_bins=32, max_length=32
    ),
    ("audio", "wav2vec2-bert"): transformers.SeamlessM4TFeatureExtractor,
    ("audio", "whisper"): partial(transformers.WhisperFeatureExtractor, feature_size=16, chunk_length=1),
}


def tiny_config(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A config of this class with small numbers, in its nested configs too."""
    fields = {}
    for name, value in vars(kind()).items():
        if isinstance(value, PreTrainedConfig):
            fields[name] = tiny_config(type(value))
        elif name in kind.__dataclass_fields__ and (small := shrink(name, value)) is not None:
            fields[name] = small
    return kind(**fields | TOKENS | {"id2label": LABELS} | FIELDS.get(kind.model_type, {}))


def shrink(name: str, value: Any) -> Any:
    """The small value of a field, or None to leave it."""
    rule = next((small for pattern, small in RULES if re.fullmatch(pattern, name)), None)
    if rule is None or isinstance(value, bool | str | float):
        return None
    if isinstance(value, list | tuple):
        return [(one if one < 8 else max(8, one // 8)) if rule == NARROW else rule for one in value]
    return 16 if rule == NARROW else rule


def classifier(task: str, model_type: str, architecture: str | None = None) -> PreTrainedModel:
    """A random classifier whose weights are large enough for logits to differ from input to input."""
    torch.manual_seed(0)
    names = TASKS[task][model_type]
    name = architecture or (names if isinstance(names, str) else names[0])
    model = getattr(transformers, name)(tiny_config(CONFIG_MAPPING[model_type]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name.lower():
                parameter.normal_(std=2 / (parameter.numel() / len(parameter)) ** 0.5)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.fill_(1)  # EfficientNet's are 0.02, and after some layers nothing is left
    return model.eval()


def processor(task: str, model_type: str) -> Any:
    """The tokenizer, image processor or feature extractor of the tiny model of a type."""
    usual = {
        "sequence": pico.tokenizer,
        "token": pico.tokenizer,
        "image": partial(transformers.ViTImageProcessor, size={"height": SIZE, "width": SIZE}),
        "audio": partial(transformers.Wav2Vec2FeatureExtractor, return_attention_mask=True),
    }
    return PROCESSORS.get((task, model_type), usual[task])()
