"""Parameter names: cosmos-framework's to diffusers', and which of them serving never reads."""

from __future__ import annotations

# cosmos-framework name -> diffusers name, one path component each.
_ATTENTION = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "o_proj": "to_out",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
    "q_proj_moe_gen": "add_q_proj",
    "k_proj_moe_gen": "add_k_proj",
    "v_proj_moe_gen": "add_v_proj",
    "o_proj_moe_gen": "to_add_out",
    "q_norm_moe_gen": "norm_added_q",
    "k_norm_moe_gen": "norm_added_k",
}
_HEADS = {
    "vae2llm": "proj_in",
    "llm2vae": "proj_out",
    "time_embedder.mlp.0": "time_embedder.linear_1",
    "time_embedder.mlp.2": "time_embedder.linear_2",
    "action2llm": "action_proj_in",
    "llm2action": "action_proj_out",
    "sound2llm": "audio_proj_in",
    "llm2sound": "audio_proj_out",
    "sound_modality_embed": "audio_modality_embed",
}
KEEP_FP32 = ("time_embedder.",)  # parameters the reference keeps in fp32 whatever the model's dtype

_PREFIXES = ("model.net.", "net.")
_LANGUAGE_PREFIXES = ("language_model.model.", "language_model.")


def diffusers_name_from_framework(key: str) -> str:
    """The diffusers parameter name of a cosmos-framework one; a diffusers name comes back unchanged."""
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    for prefix in _LANGUAGE_PREFIXES:
        key = key.removeprefix(prefix)
    for theirs, ours in _HEADS.items():
        if key == theirs or key.startswith(theirs + "."):
            return ours + key[len(theirs) :]
    parts = key.split(".")
    if len(parts) > 3 and parts[0] == "layers" and parts[2] == "self_attn":
        parts[3] = _ATTENTION.get(parts[3], parts[3])
    return ".".join(parts)


def is_unused(name: str, num_layers: int) -> bool:
    """Whether a weight, by its diffusers name, can never reach an action or a video.

    The language head, the final norm of the understanding tower, sound, the reasoner's picture encoder,
    and everything of the last understanding layer behind its keys and values.
    """
    last = f"layers.{num_layers - 1}."
    if name.startswith(last):
        tail = name[len(last) :]
        return tail.startswith(
            ("self_attn.to_q.", "self_attn.to_out.", "self_attn.norm_q.", "mlp.", "post_attention_layernorm.")
        )
    return name == "norm.weight" or name.startswith(("lm_head.", "audio_", "visual.", "vision_encoder."))
