"""The official `openai` client against `vela serve`: chat, pictures, streams, forms, tools, completions, errors.

Usage: python tests/peers/openai_client.py MODEL [VELA]      (needs openai, pydantic and pillow; not part of CI)
MODEL is a folder of a VLM with a chat template, or a text model's (what needs pictures is then left out).
"""

import base64
import io
import json
import pathlib
import subprocess
import sys
import tempfile

import openai
import pydantic
from PIL import Image, ImageDraw

KEY = "peer"


def picture(colour):
    """A coloured square on white, as a data URL."""
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).rectangle((24, 24, 72, 72), fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def start(vela, model):
    """The server, on a free port."""
    with tempfile.TemporaryDirectory() as folder:
        keys = pathlib.Path(folder) / "keys"
        keys.write_text(KEY + "\n")
        command = [vela, "serve", "--model", model, "--port", "0", "--api-key-file", str(keys)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return server, server.stdout.readline().split()[-1]


class Square(pydantic.BaseModel):
    """What the schema asks for."""

    colour: str = pydantic.Field(pattern="^(red|green|blue)$")
    count: int = pydantic.Field(ge=0, le=9)


LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["table", "floor"]}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}


def talk(client, name):
    """What every model can do."""
    ask = [{"role": "user", "content": "What is a robot?"}]
    common = {"model": name, "messages": ask, "max_tokens": 24, "seed": 5}
    whole = client.chat.completions.create(**common, n=2, temperature=0.8, logprobs=True, top_logprobs=3)
    assert [choice.index for choice in whole.choices] == [0, 1]
    tokens = whole.choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)
    text, usage = "", None
    stream = client.chat.completions.create(
        **common, temperature=0.8, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        usage = chunk.usage or usage
    # The second time all but the last token of the prompt is in the cache, and attention sums one row in another order than many.
    # In few bits that last digit can flip how a product's input is rounded, and with it what is drawn.
    same = text == whole.choices[0].message.content
    assert same or name.lower().endswith(".gguf"), (text, whole.choices[0].message.content)
    assert usage.prompt_tokens == whole.usage.prompt_tokens and usage.completion_tokens > 0
    print(f"chat: {text!r}")
    parsed = client.chat.completions.parse(model=name, messages=ask, response_format=Square, max_tokens=200, seed=1)
    assert isinstance(parsed.choices[0].message.parsed, Square)
    print(f"schema: {parsed.choices[0].message.parsed}")
    stop = text[3:5] or "x"
    ended = client.chat.completions.create(**common, temperature=0, stop=[stop])
    assert stop not in ended.choices[0].message.content
    gone = client.completions.create(model=name, prompt=["Once", "A robot"], max_tokens=8, logprobs=1, temperature=0)
    assert len(gone.choices) == 2 and len(gone.choices[0].logprobs.tokens) > 0
    print(f"completion: {gone.choices[1].text!r}")
    if client.models.retrieve(name).tools:
        called = client.chat.completions.create(**{**common, "max_tokens": 200}, tools=[LOOK], tool_choice="required")
        call = called.choices[0].message.tool_calls[0].function
        assert call.name == "look" and json.loads(call.arguments)["place"] in ("table", "floor")
        print(f"tool: {call}")


def look(client, name):
    """What models with eyes can do."""
    shown = {"type": "image_url", "image_url": {"url": picture("red")}}
    first = {"role": "user", "content": [shown, {"type": "text", "text": "what colour is it?"}]}
    ours = {"vela": {"attention": True}}
    answer = client.chat.completions.create(
        model=name, messages=[first], max_tokens=16, temperature=0, extra_body=ours
    )
    said, (seen,) = answer.choices[0].message, answer.choices[0].vela["attention"]
    assert len(seen["weights"]) == seen["rows"] * seen["columns"] and 0 < sum(seen["weights"]) <= seen["share"] + 1e-3
    turns = [first, {"role": "assistant", "content": said.content}, {"role": "user", "content": "how many are there?"}]
    again = client.chat.completions.create(model=name, messages=turns, max_tokens=16, temperature=0)
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert cached > 0, "the second question reads the picture again"
    print(f"picture: {said.content!r}, then {again.choices[0].message.content!r} with {cached} tokens known")


def fail(client, name):
    """Mistakes come as the client's own exceptions."""
    ask = [{"role": "user", "content": "x"}]
    for expected, change in [
        (openai.BadRequestError, {"temperature": 9}),
        (openai.NotFoundError, {"model": "another"}),
        (openai.BadRequestError, {"messages": []}),
    ]:
        try:
            client.chat.completions.create(**{"model": name, "messages": ask, **change})
            raise AssertionError(f"{change} was taken")
        except expected as error:
            assert error.body["message"], error
    try:
        client.with_options(api_key="wrong").models.list()
        raise AssertionError("a wrong key was taken")
    except openai.AuthenticationError:
        pass
    with client.chat.completions.create(model=name, messages=ask, max_tokens=4000, stream=True, temperature=1) as left:
        next(iter(left))
    print("errors: as they should be")


def main():
    """Runs it all."""
    model, vela = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "target/release/vela"
    server, url = start(vela, model)
    try:
        client = openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0, timeout=120)
        served = client.models.list().data[0]
        talk(client, served.id)
        if "image" in served.input_modalities:
            look(client, served.id)
        fail(client, served.id)
    finally:
        server.terminate()
        assert server.wait(timeout=60) == 0
    print("all well")


if __name__ == "__main__":
    main()
