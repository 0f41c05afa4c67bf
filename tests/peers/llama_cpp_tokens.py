"""Token ids of 30 awkward texts: vela's tokenizer against llama.cpp's, from the same GGUF file.

Usage: python tests/peers/llama_cpp_tokens.py MODEL.gguf [VOCABULARY]      (needs llama-cpp-python; not part of CI)
VOCABULARY is the built example: cargo build --release --example vocabulary. It prints how many texts agree and the first
that does not.
"""

import pathlib
import subprocess
import sys
import tempfile

import llama_cpp as L

TEXTS = [
    "",
    " ",
    "  two, then   three spaces ",
    "\t\ttabs\tand \t mixed",
    "\n",
    "\n\n\n\n\n\nmany newlines\n\n",
    "line one\r\nline two\r\n",
    " leading",
    "trailing   ",
    "1234567890 12 345 6,789.01",
    "３４５ ² ½ Ⅷ ١٢٣",
    "don't I'LL we've can’t",
    "CamelCaseAndsnake_case_and-kebab",
    "fn main() {\n    println!(\"{:?}\", x[0..=3]);\n}",
    "naïve café, Ångström, straße",
    "cafe\u0301 and caf\u00e9",
    "Здравствуй, мир! Ελληνικά",
    "你好，世界。日本語のテキスト 한국어",
    "مرحبا بالعالم שלום",
    "हिन्दी और தமிழ்",
    "😀 👩‍👩‍👧‍👦 🇫🇷 👍🏽",
    "𐍈 𒀀 𓂀 \U000e0041",
    "\u200b\u200d\ufeff zero \u00a0width",
    "\x07\x1b[31m\x7f",
    "▁already▁marked ▁ here",
    "<0x0A> <0xFF> <unk>",
    "<bos>hello<eos> <|im_start|>user\nhi<|im_end|>\n",
    "<start_of_turn>user\nhi<end_of_turn>\n<h1>x</h1>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "https://example.org/a?b=c&d=%20#e !!!??? --- === ___ ***",
]

path = pathlib.Path(sys.argv[1]).resolve()
beside = pathlib.Path(__file__).parents[2] / "target/release/examples/vocabulary"
vocabulary = sys.argv[2] if len(sys.argv) > 2 else str(beside)
model = L.Llama(str(path), vocab_only=True, verbose=False)
ids = [model.tokenize(text.encode(), add_bos=False, special=True) for text in TEXTS]
with tempfile.TemporaryDirectory() as folder:
    link = pathlib.Path(folder) / "model.gguf"
    link.symlink_to(path)
    pathlib.Path(f"{link}.inp").write_bytes("\n__ggml_vocab_test__\n".join(TEXTS).encode())
    pathlib.Path(f"{link}.out").write_text("".join(" ".join(map(str, line)) + "\n" for line in ids))
    told = subprocess.run([vocabulary, folder], check=True, capture_output=True, text=True).stdout
print(told.strip())
sys.exit(0 if told.startswith(f"model.gguf: {len(TEXTS)} of {len(TEXTS)}") else 1)
