"""`schemathesis` against `vela serve` and its OpenAPI document, and clients that misbehave: no 5xx, no hang.

Usage: python tests/peers/schemas.py [VELA] [MODEL] [EXAMPLES]      (needs schemathesis; not part of CI)
Statuses and schemas that the document does not name, answers that take over 30 s and every 5xx are failures.
Afterwards the server answers a plain question and ends when it is told to.
"""

import http.client
import json
import pathlib
import subprocess
import sys

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def main():
    """Runs it all."""
    vela = sys.argv[1] if len(sys.argv) > 1 else "target/release/vela"
    model = ["--model", sys.argv[2]] if len(sys.argv) > 2 and sys.argv[2] else []
    examples = sys.argv[3] if len(sys.argv) > 3 else "100"
    server = subprocess.Popen([vela, "serve", "--port", "0", *model], stdout=subprocess.PIPE, text=True)
    url = server.stdout.readline().split()[-1]
    try:
        tool = str(pathlib.Path(sys.executable).with_name("schemathesis"))
        command = [tool, "run", f"{url}/openapi.json", "--checks", CHECKS, "--max-examples", examples]
        command += ["--request-timeout", "30", "--max-response-time", "30", "--seed", "1", "--continue-on-failure"]
        found = subprocess.run(command, check=False).returncode
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        body = {"messages": [{"role": "user", "content": "still there?"}], "max_tokens": 4}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
    finally:
        server.terminate()
        assert server.wait(timeout=60) == 0
    sys.exit(found)


if __name__ == "__main__":
    main()
