"""PyTorch, ONNX Runtime and OpenVINO on the folders of shapes.py: prints one JSON line.

Usage: python peers.py torch|onnxruntime|openvino FOLDER [--threads N] [--runs N]
Of a tower: {"tower_ms": [...], "cpu_ms": ..., "max_abs_over_spread": ...} against golden.safetensors. Of a VLM (torch,
openvino): {"ttft_ms": [...]}, one picture of noise and a question to the first token, without preprocessing.
"""

import argparse
import json
import os
import pathlib
import time

os.environ["HF_HUB_OFFLINE"] = "1"
parser = argparse.ArgumentParser()
parser.add_argument("engine", choices=["torch", "onnxruntime", "openvino"])
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--runs", type=int, default=3)
args = parser.parse_args()


def timed(run):
    run()
    times, busy = [], time.process_time()
    for _ in range(args.runs):
        start = time.perf_counter()
        result = run()
        times.append((time.perf_counter() - start) * 1e3)
    return times, (time.process_time() - busy) * 1e3 / args.runs, result


def tower():
    import numpy as np
    from safetensors.numpy import load_file

    golden = load_file(args.folder / "golden.safetensors")
    pixels, want = golden["in.pixel_values"], golden["out.last_hidden_state"]
    if args.engine == "torch":
        import torch
        from transformers import SiglipVisionModel

        torch.set_num_threads(args.threads)
        model, pixels = SiglipVisionModel.from_pretrained(args.folder).eval(), torch.from_numpy(pixels)
        with torch.inference_mode():
            times, busy, got = timed(lambda: model(pixels).last_hidden_state.numpy())
    elif args.engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        session = onnxruntime.InferenceSession(args.folder / "tower.onnx", options, providers=["CPUExecutionProvider"])
        times, busy, got = timed(lambda: session.run(None, {"pixels": pixels})[0])
    else:
        import openvino

        options = {"INFERENCE_NUM_THREADS": args.threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        model = openvino.Core().compile_model(args.folder / "tower.onnx", "CPU", options)
        times, busy, got = timed(lambda: model([pixels])[0])
    return {"tower_ms": times, "cpu_ms": busy, "max_abs_over_spread": float(np.abs(got - want).max() / want.std())}


def first_token_in_openvino(model, pixels, ids):
    """The first token's logits as one graph of fixed shape: OpenVINO has no generation of its own, and no cache is kept."""
    import numpy as np
    import openvino
    import torch

    class First(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixels, ids):
            # Layer by layer: what makes the masks cannot be traced.
            parts, tower = self.model.model, self.model.model.vision_model
            side = pixels.shape[-1] // tower.patch_size
            seen = tower.embeddings(pixel_values=pixels, patch_attention_mask=torch.ones((1, side, side), dtype=torch.bool))
            for layer in tower.encoder.layers:
                seen = layer(seen, None)
            seen = parts.connector(tower.post_layernorm(seen))
            words = parts.text_model.get_input_embeddings()(ids)
            words = words.masked_scatter((ids == model.config.image_token_id).unsqueeze(-1), seen)
            ahead = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)[None, None]
            hidden = parts.text_model(inputs_embeds=words, attention_mask=ahead, use_cache=False).last_hidden_state
            return self.model.lm_head(hidden[:, -1])

    model.set_attn_implementation("sdpa")
    first = First().eval()
    with torch.inference_mode():
        want = first(pixels[0], ids).numpy()
        full = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits[:, -1].numpy()
    assert np.abs(want - full).max() < 1e-4 * full.std(), "the graph is not the model"
    with torch.no_grad():
        graph = openvino.convert_model(first, example_input=(pixels[0], ids), input=[tuple(pixels[0].shape), tuple(ids.shape)])
    options = {"INFERENCE_NUM_THREADS": args.threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(graph, "CPU", options)
    times, _, got = timed(lambda: compiled([pixels[0].numpy(), ids.numpy()])[0])
    assert np.abs(got - full).max() < 1e-3 * full.std(), "OpenVINO gives something else"
    return times


def vlm():
    import torch
    from tokenizers import Tokenizer
    from transformers import SmolVLMForConditionalGeneration

    torch.set_num_threads(args.threads)
    model = SmolVLMForConditionalGeneration.from_pretrained(args.folder, dtype=torch.float32).eval()
    image = "<fake_token_around_image><global-img>" + "<image>" * 64 + "<fake_token_around_image>"
    prompt = f"<|im_start|>User:{image}What is in the picture?<end_of_utterance>\nAssistant:"
    ids = torch.tensor([Tokenizer.from_file(str(args.folder / "tokenizer.json")).encode(prompt, add_special_tokens=False).ids])
    pixels = torch.rand(1, 1, 3, 512, 512) * 2 - 1
    if args.engine == "openvino":
        return {"ttft_ms": first_token_in_openvino(model, pixels, ids), "prompt_tokens": ids.shape[1]}
    options = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, max_new_tokens=1, do_sample=False)
    with torch.inference_mode():
        times, busy, _ = timed(lambda: model.generate(**options))
    return {"ttft_ms": times, "cpu_ms": busy, "prompt_tokens": ids.shape[1]}


print(json.dumps(tower() if (args.folder / "golden.safetensors").exists() else vlm()))
