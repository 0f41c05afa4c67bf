"""The training step of the policy that ships, in PyTorch beside vela's own (train/examples/policy_step.rs).

Both begin with the same weights. First each makes the same steps on the same moments, noise and times: losses, norms of
gradients and the weights after them have to agree, or nothing is timed. Then they take turns, one step each, the same number of
threads; what vela does to put a batch together counts for it, PyTorch has its tensors already.

Usage: python torch_policy.py POLICY_STEP RUN.toml POLICY LESSONS [--rounds N] [--kinds tower,rest,all] [--compile]
Prints one JSON line for each kind of step and number of threads.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import tempfile
import time
import tomllib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

TOWER = "policy.vlm_with_expert.vlm.model.vision_model."
TEXT = "policy.vlm_with_expert.vlm.model.text_model."
EXPERT = "policy.vlm_with_expert.lm_expert."
CONNECTOR = "policy.vlm_with_expert.vlm.model.connector.modality_projection."
METRES = 0.1


class Policy:
    """The network as functions of its weights, which have the names of vela's checkpoint."""

    def __init__(self, weights, config):
        self.w = weights
        self.c = config

    def linear(self, name, x):
        return F.linear(x, self.w[name + ".weight"], self.w.get(name + ".bias"))

    def norm(self, name, x, how):
        weight = self.w[name + ".weight"]
        if "layer_norm" in how:
            return F.layer_norm(x, weight.shape, weight, self.w[name + ".bias"], how["layer_norm"]["eps"])
        return F.rms_norm(x, weight.shape, weight, how["rms_norm"]["eps"])

    def tower(self, frames):
        c = self.c["vision"]
        n, p, side = frames.shape[0], c["patch_size"], c["image_size"] // c["patch_size"]
        patches = frames.view(n, c["channels"], side, p, side, p).permute(0, 2, 4, 1, 3, 5).reshape(n, side * side, -1)
        kernel = self.w[TOWER + "embeddings.patch_embedding.weight"].flatten(1)
        x = F.linear(patches, kernel, self.w[TOWER + "embeddings.patch_embedding.bias"])
        x = x + self.w[TOWER + "embeddings.position_embedding.weight"]
        for i in range(c["layers"]):
            layer = f"{TOWER}encoder.layers.{i}."
            y = self.norm(layer + "layer_norm1", x, c["norm"])
            q, k, v = (split(self.linear(f"{layer}self_attn.{name}_proj", y), c["heads"]) for name in "qkv")
            x = x + self.linear(layer + "self_attn.out_proj", merge(F.scaled_dot_product_attention(q, k, v)))
            y = self.linear(layer + "mlp.fc1", self.norm(layer + "layer_norm2", x, c["norm"]))
            x = x + self.linear(layer + "mlp.fc2", F.gelu(y, approximate="tanh"))
        return self.norm(TOWER + "post_layernorm", x, c["norm"])

    def project(self, tokens):
        n, patches, width = tokens.shape
        s, side = self.c["projector"]["shuffle"], math.isqrt(patches)
        x = tokens.view(n, side // s, s, side // s, s * width).transpose(2, 3).reshape(n, patches // (s * s), -1)
        return self.linear(CONNECTOR + "fc2", F.gelu(self.linear(CONNECTOR + "fc1", x), approximate="tanh"))

    def qkv(self, layer, y, c, angles):
        q, k, v = (self.linear(f"{layer}self_attn.{name}_proj", y) for name in "qkv")
        return turn(split(q, c["heads"]), angles), turn(split(k, c["kv_heads"]), angles), split(v, c["kv_heads"])

    def after(self, layer, x, found, c):
        x = x + self.linear(layer + "self_attn.o_proj", merge(found))
        y = self.norm(layer + "post_attention_layernorm", x, c["norm"])
        y = F.silu(self.linear(layer + "mlp.gate_proj", y)) * self.linear(layer + "mlp.up_proj", y)
        return x + self.linear(layer + "mlp.down_proj", y)

    def prefix(self, tokens, lot):
        """Keys and values of every layer, what the last one reads, which positions are real, and how many show pictures."""
        c = self.c["decoder"]
        b, cameras = lot["frames"].shape[:2]
        seen = self.project(tokens) * self.c["image_scale"]
        scale = self.c["word_scale"]
        camera = (self.w["policy.camera_embedding"] * scale)[None, :, None]
        seen = (seen.view(b, cameras, -1, c["width"]) + camera).view(b, -1, c["width"])
        words = F.embedding(lot["words"], self.w[TEXT + "embed_tokens.weight"]) * scale
        state = self.linear("policy.state_proj", lot["state"])[:, None]
        x = torch.cat([seen, words, state], 1)
        real = torch.ones(b, seen.shape[1], dtype=torch.bool)
        valid = torch.cat([real, lot["word_valid"], real[:, :1]], 1)
        angles = rope(valid.cumsum(1) - 1, c["rope"])
        # Pictures and words see each other; the state, which comes last, sees all and is seen by nobody else.
        mask = valid[:, None, None].repeat(1, 1, valid.shape[1], 1)
        mask[:, :, :-1, -1] = False
        kept = []
        for i in range(c["layers"]):
            layer = f"{TEXT}layers.{i}."
            y = self.norm(layer + "input_layernorm", x, c["norm"])
            if i + 1 == c["layers"]:
                k, v = self.linear(layer + "self_attn.k_proj", y), self.linear(layer + "self_attn.v_proj", y)
                kept.append((turn(split(k, c["kv_heads"]), angles), split(v, c["kv_heads"])))
                break
            q, k, v = self.qkv(layer, y, c, angles)
            kept.append((k, v))
            x = self.after(layer, x, F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True), c)
        return kept, x, valid, seen.shape[1]

    def flow_loss(self, kept, valid, lot):
        c = self.c["expert"]["layers"]
        b, horizon, dims = lot["actions"].shape
        noise, times = lot["noise"], lot["times"]
        n = noise.shape[0]
        draws = n // b
        actions = lot["actions"].repeat_interleave(draws, 0)
        x = self.linear("policy.action_in_proj", actions + (noise - actions) * times[:, None, None])
        time_in = sines(times, c["width"], self.c["expert"]["time_periods"])[:, None].expand(n, horizon, c["width"])
        x = F.silu(self.linear("policy.action_time_mlp_in", torch.cat([x, time_in], 2)))
        x = self.linear("policy.action_time_mlp_out", x).view(b, draws * horizon, -1)
        at = torch.arange(draws * horizon)
        angles = rope(valid.sum(1, keepdim=True) + at % horizon, c["rope"])
        own = (at[:, None] // horizon == at // horizon).expand(b, 1, -1, -1)
        mask = torch.cat([valid[:, None, None].expand(-1, 1, len(at), -1), own], 3)
        for i in range(c["layers"]):
            layer = f"{EXPERT}layers.{i}."
            q, k, v = self.qkv(layer, self.norm(layer + "input_layernorm", x, c["norm"]), c, angles)
            k, v = torch.cat([kept[i][0], k], 2), torch.cat([kept[i][1], v], 2)
            x = self.after(layer, x, F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True), c)
        velocity = self.linear("policy.action_out_proj", self.norm(EXPERT + "norm", x, c["norm"]))
        return F.mse_loss(velocity.view(n, horizon, dims), noise - actions)

    def patch_loss(self, tokens, lot):
        named = F.cross_entropy(self.linear("auxiliary.patch", tokens).flatten(0, 1), lot["patches"])
        error = self.linear("auxiliary.offset", tokens) - lot["offsets"]
        return named + (error.square() * lot["offset_mask"]).mean()

    def grounding_loss(self, hidden, lot):
        truth, there = lot["grounding"], lot["positions"][:, None] / METRES
        logits = self.linear("auxiliary.grounding", hidden)
        named = F.binary_cross_entropy_with_logits(logits, truth, weight=truth * 7 + 1)
        error = self.linear("auxiliary.place", hidden) - there
        return named + 8 * (error.square() * truth.repeat_interleave(3, 2)).mean()

    def position_loss(self, hidden, lot):
        error = self.linear("auxiliary.position", hidden) - lot["positions"] / METRES
        return (error.square() * lot["position_mask"]).mean()

    def loss(self, lot, run, kind):
        frames = lot["frames"].flatten(0, 1)
        if kind == "tower":
            return self.patch_loss(self.tower(frames), lot)
        with torch.set_grad_enabled(kind == "all"):
            tokens = self.tower(frames)
        kept, hidden, valid, pictures = self.prefix(tokens, lot)
        total = self.flow_loss(kept, valid, lot)
        total = total + run["grounding_weight"] * self.grounding_loss(hidden[:, :pictures], lot)
        total = total + run["position_weight"] * self.position_loss(hidden[:, -1], lot)
        return total + run["patch_weight"] * self.patch_loss(tokens, lot) if kind == "all" else total


def split(x, heads):
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def merge(x):
    return x.transpose(1, 2).flatten(2)


def rope(positions, how):
    dim = how["rotary_dim"]
    frequencies = how["theta"] ** (-2 * torch.arange(dim // 2, dtype=torch.float64) / dim)
    angles = positions[:, None, :, None] * frequencies
    angles = torch.cat([angles, angles], 3)
    return angles.cos().float(), angles.sin().float()


def turn(x, angles):
    cos, sin = angles
    a, b = x.chunk(2, 3)
    return x * cos + torch.cat([-b, a], 3) * sin


def sines(times, width, periods):
    along = torch.arange(width // 2, dtype=torch.float64) / (max(width // 2, 2) - 1)
    angles = 2 * math.pi * times.double()[:, None] / (periods[0] * (periods[1] / periods[0]) ** along)
    return torch.cat([angles.sin(), angles.cos()], 1).float()


class Learner:
    """Weights, optimiser and averages, as train/src/learner.rs keeps them."""

    def __init__(self, state, config, run, kind, compiled):
        self.w = {n.removeprefix("weight."): t.requires_grad_() for n, t in state.items() if n.startswith("weight.")}
        self.average = [t.detach().clone() for t in self.w.values()]
        self.run, self.kind, self.steps = run, kind, 0
        policy = Policy(self.w, config)
        self.loss = torch.compile(policy.loss) if compiled else policy.loss
        groups = [{"params": [t for t in self.w.values() if t.dim() >= 2], "weight_decay": run["weight_decay"]},
                  {"params": [t for t in self.w.values() if t.dim() < 2], "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True)

    def step(self, lots, rate):
        """One step on a batch in one or several pieces of the same size; the loss and the gradient's norm before clipping."""
        self.optimiser.zero_grad()
        total = 0.0
        for lot in lots:
            loss = self.loss(lot, self.run, self.kind) / len(lots)
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.w.values(), self.run["clip_norm"], foreach=True)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.steps += 1
        keep = min(self.run["ema"], (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.w.values()), 1 - keep)
        return float(total), float(norm)


def lots(path):
    """The shards of one step, with whole numbers and flags as such."""
    found = {}
    for name, tensor in load_file(path).items():
        shard, name = name.split(".", 1)
        kind = {"words": torch.int64, "patches": torch.int64, "word_valid": torch.bool}.get(name, torch.float32)
        found.setdefault(int(shard), {})[name] = tensor.to(kind)
    return [found[shard] for shard in sorted(found)]


def whole(lots):
    """The shards as one batch; sentences are padded to the longest."""
    longest = max(lot["words"].shape[1] for lot in lots)
    pad = {"words", "word_valid"}
    padded = lambda name, t: F.pad(t, (0, longest - t.shape[1])) if name in pad else t
    return {name: torch.cat([padded(name, lot[name]) for lot in lots]) for name in lots[0]}


def agree(what, ours, theirs, within):
    off = abs(ours - theirs) / abs(theirs)
    if not off <= within:
        raise SystemExit(f"{what}: PyTorch {ours}, vela {theirs}: not the same step")
    return off


def changed(learner, start, end, out):
    """How far the weights of the two moved apart, as a share of how far they moved."""
    apart, moved = 0.0, 0.0
    for (name, weight), average in zip(learner.w.items(), learner.average):
        for kind, mine in (("weight", weight), ("average", average)):
            apart += (mine.detach() - end[f"{kind}.{name}"]).square().sum().item()
            moved += (start[f"{kind}.{name}"] - end[f"{kind}.{name}"]).square().sum().item()
    return math.sqrt(apart / moved)


def compare(options, kind, config, run):
    same = 3
    with tempfile.TemporaryDirectory() as out:
        out = pathlib.Path(out)
        words = [options.policy_step, options.run, options.policy, options.lessons, kind, out, same]
        vela = subprocess.Popen([str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        reports = [json.loads(vela.stdout.readline()) for _ in range(same)]
        vela.stdin.write("2\n")
        vela.stdin.flush()
        vela.stdout.readline()
        start, end = (load_file(out / f"{name}.safetensors") for name in ("start", "end"))
        shards = [lots(out / f"lots.{k}.safetensors") for k in range(same)]
        batches = [whole(all) for all in shards]
        learner = Learner({name: tensor.clone() for name, tensor in start.items()}, config, run, kind, options.compile)
        loss_off = norm_off = 0.0
        for report, batch in zip(reports, batches):
            loss, norm = learner.step([batch], report["learning_rate"])
            loss_off = max(loss_off, agree("loss", loss, report["loss"], 1e-4))
            norm_off = max(norm_off, agree("gradient's norm", norm, report["gradient_norm"], 1e-3))
        weights_off = changed(learner, start, end, out)
        agree("change of the weights", 1 + weights_off, 1, 1e-2)
        rate = reports[-1]["learning_rate"]

        def theirs(k):
            vela.stdin.write(f"{torch.get_num_threads()}\n")
            vela.stdin.flush()
            return json.loads(vela.stdout.readline())["step_ms"]

        def timed(pieces):
            begun = time.perf_counter()
            learner.step(pieces, rate)
            return 1e3 * (time.perf_counter() - begun)

        ways = {"vela": theirs, "whole": lambda k: timed([batches[k % same]]), "shards": lambda k: timed(shards[k % same])}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            ms = {name: [] for name in ways}
            for k in range(options.rounds + 1):
                for name, way in ways.items():
                    ms[name].append(way(k))
            # The first round warms up.
            median = {name: statistics.median(all[1:]) for name, all in ms.items()}
            best = min(("whole", "shards"), key=median.get)
            print(json.dumps({
                "learns": kind, "threads": threads, "moments": run["batch"], "loss": reports[0]["loss"],
                "loss_off": float(f"{loss_off:.1e}"), "norm_off": float(f"{norm_off:.1e}"),
                "weights_off": float(f"{weights_off:.1e}"),
                **{f"{name}_ms": round(value) for name, value in median.items()},
                "vela_moments_per_sec": round(1e3 * run["batch"] / median["vela"], 1),
                "torch_moments_per_sec": round(1e3 * run["batch"] / median[best], 1),
                "times": round(median[best] / median["vela"], 2),
            }), flush=True)
        vela.stdin.close()
        vela.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("policy_step", "run", "policy", "lessons"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default="tower,rest,all")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    config = json.loads((options.policy / "config.json").read_text())
    run = tomllib.loads(options.run.read_text())
    for kind in options.kinds.split(","):
        compare(options, kind, config, run)


if __name__ == "__main__":
    main()
