"""llama.cpp (libmtmd) on the SmolVLM folder of shapes.py: prints one JSON line.

Usage: python measure_llama_cpp.py FOLDER [--threads N] [--runs N]      (llama-cpp-python, gguf, safetensors)
{"ttft_ms": [...], "encode_ms": [...], "prompt_tokens": ..., "picture_cosine": ...}: one picture of noise of 512 pixels and a
question to the first token, the picture's preprocessing included. libmtmd sends a picture of one tile twice, as the tile and as the whole:
the second is left out, so that it does the work that the others do. Writes FOLDER/text.gguf and FOLDER/mmproj.gguf, both in float32,
where they are not there. The cosine compares the picture's tokens with those of `transformers` (FOLDER/first_token.safetensors).
"""

import argparse
import ctypes
import json
import pathlib
import time

import gguf
import llama_cpp as L
import numpy as np
from llama_cpp import mtmd_cpp as M
from safetensors.numpy import load_file

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--runs", type=int, default=3)
args = parser.parse_args()
config = json.loads((args.folder / "config.json").read_text())
text, vision = config["text_config"], config["vision_config"]


def interleaved(weight, heads):
    """Rows of queries or keys in the order of llama.cpp's rotary positions, whose pairs are neighbours."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_text(path, tensors):
    to = gguf.GGUFWriter(path, "llama")
    to.add_block_count(text["num_hidden_layers"])
    to.add_context_length(text["max_position_embeddings"])
    to.add_embedding_length(text["hidden_size"])
    to.add_feed_forward_length(text["intermediate_size"])
    to.add_head_count(text["num_attention_heads"])
    to.add_head_count_kv(text["num_key_value_heads"])
    to.add_rope_dimension_count(text["head_dim"])
    to.add_rope_freq_base(text["rope_parameters"]["rope_theta"])
    to.add_layer_norm_rms_eps(text["rms_norm_eps"])
    to.add_vocab_size(text["vocab_size"])
    tokenizer = json.loads((args.folder / "tokenizer.json").read_text())
    words = {id: word for word, id in tokenizer["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    words |= special
    to.add_tokenizer_model("gpt2")
    to.add_tokenizer_pre("smollm")
    to.add_token_list([words.get(i, f"<unused{i}>") for i in range(text["vocab_size"])])
    to.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL if i in words else gguf.TokenType.UNUSED
                        for i in range(text["vocab_size"])])
    to.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    to.add_bos_token_id(text["bos_token_id"])
    to.add_eos_token_id(text["eos_token_id"])
    to.add_add_bos_token(False)
    to.add_tensor("token_embd.weight", tensors["model.text_model.embed_tokens.weight"])
    to.add_tensor("output.weight", tensors["lm_head.weight"])
    to.add_tensor("output_norm.weight", tensors["model.text_model.norm.weight"])
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
             "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    heads = {"attn_q": text["num_attention_heads"], "attn_k": text["num_key_value_heads"]}
    for i in range(text["num_hidden_layers"]):
        for theirs, ours in names.items():
            weight = tensors[f"model.text_model.layers.{i}.{theirs}.weight"]
            to.add_tensor(f"blk.{i}.{ours}.weight", interleaved(weight, heads[ours]) if ours in heads else weight)
    finish(to)


def write_vision(path, tensors):
    to = gguf.GGUFWriter(path, "clip")
    to.add_bool("clip.has_vision_encoder", True)
    to.add_string("clip.projector_type", "idefics3")
    to.add_bool("clip.use_gelu", True)
    numbers = {"image_size": vision["image_size"], "patch_size": vision["patch_size"], "embedding_length": vision["hidden_size"],
               "feed_forward_length": vision["intermediate_size"], "block_count": vision["num_hidden_layers"], "projection_dim": text["hidden_size"],
               "attention.head_count": vision["num_attention_heads"], "projector.scale_factor": config["scale_factor"],
               "preproc_image_size": vision["image_size"]}
    for key, value in numbers.items():
        to.add_uint32(f"clip.vision.{key}", value)
    to.add_float32("clip.vision.attention.layer_norm_epsilon", vision["layer_norm_eps"])
    to.add_array("clip.vision.image_mean", [0.5] * 3)
    to.add_array("clip.vision.image_std", [0.5] * 3)
    tower = "model.vision_model."
    to.add_tensor("mm.model.fc.weight", tensors["model.connector.modality_projection.proj.weight"])
    to.add_tensor("v.position_embd.weight", tensors[tower + "embeddings.position_embedding.weight"])
    names = {"layer_norm1": "ln1", "layer_norm2": "ln2", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.out_proj": "attn_out", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}
    for kind in ("weight", "bias"):
        to.add_tensor(f"v.patch_embd.{kind}", tensors[tower + f"embeddings.patch_embedding.{kind}"])
        to.add_tensor(f"v.post_ln.{kind}", tensors[tower + f"post_layernorm.{kind}"])
        for i in range(vision["num_hidden_layers"]):
            for theirs, ours in names.items():
                to.add_tensor(f"v.blk.{i}.{ours}.{kind}", tensors[tower + f"encoder.layers.{i}.{theirs}.{kind}"])
    finish(to)


def finish(to):
    to.write_header_to_file()
    to.write_kv_data_to_file()
    to.write_tensors_to_file()
    to.close()


paths = [args.folder / "text.gguf", args.folder / "mmproj.gguf"]
if not all(path.exists() for path in paths):
    tensors = load_file(args.folder / "model.safetensors")
    write_text(paths[0], tensors)
    write_vision(paths[1], tensors)
    del tensors

L.llama_backend_init()
quiet = L.llama_log_callback(lambda *_: None)
L.llama_log_set(quiet, ctypes.c_void_p(0))
M.mtmd_helper_log_set(quiet, ctypes.c_void_p(0))
model = L.llama_model_load_from_file(str(paths[0]).encode(), L.llama_model_default_params())
options = L.llama_context_default_params()
options.n_ctx, options.n_batch, options.n_ubatch, options.n_threads, options.n_threads_batch = 2048, 512, 512, args.threads, args.threads
context = L.llama_init_from_model(model, options)
options = M.mtmd_context_params_default()
options.use_gpu, options.print_timings, options.n_threads, options.warmup = False, False, args.threads, False
eyes = M.mtmd_init_from_file(str(paths[1]).encode(), model, options)
assert model and context and eyes, "llama.cpp does not load the files"

golden = load_file(args.folder / "first_token.safetensors")
picture = np.ascontiguousarray(golden["in.picture"])
height, width, _ = picture.shape
prompt = f"<|im_start|>User:{M.mtmd_default_marker().decode()}What is in the picture?<end_of_utterance>\nAssistant:".encode()
bitmap = M.mtmd_bitmap_init(width, height, picture.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
asked = M.mtmd_input_text(text=prompt, text_len=len(prompt), add_special=False, parse_special=True)
none = M.mtmd_helper_post_decode_callback()
vocabulary = text["vocab_size"]
ttft, encode, tokens, seen = [], [], 0, None
for run in range(args.runs + 1):
    L.llama_memory_clear(L.llama_get_memory(context), True)
    start, chunks, past, encoding = time.perf_counter(), M.mtmd_input_chunks_init(), L.llama_pos(0), 0.0
    assert M.mtmd_tokenize(eyes, chunks, ctypes.byref(asked), (M.mtmd_bitmap_p_ctypes * 1)(bitmap), 1) == 0
    each = [M.mtmd_input_chunks_get(chunks, i) for i in range(M.mtmd_input_chunks_size(chunks))]
    at = [M.mtmd_input_chunk_get_type(chunk) for chunk in each].index(M.MTMD_INPUT_CHUNK_TYPE_IMAGE)
    for chunk in [*each[: at + 1], each[-1]]:
        if chunk is each[at]:
            began = time.perf_counter()
            assert M.mtmd_encode_chunk(eyes, chunk) == 0
            encoding += time.perf_counter() - began
            many = M.mtmd_input_chunk_get_n_tokens(chunk)
            found = M.mtmd_get_output_embd(eyes)
            seen = np.ctypeslib.as_array(found, (many, text["hidden_size"])).copy()
            assert M.mtmd_helper_decode_image_chunk(eyes, context, chunk, found, past, 0, 512, ctypes.byref(past), none, None) == 0
        else:
            assert M.mtmd_helper_eval_chunk_single(eyes, context, chunk, past, 0, 512, chunk is each[-1], ctypes.byref(past)) == 0
    first = int(np.argmax(np.ctypeslib.as_array(L.llama_get_logits_ith(context, -1), (vocabulary,))))
    if run > 0:
        ttft.append((time.perf_counter() - start) * 1e3)
        encode.append(encoding * 1e3)
    tokens = past.value
    M.mtmd_input_chunks_free(chunks)
want = golden["out.picture_tokens"].reshape(seen.shape)
cosine = float((seen * want).sum() / np.linalg.norm(seen) / np.linalg.norm(want))
print(json.dumps({"ttft_ms": ttft, "encode_ms": encode, "prompt_tokens": tokens, "picture_cosine": cosine, "first": first}))
