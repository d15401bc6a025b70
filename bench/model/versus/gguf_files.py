"""GGUF files of a checkpoint, for llama.cpp's qwen3moe. Needs numpy and gguf.

A file is written tensor by tensor: the largest is held in memory, not the model."""
import gguf
import numpy as np

from . import nvfp4_blocks

NVFP4, BF16, F32 = gguf.GGMLQuantizationType.NVFP4, gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F32
ATTENTION = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def nvfp4(codes, scales, multiplier):
    """Codes and scales as they are; the multiplier apart."""
    return nvfp4_blocks.pack(codes, scales), multiplier


def bf16(codes, scales, multiplier):
    """Code times block scale, which is exact; the multiplier apart. The same weights to the last bit."""
    return nvfp4_blocks.to_bf16(codes, scales).view(np.uint8), multiplier


def folded_bf16(codes, scales, multiplier):
    """The whole weight, rounded to bf16: what other quantizations are made of."""
    return nvfp4_blocks.to_bf16(codes, scales, multiplier).view(np.uint8), None


FORMS = {"nvfp4": (nvfp4, NVFP4), "bf16": (bf16, BF16), "folded-bf16": (folded_bf16, BF16)}


def write(checkpoint, form, path):
    """form: of FORMS."""
    convert, kind = FORMS[form]
    writer = gguf.GGUFWriter(path, "qwen3moe")
    _describe(writer, checkpoint.config, gguf.LlamaFileType.MOSTLY_NVFP4 if kind == NVFP4 else gguf.LlamaFileType.MOSTLY_BF16)
    tensors = list(_tensors(checkpoint, convert, kind))
    for name, shape, of, _ in tensors:
        block, size = gguf.GGML_QUANT_SIZES[of]
        writer.add_tensor_info(name, shape, np.dtype(np.float32), int(np.prod(shape)) // block * size, of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for *_, make in tensors:
        writer.write_tensor_data(make())
    writer.close()


def _describe(writer, c, file_type):
    writer.add_file_type(file_type)
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_key_length(c["head_dim"])
    writer.add_value_length(c["head_dim"])
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_expert_count(c["num_experts"])
    writer.add_expert_used_count(c["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(c["moe_intermediate_size"])
    writer.add_tokenizer_model("none")  # programs of this folder speak in ids
    writer.add_vocab_size(c["vocab_size"])


def _tensors(checkpoint, convert, kind):
    """(name, shape, type, function that makes its data) in the order of the file."""
    c, t = checkpoint.config, checkpoint.tensors
    hidden, head, experts, width = c["hidden_size"], c["head_dim"], c["num_experts"], c["moe_intermediate_size"]
    query, value = head * c["num_attention_heads"], head * c["num_key_value_heads"]

    def plain(name, source, of):
        if of == BF16:
            return name, t[source].shape, of, lambda: t[source]
        return name, t[source].shape, of, lambda: (t[source].astype(np.uint32) << 16).view(np.float32)

    def quantized(name, modules, shape):
        """One module, or the experts' stacked in a new first dimension."""
        stacked = (len(modules), *shape) if len(modules) > 1 else shape
        yield f"{name}.weight", stacked, kind, lambda: np.stack([convert(*checkpoint.nvfp4(m))[0] for m in modules])
        if convert is not folded_bf16:
            yield f"{name}.scale", (len(modules),), F32, lambda: np.array([checkpoint.nvfp4(m)[2] for m in modules], np.float32)

    yield plain("token_embd.weight", "model.embed_tokens.weight", BF16)
    for layer in range(c["num_hidden_layers"]):
        source, name = f"model.layers.{layer}", f"blk.{layer}"
        for norm, called in NORMS.items():
            yield plain(f"{name}.{called}.weight", f"{source}.{norm}.weight", F32)
        for which, called in ATTENTION.items():
            shape = {"q": (query, hidden), "o": (hidden, query)}.get(which, (value, hidden))
            yield from quantized(f"{name}.{called}", [f"{source}.self_attn.{which}_proj"], shape)
        yield plain(f"{name}.ffn_gate_inp.weight", f"{source}.mlp.gate.weight", F32)
        for which, shape in {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}.items():
            yield from quantized(f"{name}.ffn_{which}_exps", [f"{source}.mlp.experts.{e}.{which}_proj" for e in range(experts)], shape)
    yield plain("output_norm.weight", "model.norm.weight", F32)
    yield plain("output.weight", "lm_head.weight", BF16)
