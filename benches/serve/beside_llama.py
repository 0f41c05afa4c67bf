"""`vela serve` and llama.cpp's `llama-server`, one text model, as many clients at once, in turns: tokens per second.

Usage: python benches/serve/beside_llama.py MODEL.gguf LLAMA [VELA] [--clients 1,4,8] [--seconds 20] [--rounds 3]
       [--threads 2] [--json FILE]      (standard library only; not part of CI)
LLAMA is a `llama-server` binary, or a Python in which `llama_cpp.server` can be imported (which answers one request
at a time). Both are up all the time and asked in turns, each by as many clients as `llama-server` has slots; a client
asks again as soon as it has its answer. Questions differ, so that no prefix cache answers for the model; answers are greedy
and of up to 128 tokens. Tokens are counted by each server's own `usage`. The figure is the median over the rounds.
"""

import argparse
import http.client
import json
import pathlib
import socket
import statistics
import subprocess
import threading
import time

TOKENS = 128
WORDS = "river lamp stone garden window music paper winter engine market bridge planet forest letter silver".split()


def question(number):
    """A question that was not asked before, of about forty tokens."""
    a, b, c = WORDS[number % 15], WORDS[number // 15 % 15], WORDS[number // 225 % 15]
    text = f"Question {number}. Write a long story about a {a}, a {b} and a {c}; say in detail what becomes of each."
    return {"messages": [{"role": "user", "content": text}], "max_tokens": TOKENS, "temperature": 0}


def free_port():
    """A port that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start_llama(binary, model, slots, threads):
    """llama.cpp's server, and where it is."""
    port = free_port()
    if pathlib.Path(binary).name.startswith("python"):
        own = ["-m", "llama_cpp.server", "--model", model, "--n_ctx", 1024]
        own += ["--n_threads", threads, "--n_threads_batch", threads]
    else:
        own = ["-m", model, "-t", threads, "-tb", threads, "-c", 1024 * slots, "-np", slots]
    command = [binary, *own, "--host", "127.0.0.1", "--port", port]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([str(word) for word in command], **quiet), f"127.0.0.1:{port}"


def start_vela(binary, model, slots, threads):
    """vela's server, and where it is."""
    own = ["--model", model, "--threads", threads, "--context", 1024, "--max-running", slots]
    command = [str(word) for word in [binary, "serve", "--port", 0, *own]]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return server, server.stdout.readline().split("http://")[1].strip()


def wait(at):
    """Until it answers a question."""
    for _ in range(600):
        try:
            ask(http.client.HTTPConnection(at, timeout=60), {**question(0), "max_tokens": 4})
            return
        except (OSError, RuntimeError, http.client.HTTPException, ValueError):
            time.sleep(0.2)
    raise RuntimeError(f"{at} does not answer")


def ask(connection, body):
    """The tokens of an answer."""
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise RuntimeError(text)
    return json.loads(text)["usage"]["completion_tokens"]


def speed(at, clients, seconds, first):
    """Tokens per second: all answers that began within the time, over the time until the last of them was there."""
    counted, numbers, lock, start = [], iter(range(first, first + 100_000)), threading.Lock(), time.monotonic()

    def one():
        connection = http.client.HTTPConnection(at, timeout=300)
        while time.monotonic() < start + seconds:
            with lock:
                number = next(numbers)
            counted.append(ask(connection, question(number)))

    threads = [threading.Thread(target=one) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counted) / (time.monotonic() - start)


def main():
    """Runs it all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("llama")
    parser.add_argument("vela", nargs="?", default="target/release/vela")
    parser.add_argument("--clients", default="1,4,8")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    args = parser.parse_args()
    told, number = [], 1
    for clients in [int(count) for count in args.clients.split(",")]:
        servers = {
            "vela": start_vela(args.vela, args.model, clients, args.threads),
            "llama": start_llama(args.llama, args.model, clients, args.threads),
        }
        speeds = {name: [] for name in servers}
        try:
            for _, at in servers.values():
                wait(at)
            for turn in range(args.rounds):
                for name in list(servers) if turn % 2 == 0 else list(servers)[::-1]:
                    speeds[name].append(speed(servers[name][1], clients, args.seconds, number))
                    number += 1000
        finally:
            for server, _ in servers.values():
                server.terminate()
                server.wait(timeout=60)
        vela, llama = (statistics.median(speeds[name]) for name in ("vela", "llama"))
        told.append({"clients": clients, "vela": speeds["vela"], "llama": speeds["llama"], "ratio": vela / llama})
        said = f"{clients:2} clients: vela {vela:.1f} tokens/s, llama.cpp {llama:.1f}, ratio {vela / llama:.2f}"
        print(said, flush=True)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
