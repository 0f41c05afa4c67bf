"""Clients at once against `vela serve`, text and pictures mixed: failures, throughput, latencies, memory.

Usage: python tests/peers/load.py SECONDS [VELA] [MODEL]      (standard library only; not part of CI)
Every second question is about one of eight pictures, half of the answers are streamed. Exit status 1 if a request failed.
"""

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
    if scenes and rng.random() < 0.5:
        shown = {"type": "image_url", "image_url": {"url": rng.choice(scenes)}}
        content = [shown, {"type": "text", "text": content}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 32, "seed": rng.randrange(1 << 30)}
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
    return 1e3 * sorted(values)[min(int(q * len(values)), len(values) - 1)]


def main():
    """Runs it all."""
    seconds, vela = float(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "target/release/vela"
    model = ["--model", sys.argv[3]] if len(sys.argv) > 3 else []
    server = subprocess.Popen([vela, "serve", "--port", "0", *model], stdout=subprocess.PIPE, text=True)
    at, failed = server.stdout.readline().split("http://")[1].strip(), 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            scenes = pictures(vela, folder)
        for count in CLIENTS:
            told, before, end = [], memory_mib(server), time.monotonic() + seconds
            threads = [threading.Thread(target=client, args=(at, scenes, k, end, told)) for k in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            wrong = [one for one in told if isinstance(one, Exception)]
            right = [one for one in told if not isinstance(one, Exception)]
            whole, first = [one[0] for one in right], [one[1] for one in right]
            print(
                f"{count:2} clients: {len(right)} answers, {len(wrong)} failed, {len(right) / seconds:.1f} answers/s, "
                f"{sum(one[2] for one in right) / seconds:.0f} tokens/s; whole p50 {quantile(whole, 0.5):.0f} ms, p99 "
                f"{quantile(whole, 0.99):.0f} ms; first byte p99 {quantile(first, 0.99):.0f} ms; "
                f"{before:.0f} to {memory_mib(server):.0f} MiB",
                flush=True,
            )
            failed += len(wrong)
            if wrong:
                print("  ", wrong[0])
    finally:
        server.terminate()
        server.wait(timeout=60)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
