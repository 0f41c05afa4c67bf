"""Greedy continuations of 20 prompts: vela against llama.cpp on the same GGUF file, token for token.

Where they part, the difference must be within the noise of quantised activations: llama.cpp's own logits of the two tokens
may not lie further apart than eight times the root-mean-square difference of the two runtimes' logits on that prompt.
Usage: python tests/peers/llama_cpp_greedy.py MODEL [VELA] [COUNT]      (needs llama-cpp-python; not part of CI)
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp as L
import numpy as np

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "The three laws of thermodynamics are",
    "To make a good cup of tea, first",
    "Robots are useful in factories because",
    "In 1969, the first humans",
    "The quick brown fox",
    "Water boils at",
    "A list of prime numbers: 2, 3, 5,",
    "Dear Sir or Madam,\n",
    "The difference between a lake and a river is",
    "import numpy as np\n",
    "My favourite recipe for bread needs",
    "The Earth goes around the Sun in",
    "Question: What is 7 times 8?\nAnswer:",
    "Machine learning is a branch of",
    "She opened the door and saw",
    "Photosynthesis is the process by which",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
]

path = sys.argv[1]
vela = sys.argv[2] if len(sys.argv) > 2 else str(pathlib.Path(__file__).parents[2] / "target/release/vela")
count = int(sys.argv[3]) if len(sys.argv) > 3 else 32
model = L.Llama(path, n_ctx=1024, n_threads=1, n_threads_batch=1, logits_all=False, verbose=False)
ids = [model.tokenize(prompt.encode(), add_bos=False, special=True) for prompt in PROMPTS]
with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    json.dump(ids, file)
    file.flush()
    command = [vela, "bench", "greedy", "--model", path, "--prompts", file.name, "--count", str(count), "--threads", "1"]
    ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

vocab = model.n_vocab()


def logits():
    return np.array(np.ctypeslib.as_array(L.llama_get_logits_ith(model.ctx, -1), shape=(vocab,)))


same = noise = wrong = 0
for prompt, tokens, made in zip(PROMPTS, ids, ours):
    model.reset()
    model.eval(tokens)
    now = logits()
    error = float(np.sqrt(np.mean((now - np.array(made["first_logits"])) ** 2)))
    verdict = "same"
    for step, token in enumerate(made["ids"]):
        theirs = int(now.argmax())
        if theirs != token:
            gap = float(now[theirs] - now[token])
            inside = gap <= 8 * error
            verdict = f"parts at {step}: gap {gap:.3f} (ours {made['margins'][step]:.3f}), noise {error:.3f}: "
            verdict += "within noise" if inside else "NOT within noise"
            break
        model.eval([token])
        now = logits()
    same += verdict == "same"
    noise += verdict.endswith(": within noise")
    wrong += "NOT" in verdict
    print(f"{prompt[:40]!r:44} rms {error:.4f} of std {now.std():.2f}  {verdict}")
print(f"{same} of {len(PROMPTS)} the same for {count} tokens, {noise} part within noise, {wrong} do not agree")
sys.exit(1 if wrong else 0)
