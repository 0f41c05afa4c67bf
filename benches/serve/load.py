"""Clients at once against `vela serve`, text and pictures mixed: failures, throughput, latencies, memory over time.

Usage: python benches/serve/load.py SECONDS [VELA] [MODEL] [--json FILE]      (standard library only; not part of CI)
1, 4 and 16 clients ask for SECONDS each (300 for the figures in the documents). Every second question is about one of
eight pictures, half of the answers are streamed, one question about a picture in eight wants the attention too.
Exit status 1 if a request failed.
"""

import argparse
import base64
import http.client
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time

CLIENTS = (1, 4, 16)
QUESTIONS = ["what is on the table?", "how many cubes are there?", "is there a red cube?", "what colour is the ball?"]


def pictures(vela, folder):
    """Eight scenes of the simulator, as data URLs."""
    made = []
    for seed in range(8):
        path = pathlib.Path(folder) / f"{seed}.png"
        command = [vela, "sim", "--snapshot", str(path), "--seed", str(seed)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        made.append("data:image/png;base64," + base64.b64encode(path.read_bytes()).decode())
    return made


def question(rng, scenes):
    """One request's body."""
    content = rng.choice(QUESTIONS)
    body = {"max_tokens": 32, "seed": rng.randrange(1 << 30)}
    if scenes and rng.random() < 0.5:
        shown = {"type": "image_url", "image_url": {"url": rng.choice(scenes)}}
        content = [shown, {"type": "text", "text": content}]
        if rng.random() < 0.125:
            body["vela"] = {"attention": True}
    body["messages"] = [{"role": "user", "content": content}]
    if rng.random() < 0.5:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def ask(connection, body):
    """Sends one request; gives the tokens of its answer and the seconds to its first byte."""
    start = time.monotonic()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    first = answer.read(1)
    to_first = time.monotonic() - start
    text = (first + answer.read()).decode()
    if answer.status != 200:
        raise RuntimeError(text)
    if not body.get("stream"):
        return json.loads(text)["usage"]["completion_tokens"], to_first
    events = text.strip().split("\n\n")
    if events[-1] != "data: [DONE]":
        raise RuntimeError(events[-1])
    return json.loads(events[-2][6:])["usage"]["completion_tokens"], to_first


def client(at, scenes, seed, end, told):
    """Asks until the time is over."""
    rng, connection = random.Random(seed), http.client.HTTPConnection(at, timeout=60)
    while time.monotonic() < end:
        start = time.monotonic()
        try:
            tokens, to_first = ask(connection, question(rng, scenes))
            told.append((time.monotonic() - start, to_first, tokens))
        except (RuntimeError, OSError, http.client.HTTPException) as error:
            told.append(error)
            connection.close()


def memory_mib(process):
    """Resident memory."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def quantile(values, q):
    """The value below which the fraction q lies, in milliseconds."""
    return 1e3 * sorted(values)[min(int(q * len(values)), len(values) - 1)] if values else float("nan")


def run(server, at, scenes, count, seconds):
    """One phase: what its clients saw, and the server's memory at eleven moments."""
    told, memory, start = [], [memory_mib(server)], time.monotonic()
    asks = [(at, scenes, seed, start + seconds, told) for seed in range(count)]
    threads = [threading.Thread(target=client, args=arguments) for arguments in asks]
    for thread in threads:
        thread.start()
    for tenth in range(1, 11):
        time.sleep(max(0.0, start + seconds * tenth / 10 - time.monotonic()))
        memory.append(memory_mib(server))
    for thread in threads:
        thread.join()
    return told, [round(mib, 1) for mib in memory]


def summary(count, seconds, told, memory):
    """What a phase comes to."""
    right = [one for one in told if not isinstance(one, Exception)]
    whole, first = [one[0] for one in right], [one[1] for one in right]
    return {
        "clients": count,
        "answers": len(right),
        "failed": len(told) - len(right),
        "answers_per_s": round(len(right) / seconds, 2),
        "tokens_per_s": round(sum(one[2] for one in right) / seconds, 1),
        "whole_ms": {"p50": round(quantile(whole, 0.5), 1), "p99": round(quantile(whole, 0.99), 1)},
        "first_byte_ms": {"p50": round(quantile(first, 0.5), 1), "p99": round(quantile(first, 0.99), 1)},
        "rss_mib": memory,
    }


def main():
    """Runs it all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float)
    parser.add_argument("vela", nargs="?", default="target/release/vela")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--json")
    args = parser.parse_args()
    model, phases = ["--model", args.model] if args.model else [], []
    server = subprocess.Popen([args.vela, "serve", "--port", "0", *model], stdout=subprocess.PIPE, text=True)
    at = server.stdout.readline().split("http://")[1].strip()
    try:
        scenes = []
        if not args.model:
            with tempfile.TemporaryDirectory() as folder:
                scenes = pictures(args.vela, folder)
        for count in CLIENTS:
            told, memory = run(server, at, scenes, count, args.seconds)
            phase = summary(count, args.seconds, told, memory)
            phases.append(phase)
            whole, first = phase["whole_ms"], phase["first_byte_ms"]
            print(
                f"{count:2} clients: {phase['answers']} answers, {phase['failed']} failed,"
                f" {phase['answers_per_s']} answers/s, {phase['tokens_per_s']} tokens/s;"
                f" whole p50 {whole['p50']} ms, p99 {whole['p99']} ms; first byte p50 {first['p50']} ms,"
                f" p99 {first['p99']} ms; MiB over time {' '.join(f'{mib:.0f}' for mib in memory)}",
                flush=True,
            )
            for error in [one for one in told if isinstance(one, Exception)][:3]:
                print("  ", repr(error))
    finally:
        server.terminate()
        server.wait(timeout=60)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(phases, indent=1) + "\n")
    sys.exit(1 if any(phase["failed"] for phase in phases) else 0)


if __name__ == "__main__":
    main()
