"""vela's simulator beside MuJoCo: physics steps and rendered frames per second, as ratios measured in one run.

    cargo build --release -p vela-sim --examples
    pip install mujoco            # into an environment of its own
    MUJOCO_GL=egl python benches/mujoco/side_by_side.py      # or osmesa; both render on the CPU here

Same arm, bodies, masses and time step (scene.xml beside this file; sim/examples/physics_bench.rs), same picture
size, one thread each, in turn, medians over the rounds. Nothing else should run meanwhile.

What is not the same: MuJoCo computes in f64 and iterates its solver to convergence (its defaults), we compute in f32
with a fixed number of solver iterations, and objects at rest may sleep; MuJoCo draws through OpenGL (Mesa on the CPU, 4x multisampling, a shadow map),
we cast rays; our rendered scenes are the tasks' own, 23 solids on average, MuJoCo's is the scene of the physics bench.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import time

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa's software renderer: one thread, like ours

import mujoco

HERE = pathlib.Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "target" / "release" / "examples"
STEPS_PER_TICK = 4
TICKS = 3000


def targets(tick):
    """The joint targets of physics_bench.rs at a control tick, rad."""
    t = tick / 30.0
    lower = min(t / 3.0, 1.0)
    return [
        0.6 * math.sin(1.1 * t),
        -0.6 + 1.2 * lower,
        0.6 - 0.3 * lower,
        1.2 - 0.1 * lower,
        0.5 * math.sin(0.7 * t),
        0.5 + 0.4 * math.sin(2.0 * t),
    ]


def begin(model):
    data = mujoco.MjData(model)
    data.qpos[:6] = [0.0, -0.6, 0.6, 1.2, 0.0, 0.6]
    mujoco.mj_forward(model, data)
    return data


def physics(model):
    """Physics steps per second over the same motion."""
    data = begin(model)
    seconds = 0.0
    for tick in range(TICKS):
        data.ctrl[:] = targets(tick)
        start = time.perf_counter()
        mujoco.mj_step(model, data, nstep=STEPS_PER_TICK)
        seconds += time.perf_counter() - start
    return TICKS * STEPS_PER_TICK / seconds


def renderers(model, height, width):
    """MuJoCo as it comes, with a shadow map of a sixteenth of its size, and without shadows."""
    plain = mujoco.Renderer(model, height=height, width=width)
    model.vis.quality.shadowsize //= 4
    small = mujoco.Renderer(model, height=height, width=width)
    model.vis.quality.shadowsize *= 4
    none = mujoco.Renderer(model, height=height, width=width)
    return {"": (plain, 1), ", small shadow map": (small, 1), ", no shadows": (none, 0)}


def frames(model, renderer, shadows, camera, count=60):
    """Rendered frames per second, the picture read back."""
    data = begin(model)
    start = 0.0
    for turn in range(count + 1):
        if turn == 1:  # the first one warms up
            start = time.perf_counter()
        renderer.update_scene(data, camera)
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        renderer.render()
    return count / (time.perf_counter() - start)


def ours(example, *words):
    out = subprocess.run([EXAMPLES / example, *words], check=True, capture_output=True, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--picture", help="write what MuJoCo's front camera sees as a PPM file, and stop")
    args = parser.parse_args()
    model = mujoco.MjModel.from_xml_path(str(HERE / "scene.xml"))
    kinds = renderers(model, args.height, args.width)
    if args.picture:
        renderer, _ = kinds[""]
        renderer.update_scene(begin(model), "front")
        pixels = renderer.render()
        header = f"P6 {args.width} {args.height} 255\n".encode()
        pathlib.Path(args.picture).write_bytes(header + pixels.tobytes())
        return
    rows = {"physics steps/s": ([], [])}
    rows |= {f"{camera} frames/s{kind}": ([], []) for camera in ("front", "wrist") for kind in kinds}
    for _ in range(args.rounds):
        bench = ours("physics_bench")
        if abs(bench["step_hz"] - 1.0 / model.opt.timestep) > 0.01:
            raise SystemExit(f"time steps differ: ours {bench['step_hz']} Hz, MuJoCo {1.0 / model.opt.timestep} Hz")
        rows["physics steps/s"][0].append(bench["steps_per_sec"])
        rows["physics steps/s"][1].append(physics(model))
        cameras = ours("render_bench", str(args.width), str(args.height))["cameras"]
        for camera in ("front", "wrist"):
            for kind, (renderer, shadows) in kinds.items():
                rows[f"{camera} frames/s{kind}"][0].append(cameras[camera]["fps"])
                rows[f"{camera} frames/s{kind}"][1].append(frames(model, renderer, shadows, camera))
    table = {}
    for name, (mine, theirs) in rows.items():
        mine, theirs = statistics.median(mine), statistics.median(theirs)
        table[name] = {"vela": round(mine, 1), "mujoco": round(theirs, 1), "ratio": round(mine / theirs, 2)}
    print(json.dumps({"mujoco": mujoco.__version__, "gl": os.environ["MUJOCO_GL"],
                      "size": [args.width, args.height], "rounds": args.rounds, **table}, indent=1))


if __name__ == "__main__":
    main()
