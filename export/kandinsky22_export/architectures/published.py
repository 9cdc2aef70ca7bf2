"""The architectures that were published, in sizes: what random weights are drawn for."""

from __future__ import annotations

from typing import Any

EMBEDDING = 1280
TOKENS = 77
VOCABULARY = 49408

UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 8,
    "down_block_types": ("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
    "block_out_channels": (384, 768, 1152, 1536),
    "layers_per_block": 3,
    "attention_head_dim": 64,
    "cross_attention_dim": 768,
    "encoder_hid_dim": EMBEDDING,
    "encoder_hid_dim_type": "image_proj",
    "addition_embed_type": "image",
    "resnet_time_scale_shift": "scale_shift",
}
ARCHITECTURES: dict[str, dict[str, dict[str, Any]]] = {
    "kandinsky-2.2": {
        "unet": UNET,
        "movq": {
            "block_out_channels": (128, 256, 256, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
            "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
            "layers_per_block": 2,
            "latent_channels": 4,
            "vq_embed_dim": 4,
            "num_vq_embeddings": 16384,
            "norm_type": "spatial",
        },
        "prior": {
            "num_attention_heads": 32,
            "attention_head_dim": 64,
            "num_layers": 20,
            "embedding_dim": EMBEDDING,
            "num_embeddings": TOKENS,
            "additional_embeddings": 4,
        },
        "text_encoder": {
            "vocab_size": VOCABULARY,
            "hidden_size": EMBEDDING,
            "intermediate_size": 5120,
            "projection_dim": EMBEDDING,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "max_position_embeddings": TOKENS,
            "hidden_act": "gelu",
            "eos_token_id": VOCABULARY - 1,
            "pad_token_id": VOCABULARY - 1,
        },
    }
}
ARCHITECTURES["kandinsky-2.2-all"] = ARCHITECTURES["kandinsky-2.2"] | {
    "image_encoder": {
        "hidden_size": 1664,
        "intermediate_size": 8192,
        "projection_dim": EMBEDDING,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
    },
    "unet_controlnet": UNET | {"in_channels": 8, "addition_embed_type": "image_hint"},
    "unet_inpaint": UNET | {"in_channels": 9},
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "prior": {
        "_class_name": "UnCLIPScheduler",
        "num_train_timesteps": 1000,
        "variance_type": "fixed_small_log",
        "clip_sample": True,
        "clip_sample_range": 5.0,
        "prediction_type": "sample",
        "beta_schedule": "squaredcos_cap_v2",
    },
    "decoder": {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "linear",
        "variance_type": "learned_range",
        "prediction_type": "epsilon",
        "clip_sample": True,
        "clip_sample_range": 2.0,
        "thresholding": True,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": None,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    },
}
