"""The server as the real openai client sees it, over a socket."""

import asyncio
import json
import socket
import threading
import time

import openai
import pytest
import urllib3
import uvicorn
from tiny import model_of, random_params, tiny_config

from teukenjax.data.prepare import SAMPLE
from teukenjax.data.tokenizer import train_tokenizer
from teukenjax.errors import UserError
from teukenjax.infer import Generator, Sampling
from teukenjax.serve import listen, make_app

QUESTION = [{"role": "user", "content": "Wie geht es?"}]


@pytest.fixture(scope="module")
def generator():
    text = (SAMPLE / "de.txt").read_text(encoding="utf-8")
    tokenizer = train_tokenizer([text], vocab_size=900)
    config = tiny_config(vocab_size=900, context=512, layers=1)
    return Generator(model_of(config), random_params(config), tokenizer)


@pytest.fixture(scope="module")
def address(generator):
    """Host and port of a server in a thread; one request may wait."""
    app = make_app(generator, name="tiny", queue=1, language="de")
    with listen("127.0.0.1", 0) as listening:
        config = uvicorn.Config(app, log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield "{}:{}".format(*listening.getsockname())
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client(address):
    url = f"http://{address}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def post(address: str, path: str, body: bytes, **headers) -> tuple[int, dict]:
    with urllib3.PoolManager() as pool:
        answer = pool.request("POST", f"http://{address}{path}", body=body, headers=headers)
        return answer.status, json.loads(answer.data)


def test_a_completion_is_what_the_generator_writes(client, generator):
    greedy = Sampling(temperature=0.0)
    answer = client.completions.create(
        model="tiny", prompt="Die Bahn", max_tokens=6, temperature=0.0
    )
    assert answer.choices[0].text == generator("Die Bahn", tokens=6, sampling=greedy)
    assert answer.choices[0].finish_reason == "length"
    ids = generator.prompt_ids("Die Bahn")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 6)
    again = client.completions.create(model="tiny", prompt=ids, max_tokens=6, temperature=0.0)
    assert again.choices[0].text == answer.choices[0].text


def test_what_is_null_is_at_its_default(client):
    ask = {"model": "tiny", "prompt": "Die Bahn", "max_tokens": 6, "seed": 0}
    plain = client.post("/completions", cast_to=dict, body=ask)
    nulls = dict.fromkeys(("temperature", "top_p", "stream", "n", "stop", "logprobs"))
    nothing = {"frequency_penalty": 0.0, "presence_penalty": 0, "echo": False, "best_of": 1}
    answer = client.post("/completions", cast_to=dict, body=ask | nulls | nothing)
    assert answer["choices"] == plain["choices"]
    alone = client.post("/completions", cast_to=dict, body=ask | {"prompt": ["Die Bahn"]})
    assert alone["choices"] == plain["choices"]


def test_without_a_seed_an_answer_can_be_asked_for_again(client):
    ask = {"model": "tiny", "prompt": "Die Bahn", "max_tokens": 30, "temperature": 1.0}
    assert len({client.completions.create(**ask).choices[0].text for _ in range(3)}) > 1
    same = [client.completions.create(**ask, seed=s).choices[0].text for s in (7, 7 - 2**32)]
    assert same[0] == same[1]


def test_a_streamed_chat_is_the_whole_one_in_pieces(client):
    ask = {"model": "tiny", "messages": QUESTION, "seed": 7, "max_tokens": 12}
    whole = client.chat.completions.create(**ask)
    chunks = list(
        client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert whole.choices[0].message.role == "assistant"
    assert len(pieces) > 3
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"


def test_the_language_and_the_seed_change_the_answer(client):
    def ask(**options):
        answer = client.chat.completions.create(
            model="tiny", messages=QUESTION, max_tokens=12, **({"seed": 0} | options)
        )
        return answer.choices[0].message.content, answer.usage.prompt_tokens

    german = ask()
    assert ask(extra_body={"language": "de"}) == german
    swedish = ask(extra_body={"chat_template_kwargs": {"language": "sv"}})
    assert swedish[1] != german[1]
    assert ask(seed=1)[0] != german[0]


def test_messages_in_parts_and_newer_roles_are_those_in_plain_words(client):
    def tokens(messages):
        ask = {"model": "tiny", "messages": messages, "max_tokens": 1}
        return client.chat.completions.create(**ask).usage.prompt_tokens

    system = {"role": "system", "content": "Sei knapp."}
    parts = [{"type": "text", "text": "Wie "}, {"type": "text", "text": "geht es?"}]
    newer = [system | {"role": "developer"}, {"role": "user", "content": parts}]
    assert tokens(newer) == tokens([system, *QUESTION]) != tokens(QUESTION)


def test_a_conversation_goes_on_after_an_answer_of_nothing(client, generator, monkeypatch):
    monkeypatch.setattr(generator, "stream", lambda *_, **__: iter(()))
    ask = {"model": "tiny", "max_tokens": 4}
    (end,) = client.chat.completions.create(**ask, messages=QUESTION, stream=True)
    assert end.choices[0].delta.role == "assistant"
    answer = client.chat.completions.create(**ask, messages=QUESTION).choices[0].message
    assert answer.content == ""
    again = [*QUESTION, {"role": "assistant", "content": ""}, *QUESTION]
    assert client.chat.completions.create(**ask, messages=again).choices


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_has_gone_does_not_keep_the_model(generator, monkeypatch, stream):
    """Nor is it left while the thread of a step still runs: the next would run beside it."""
    steps, running, most = [], [], []

    def slow(*_, **__):
        for number in range(50):
            running.append(number)
            most.append(len(running))
            time.sleep(0.05)
            running.pop()
            steps.append(number)
            yield ""  # no text yet, so that a stream has not begun

    monkeypatch.setattr(generator, "text", slow)
    app = make_app(generator, name="tiny", host="0.0.0.0")

    async def ask(seconds: float):
        body = json.dumps({"prompt": "Die", "stream": stream}).encode()
        said = iter([(0, {"type": "http.request", "body": body})])

        async def receive():
            pause, message = next(said, (seconds, {"type": "http.disconnect"}))
            await asyncio.sleep(pause)
            return message

        async def send(_):
            pass

        path = "/v1/completions"
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
        await app(scope, receive, send)

    async def both():
        await asyncio.wait_for(asyncio.gather(ask(0.22), ask(0.52)), 30)

    asyncio.run(both())
    assert 0 < len(steps) < 50  # of 100
    assert max(most) == 1


def test_a_stop_string_ends_the_text_before_it(client):
    ask = {"model": "tiny", "prompt": "Die Bahn", "max_tokens": 30, "temperature": 0.0}
    whole = client.completions.create(**ask).choices[0].text
    stop = whole[10:13]
    answer = client.completions.create(**ask, stop=[stop])
    cut = answer.choices[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"
    # Also where the token that ends the stop string is the last that may be written.
    ask["max_tokens"] = answer.usage.completion_tokens
    assert client.completions.create(**ask, stop=[stop]).choices[0] == cut


def test_models_and_health_are_told(client, address):
    models = list(client.models.list())
    assert [model.id for model in models] == ["tiny"]
    assert client.models.retrieve("tiny") == models[0]
    assert client.get("/models/", cast_to=dict)["data"] == [models[0].to_dict()]
    with urllib3.PoolManager() as pool:
        health = json.loads(pool.request("GET", f"http://{address}/health").data)
    assert health == {"status": "ok", "model": "tiny", "waiting": 0}


@pytest.mark.parametrize("name", ["other", "meta/other"])
def test_another_model_is_not_found_and_the_one_is_named(client, name):
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve(name)
    message = f"model '{name}' is unknown: allowed: tiny"
    kind = {"type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    assert caught.value.body == {"message": message} | kind


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1/embeddings", 404), ("GET", "/v1/completions", 405)],
)
def test_an_unknown_path_or_method_is_told_what_there_is(address, method, path, status):
    with urllib3.PoolManager() as pool:
        answer = pool.request(method, f"http://{address}{path}")
    error = answer.json()["error"]
    assert (answer.status, error["type"]) == (status, "invalid_request_error")
    assert error["message"] == (
        f"{method} {path}: allowed: GET /health, GET /v1/models, GET /v1/models/{{name}}, "
        "POST /v1/chat/completions, POST /v1/completions"
    )
    assert answer.headers.get("Allow") == ("POST" if status == 405 else None)


@pytest.fixture
def broken(generator, monkeypatch):
    """The generator fails at its second piece."""

    def text(*_, **__):
        yield "Die"
        raise RuntimeError("broken inside")

    monkeypatch.setattr(generator, "text", text)


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("kind", ["completions", "chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_inside_is_an_error_object_and_the_server_goes_on(address, caplog, kind, stream):
    ask = {"prompt": "Die", "messages": QUESTION, "stream": stream}
    del ask["messages" if kind == "completions" else "prompt"]
    with urllib3.PoolManager(timeout=20, retries=False) as pool:
        for _ in range(2):  # the model and the connection are free again
            answer = pool.request("POST", f"http://{address}/v1/{kind}", json=ask)
            *pieces, last = answer.data.decode().strip().split("\n\n")
            error = json.loads(last.removeprefix("data: "))["error"]
            assert (answer.status, len(pieces)) == ((200, 1) if stream else (500, 0))
            assert error["type"] == "server_error"
            assert "broken" not in error["message"]
        # It is answered after what comes before it is logged.
        assert pool.request("GET", f"http://{address}/health").json()["waiting"] == 0
    assert caplog.text.count("Traceback") == caplog.text.count("RuntimeError: broken inside") == 2


@pytest.mark.usefixtures("broken")
def test_the_openai_client_raises_at_a_failure_inside_of_a_stream(client):
    stream = client.completions.create(model="tiny", prompt="Die", stream=True)
    assert next(stream).choices[0].text == "Die"
    with pytest.raises(openai.APIError, match="the server failed at this request"):
        next(stream)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1}, "temperature=-1.0: allowed: 0 or more"),
        ({"top_p": 0}, "top_p=0.0: allowed: above 0, up to 1"),
        ({"max_tokens": 0}, "max_tokens: input should be greater than or equal to 1"),
        ({"n": 2}, "n: input should be 1"),
        ({"prompt": "a" * 2000}, "prompt: .* tokens: allowed: 1 to 511"),
        ({"prompt": [5, 900]}, "prompt: token ids: allowed: 0 to 899"),
        ({"prompt": ["a", "b"]}, "prompt: allowed: one prompt: a string or an array of tokens"),
        ({"prompt": 5}, "prompt: allowed: one prompt: a string or an array of tokens"),
        ({"stop": 5}, "stop: allowed: a string or an array of strings"),
        ({"logprobs": 3}, "logprobs: this server does not know it"),
        ({"temprature": 1.0}, "temprature: .* did you mean 'temperature'"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_in_one_line(client, change, message):
    body = {"model": "tiny", "prompt": "a"} | change
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client.post("/completions", cast_to=object, body=body)
    assert "\n" not in caught.value.body["message"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages: there are none"),
        ([*QUESTION, {"role": "assistant", "content": "a"}], "messages: the last one has to be"),
        ([*QUESTION, *QUESTION], "turns do not alternate"),
        ([{"role": "user", "content": "a</s>b"}], "holds the special piece '</s>'"),
        ([{"role": "tool", "content": "a"}, *QUESTION], "role is 'tool'"),
    ],
)
def test_conversations_of_another_form_are_refused(client, messages, message):
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(model="tiny", messages=messages)


def test_bodies_that_are_too_large_or_no_json_are_refused(address):
    status, answer = post(address, "/v1/completions", b"x" * (2 << 20))
    assert (status, answer["error"]["message"]) == (400, "the body: allowed: 1,048,576 bytes")
    status, answer = post(address, "/v1/completions", b"{")
    assert status == 400
    assert answer["error"]["message"].startswith("the body: invalid JSON")


def test_another_host_name_is_refused_on_loopback(address):
    with urllib3.PoolManager() as pool:
        answer = pool.request("GET", f"http://{address}/health", headers={"Host": "evil.example"})
    assert answer.status == 400


def test_requests_wait_for_their_turn_and_too_many_are_told_so(client, address):
    """One is written, one may wait; the next is refused, and the two are answered."""
    ask = {"model": "tiny", "prompt": "Die Bahn", "max_tokens": 200, "temperature": 1.5, "seed": 0}
    texts: list[str] = []

    def complete():
        texts.append(client.completions.create(**ask).choices[0].text)

    stream = client.completions.create(**ask, stream=True)
    first = next(stream).choices[0].text  # the model is taken
    waiting = threading.Thread(target=complete)
    waiting.start()
    deadline = time.monotonic() + 20
    with urllib3.PoolManager() as pool:
        while json.loads(pool.request("GET", f"http://{address}/health").data)["waiting"] < 1:
            assert time.monotonic() < deadline
    with pytest.raises(openai.InternalServerError, match="1 requests wait already"):
        client.completions.create(**ask)
    streamed = first + "".join(chunk.choices[0].text for chunk in stream)
    waiting.join()
    assert texts == [streamed]


def test_what_cannot_be_served_is_one_line(generator):
    with pytest.raises(UserError, match="language 'xx' is unknown: allowed: bg, "):
        make_app(generator, name="tiny", language="xx")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: cannot .*: Address already in use$"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match=r"^--host 192\.0\.2\.1 .*Cannot assign requested address$"):
        listen("192.0.2.1", 8000)  # of documentation, and nobody's
    with pytest.raises(UserError, match=r"^--host none\.invalid .* on: \w+ \w+.* \w+$") as error:
        listen("none.invalid", 8000)
    assert "Unknown error" not in str(error.value)
