"""What a BLIP3o consists of, where the published files lie, and the full-size and the tiny random instance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLConfig

from asgkit.backbones.blip3o.decoder import PixelDecoder
from asgkit.backbones.blip3o.eva import HEAD_WIDTH, EvaEncoder
from asgkit.backbones.blip3o.network import Blip3oNetwork, make_dit
from asgkit.backbones.chat import phrase_tokenizer

SOURCE = ("BLIP3o/BLIP3o-Model-8B on the Hugging Face hub (licence not verified; its understanding half is "
          "Qwen2.5-VL-7B-Instruct, Apache-2.0 as far as known); EVA-CLIP encoder: jiuhai/eva_clip_vision_tower "
          "(licence not verified)")
FILES = {
    "config.json": "sizes of the language model and the number of queries",
    "tokenizer.json": "tokenizer with the token [IMG]",
    "tokenizer_config.json": "settings of the tokenizer",
    "model*.safetensors": "language model, vision tower, queries and drawing transformer",
    "diffusion-decoder/unet/config.json": "optional, for pixels: sizes of the decoder's U-Net",
    "diffusion-decoder/unet/*.safetensors": "optional, for pixels: the decoder's U-Net",
    "diffusion-decoder/vae/config.json": "optional, for pixels: sizes of the decoder's autoencoder",
    "diffusion-decoder/vae/*.safetensors": "optional, for pixels: the decoder's autoencoder",
    "diffusion-decoder/scheduler/scheduler_config.json": "optional, for pixels: the decoder's noise schedule",
    "eva_clip_vision_tower/pytorch_model.bin": "optional, for generator.target=source_image: the EVA-CLIP encoder",
}
EULER = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Sampler:
    """Steps and guidance of the latent (`steps`, `guidance`) and of its pixels (`decoder_...`), as published."""

    steps: int = 30
    guidance: float = 3.0
    decoder_steps: int = 50
    decoder_guidance: float = 3.0


@dataclass(frozen=True)
class Parts:
    """An opened BLIP3o. side: of the pictures it reads, px; absent: why `eva` or `decoder` is None, by their name."""

    network: Blip3oNetwork
    tokenizer: PreTrainedTokenizerBase
    side: int
    max_new_tokens: int
    eva: EvaEncoder | None
    decoder: PixelDecoder | None
    absent: dict[str, str]
    sampler: Sampler = Sampler()


def full_size() -> nn.ModuleDict:
    """The published sizes without weights, on torch's meta device; sizes of the decoder are not verified."""
    vision = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "out_hidden_size": 3584,
              "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}
    config = Qwen2_5_VLConfig(
        hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, vocab_size=152064,
        intermediate_size=18944, rope_theta=1e6, rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        tie_word_embeddings=False, vision_config=vision)
    with torch.device("meta"):
        dit = make_dit(grid=8, channels=1792, width=1792, layers=24, heads=28)
        unet = UNet2DConditionModel(
            sample_size=128, block_out_channels=(320, 640, 1280), attention_head_dim=(5, 10, 20),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=1792,
            transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=1792 + 6 * 256)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=1024, scaling_factor=0.13025)
        return nn.ModuleDict({
            "network": Blip3oNetwork(config, dit, 64),
            "eva": EvaEncoder(side=448, patch=14, width=1792, depth=64, inner=15360, grid=8),
            "decoder": PixelDecoder(unet, vae, EULER)})


# -- the tiny random instance ------------------------------------------------------------------------------------------
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
           "<|video_pad|>", "[IMG]")
_FIRST = 256  # ids below are bytes


def tiny_settings(words: int) -> dict:
    """Settings of the tiny language model and vision tower, in the layout of the published config.json."""
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64,
              "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1], "initializer_range": 0.1}
    return {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": words, "rope_theta": 1e6, "tie_word_embeddings": False,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "initializer_range": 0.1,
            "bos_token_id": _FIRST, "eos_token_id": _FIRST + 2, "vision_start_token_id": _FIRST + 3,
            "vision_end_token_id": _FIRST + 4, "image_token_id": _FIRST + 5, "video_token_id": _FIRST + 6,
            "vision_config": vision}


def random_parts() -> Parts:
    """Every part in small, with the same random weights each time."""
    tokenizer = phrase_tokenizer(SPECIAL)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit = make_dit(grid=2, channels=HEAD_WIDTH, width=32, layers=2, heads=2)
        network = Blip3oNetwork(Qwen2_5_VLConfig(**tiny_settings(len(tokenizer))), dit, 4)
        for layer in dit.layers:
            nn.init.normal_(layer.gate)  # zero before training: captions would only be seen through their mean
        eva = EvaEncoder(side=32, patch=4, width=HEAD_WIDTH, depth=1, inner=128, grid=2)
        nn.init.normal_(eva.pos_embed, std=0.1)
        decoder = PixelDecoder(_tiny_unet(), _tiny_vae(), EULER)
    return Parts(network.eval(), tokenizer, 32, 16, eva.eval(), decoder.eval(), {}, Sampler(4, 3.0, 2, 3.0))


def _tiny_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, attention_head_dim=8, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=HEAD_WIDTH, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=HEAD_WIDTH + 48)


def _tiny_vae() -> AutoencoderKL:
    return AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
                         block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4, sample_size=32)
