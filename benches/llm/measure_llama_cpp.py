"""The measurement of `vela bench llm` in llama.cpp: the same file, prompt and counts. Prints one JSON line.

Usage: python measure_llama_cpp.py MODEL THREADS PROMPT_TOKENS DECODE_TOKENS     (needs llama-cpp-python)
"""

import ctypes
import json
import sys
import time

import llama_cpp as L
import numpy as np

path, threads, prompt, count = sys.argv[1], *map(int, sys.argv[2:5])
L.llama_backend_init()
start = time.perf_counter()
model = L.llama_model_load_from_file(path.encode(), L.llama_model_default_params())
params = L.llama_context_default_params()
params.n_ctx = prompt + count + 8
params.n_batch = params.n_ubatch = 512
params.n_threads = params.n_threads_batch = threads
context = L.llama_init_from_model(model, params)
load_ms = (time.perf_counter() - start) * 1e3
vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))


def read(ids):
    array = (L.llama_token * len(ids))(*ids)
    if L.llama_decode(context, L.llama_batch_get_one(array, len(ids))) != 0:
        sys.exit("llama_decode failed")
    logits = L.llama_get_logits_ith(context, -1)
    return int(np.ctypeslib.as_array(logits, shape=(vocab,)).argmax())


ids = [(i + 1) * 7919 % vocab for i in range(prompt)]
read(ids[:4])
L.llama_memory_clear(L.llama_get_memory(context), True)
start, busy = time.perf_counter(), time.process_time()
for at in range(0, prompt, 512):
    token = read(ids[at : at + 512])
ttft, prefill_cpu = time.perf_counter() - start, time.process_time() - busy
start, busy = time.perf_counter(), time.process_time()
for _ in range(count):
    token = read([token])
decode, decode_cpu = time.perf_counter() - start, time.process_time() - busy
status = open("/proc/self/status").read()
rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
print(
    json.dumps(
        {
            "prefill_tok_s": prompt / ttft,
            "decode_tok_s": count / decode,
            "ttft_ms": ttft * 1e3,
            "rss_mb": rss / 1024,
            "threads": threads,
            "load_ms": load_ms,
            "prefill_cpu_ms_per_token": prefill_cpu * 1e3 / prompt,
            "decode_cpu_ms_per_token": decode_cpu * 1e3 / count,
        }
    )
)
