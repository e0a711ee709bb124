"""The transformers families of the zoo, built tiny from their configurations. Nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["FAMILIES", "Inputs", "build_family", "family_inputs"]

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a forward."""

_SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED: dict[str, Any] = {**_SMALL, "num_key_value_heads": 1, "head_dim": 8}
_PICTURE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # decoders
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": 61, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _GROUPED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _GROUPED),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _GROUPED),
    "opt": ("OPTConfig", "OPTForCausalLM", {**_SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16}),
    # encoders
    "bert": ("BertConfig", "BertForMaskedLM", _SMALL),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {
            "vocab_size": 61,
            "dim": 16,
            "hidden_dim": 24,
            "n_layers": 2,
            "n_heads": 2,
            "max_position_embeddings": 32,
        },
    ),
    "electra": ("ElectraConfig", "ElectraForPreTraining", {**_SMALL, "embedding_size": 8}),
    # encoder-decoders
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {"vocab_size": 61, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    ),
    "bart": (
        "BartConfig",
        "BartForConditionalGeneration",
        {
            "vocab_size": 61,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_position_embeddings": 32,
        },
    ),
    # vision, and vision with language
    "vit": ("ViTConfig", "ViTForImageClassification", _PICTURE),
    "convnext": (
        "ConvNextConfig",
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "image_size": 32},
    ),
    "clip": (
        "CLIPConfig",
        "CLIPModel",
        {"text_config": _SMALL, "vision_config": _PICTURE, "projection_dim": 8},
    ),
    # mixtures of experts
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**_GROUPED, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {**_GROUPED, "num_experts": 4, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12},
    ),
    # state spaces
    "mamba": (
        "MambaConfig",
        "MambaForCausalLM",
        {"vocab_size": 61, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 2},
    ),
    "mamba2": (
        "Mamba2Config",
        "Mamba2ForCausalLM",
        {
            "vocab_size": 61,
            "hidden_size": 16,
            "state_size": 4,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": 4,
        },
    ),
}
"""Name of a family -> its configuration class, its model class, and the arguments that make it tiny."""


def build_family(name: str) -> nn.Module:
    """A new tiny model of a family, in evaluation mode, with values from torch's generator."""
    import transformers

    config_class, model_class, arguments = FAMILIES[name]
    config = getattr(transformers, config_class)(**arguments)
    model: nn.Module = getattr(transformers, model_class)(config)
    return model.eval()


def family_inputs(name: str) -> Inputs:
    """Keyword arguments for a family's forward."""
    tokens = torch.tensor([[5, 6, 7, 8, 2], [9, 10, 11, 12, 2]])
    side = 32 if name == "convnext" else 16
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    if name in ("vit", "convnext"):
        return (), {"pixel_values": pixels}
    if name == "clip":
        return (), {"input_ids": tokens, "pixel_values": pixels}
    if name in ("t5", "bart"):
        return (), {"input_ids": tokens, "decoder_input_ids": tokens[:, :3]}
    return (), {"input_ids": tokens}
