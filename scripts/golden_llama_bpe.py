"""A small byte-level BPE with Llama 3's way of cutting text, and its token ids: tests/golden/tokenizer_llama3.

Usage: python scripts/golden_llama_bpe.py       (needs tokenizers and transformers; made with the versions that it prints)
The cutting rule is the one that `transformers` puts into converted Llama 3 tokenizers (`TikTokenConverter`).
"""

import inspect
import json
import pathlib

import tokenizers
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter

OUT = pathlib.Path(__file__).parent.parent / "tests/golden/tokenizer_llama3"
RULE = inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default
CORPUS = [
    "The robot picks up the red cube and puts it into the blue bowl. It's done, isn't it? We'll see; they've said so.",
    "I'm sure you're right, he'd say. DON'T SHOUT, IT'S LATE, WE'LL SLEEP, I'VE SEEN IT, THEY'RE HERE.",
    "In 1995, 2023 and 2024 there were 100, 1000, 10000 and 123456 of them: 3.14159, 2.71828, 127.0.0.1.",
    "def main():\n    for i in range(10):\n        print(i, end='\\n')\n\n\nif __name__ == '__main__':\n\tmain()\r\n",
    "Über die Brücke gehen größere Mädchen; où est la façade du café? Съешь же ещё этих мягких булок.",
    "机器人把红色的方块放进蓝色的碗里。 ロボットは赤い立方体を持ち上げます。 😀😀 👍🏽 🤖🤖🤖 naïve coöperate",
] * 4
TEXTS = [
    "1", "12", "123", "1234", "12345678", "a1b22c333d4444", "3.14159 and 1,000,000", "It's 2024, isn't it? We'll see.",
    "DON'T SHOUT, IT'S LATE, I'VE WE'RE HE'D", "'s 't 're 've 'm 'll 'd 'x", "   three spaces   before and after   ",
    "tab\tand\t\ttabs", "one\ntwo\n\nthree\n\n\n  four\r\nfive\r\n\r\n", "  \n  \n\t\n x", "...!!!\n\n---\n", "$100 (50%) [#1] {x} @y",
    "Über größere Straßen, où, façade, Съешь ещё", "机器人 ロボット 로봇 روبوت", "😀 👍🏽 👩‍👩‍👧 🤖1234", "e\u0301 é ﬁ ½ ² Ⅷ ٣٤٥٦",
    "it'sthe they'rered we'lleft I'mmore he'd'done it'then can'these", "IT'STHE THEY'REED X'REEL", "no\u00a0break\u2003em\u200bzero", "gripper the gripper", "<|begin_of_text|>Hi<|end_of_text|>", "", " ", "\n", "x" * 40, "def main():\n    return 1\n",
]
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"

cut = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(RULE), behavior="isolated", invert=False),
     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
)
learner = Tokenizer(models.BPE())
learner.pre_tokenizer = cut
learner.train_from_iterator(
    CORPUS,
    trainers.BpeTrainer(vocab_size=560, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
)
learnt = json.loads(learner.to_str())["model"]
vocab = dict(sorted(learnt["vocab"].items(), key=lambda item: item[1]))
# A token that no merges lead to: only a rule that looks for whole pieces first finds it.
vocab["Ġgripper"] = len(vocab)
made = Tokenizer(models.BPE(vocab, [tuple(pair) for pair in learnt["merges"]], ignore_merges=True))
made.pre_tokenizer, made.decoder = cut, decoders.ByteLevel()
made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (BEGIN, END)])
made.post_processor = processors.TemplateProcessing(
    single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, made.token_to_id(BEGIN))]
)

OUT.mkdir(exist_ok=True)
made.save(str(OUT / "tokenizer.json"), pretty=False)
cases = []
for text in TEXTS:
    ids = made.encode(text, add_special_tokens=False).ids
    cases.append(
        {"text": text, "ids": ids, "framed": made.encode(text).ids,
         "decoded": made.decode(ids, skip_special_tokens=False), "decoded_skip_special": made.decode(ids)}
    )
(OUT / "golden.json").write_text(json.dumps({"encode": cases}, ensure_ascii=True, indent=0) + "\n")
(OUT / "README.txt").write_text(
    f"tokenizer_llama3: a byte-level BPE of {made.get_vocab_size()} tokens with Llama 3's way of cutting text and {len(TEXTS)} strings -> ids.\n"
    f"Made by scripts/golden_llama_bpe.py (tokenizers {tokenizers.__version__}, transformers {transformers.__version__}).\n"
    "Its rule is told from Qwen's, from GPT-2's and from one without whole tokens; llama.cpp (llama-cpp-python 0.3.36) gave the same ids.\n"
    "golden.json: encode[].text -> ids (add_special_tokens=false; special tokens in the text ARE recognised), framed (with them), decoded.\n"
)
print(tokenizers.__version__, transformers.__version__, made.get_vocab_size(), len(TEXTS))
