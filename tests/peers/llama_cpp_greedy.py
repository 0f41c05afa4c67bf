"""Greedy continuations of 20 prompts: vela against llama.cpp on the same GGUF file, token for token.

What is right is settled by a third: the file's weights dequantised, activations in float32, in NumPy (`gguf_numpy.py`). A
runtime's noise is the root-mean-square difference of its logits from those, what is common to all tokens left out. All three
read the same tokens, those that vela writes. Three things must hold:
  - where vela and llama.cpp choose different tokens, these two lie at most four times llama.cpp's noise there apart, in the
    reference's logits;
  - each of vela's tokens lies at most as far below the reference's best one;
  - vela's noise on the prompts is at most 1.25 times llama.cpp's.
Usage: python tests/peers/llama_cpp_greedy.py MODEL [VELA] [COUNT]      (needs llama-cpp-python and gguf; not part of CI)
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp as L
import numpy as np
from gguf_numpy import Decoder

FACTOR = 4
WORSE = 1.25
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
# The begin token comes first where the file asks for it.
ids = [model.tokenize(prompt.encode(), add_bos=True, special=True) for prompt in PROMPTS]
with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    json.dump(ids, file)
    file.flush()
    command = [vela, "bench", "greedy", "--model", path, "--prompts", file.name, "--count", str(count), "--threads", "1"]
    ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
reference = Decoder(path)
vocab = model.n_vocab()


def read(tokens):
    model.eval(tokens)
    return np.array(np.ctypeslib.as_array(L.llama_get_logits_ith(model.ctx, -1), shape=(vocab,)))


same = wrong = steps = our_best = their_best = 0
our_noise, their_noise = [], []
for prompt, tokens, made in zip(PROMPTS, ids, ours):
    exact = reference.logits(tokens + made["ids"][:-1], len(tokens) - 1)
    our_noise.append(float((np.array(made["first_logits"]) - exact[0]).std()))
    model.reset()
    now = read(tokens)
    their_noise.append(float((now - exact[0]).std()))
    parted, outside = None, []
    for step, token in enumerate(made["ids"]):
        right, theirs, best = exact[step], int(now.argmax()), int(exact[step].argmax())
        bound = FACTOR * float((now - right).std())
        apart, below = abs(float(right[theirs] - right[token])), float(right[best] - right[token])
        if theirs != token and parted is None:
            parted = f"parts at {step}: {apart:.3f} apart, bound {bound:.3f}"
        if max(apart, below) > bound:
            outside.append(f"NOT within noise at {step}: {apart:.3f} from llama.cpp's, {below:.3f} below the best, bound {bound:.3f}")
        steps, our_best, their_best = steps + 1, our_best + (token == best), their_best + (theirs == best)
        if step + 1 < len(made["ids"]):
            now = read([token])
    same += parted is None
    wrong += bool(outside)
    verdict = "; ".join([parted or "same", *outside])
    print(f"{prompt[:24]!r:28} noise: vela {our_noise[-1]:.3f}, llama.cpp {their_noise[-1]:.3f} of {exact[0].std():.2f}  {verdict}")

overall = [float(np.sqrt(np.mean(np.square(noise)))) for noise in (our_noise, their_noise)]
worse = overall[0] > WORSE * overall[1]
print(f"{same} of {len(PROMPTS)} the same for {count} tokens, {len(PROMPTS) - same - wrong} part within noise, {wrong} do not agree")
print(f"the reference's best token: vela {our_best} of {steps}, llama.cpp {their_best}")
print(f"noise over all prompts: vela {overall[0]:.3f}, llama.cpp {overall[1]:.3f}{': MORE than allowed' if worse else ''}")
sys.exit(1 if wrong or worse else 0)
