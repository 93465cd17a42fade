"""A cluster whose gRPC is encrypted (RAY_USE_TLS): certificates of an authority of the test's own."""

import json
import subprocess

import pytest
import ray

import harness

#: Runs in a process of its own, because Ray reads the settings of TLS when it is imported.
PROGRAM = """
import json, os, sys
import grpc
import numpy as np
import ray
import harness

with harness.local_node(num_cpus=2) as node:
    @ray.remote
    def double(x):
        return 2 * x

    @ray.remote
    class Counter:
        def __init__(self):
            self.n = 0
        def add(self, array):
            self.n += int(array.sum())
            return self.n

    report = {"tasks": harness.get([double.remote(n) for n in range(20)])}
    array = np.ones(2_000_000, dtype=np.int8)
    reference = ray.put(array)
    report["put"] = int(harness.get(double.remote(reference)).sum())
    counter = Counter.remote()
    report["actor"] = harness.get([counter.add.remote(reference) for _ in range(3)])
    ready, rest = ray.wait([double.remote(reference) for _ in range(4)], num_returns=4, timeout=60)
    report["waited"] = len(ready), len(rest)
    group = ray.util.placement_group([{"CPU": 1}])
    harness.get(group.ready())
    ray.util.remove_placement_group(group)

    info = ray.nodes()[0]
    address = f"{info['NodeManagerAddress']}:{info['NodeManagerPort']}"
    def read(name):
        with open(os.path.join(sys.argv[1], name), "rb") as file:
            return file.read()
    ca, mine, key = read("ca.pem"), read("node.pem"), read("node.key")
    channels = {
        "plain": grpc.insecure_channel(address),
        "no certificate": grpc.secure_channel(address, grpc.ssl_channel_credentials(ca)),
        "a stranger's": grpc.secure_channel(
            address, grpc.ssl_channel_credentials(ca, read("stranger.key"), read("stranger.pem"))),
        "its own": grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, mine)),
    }
    report["callers"] = {}
    for name, channel in channels.items():
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            check(b"", timeout=30)
            report["callers"][name] = "OK"
        except grpc.RpcError as error:
            report["callers"][name] = error.code().name
    ray.kill(counter)
    print("REPORT", json.dumps(report))
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A directory with an authority's certificate, a certificate that it signed, and one that nobody signed."""
    directory = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=60)

    names = f"DNS:localhost,IP:127.0.0.1,IP:{ray.util.get_node_ip_address()}"
    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(*new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=an authority")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "node.key", "-out", "node.csr", "-subj", "/CN=a node")
    (directory / "names").write_text(f"subjectAltName={names}\nbasicConstraints=CA:FALSE\n")
    openssl("x509", "-req", "-in", "node.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "names", "-out", "node.pem")
    openssl(*new, "-keyout", "stranger.key", "-out", "stranger.pem", "-subj", "/CN=a stranger")
    return directory


def environment(directory, **changes):
    """Ray's settings of TLS with these certificates."""
    settings = {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": directory / "node.pem",
        "RAY_TLS_SERVER_KEY": directory / "node.key",
        "RAY_TLS_CA_CERT": directory / "ca.pem",
    }
    return harness.clean_environment(**{**settings, **changes})


def test_a_cluster_with_tls_works_and_refuses_callers_without_a_certificate(certificates):
    """Tasks, objects, an actor and a placement group; the raylet's port takes only callers whom the authority signed."""
    out = harness.run_program(PROGRAM, certificates, environment=environment(certificates), timeout_s=240)
    report = json.loads(out.split("REPORT", 1)[1])
    assert report["tasks"] == [2 * n for n in range(20)]
    assert report["put"] == 4_000_000
    assert report["actor"] == [2_000_000, 4_000_000, 6_000_000]
    assert report["waited"] == [4, 0]
    refused = "UNAVAILABLE"
    assert report["callers"] == {"plain": refused, "no certificate": refused, "a stranger's": refused, "its own": "OK"}
