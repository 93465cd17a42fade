"""Ray Serve: one deployment that answers HTTP."""

import socket
import urllib.request

from ray import serve

from report import main


@serve.deployment
class Greeter:
    async def __call__(self, request):
        return f"Hello, {request.query_params['name']}"


def program():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(Greeter.bind())
        answers = set()
        for _ in range(20):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/?name=World", timeout=30) as answer:
                answers.add(answer.read().decode())
    finally:
        serve.shutdown()
    assert answers == {"Hello, World"}, answers
    return "20 answers: Hello, World"


if __name__ == "__main__":
    main(program)
