"""What other users of the machine may reach: sockets, files, secrets."""

import json
import re
import stat

import harness
from harness import OURS

#: A token that nothing else writes by chance.
TOKEN = "5ec2e7" * 8

PROGRAM = """
import json, os, stat, sys
import harness, ray

with harness.local_node(num_cpus=1) as node:
    @ray.remote
    def work():
        return sorted(name for name in os.environ if "RAYLET_URING" in name or name.startswith("NOTIFY"))
    report = {"worker": harness.get(work.remote())}
    report["modes"] = [stat.S_IMODE(os.stat(path).st_mode) for path in node.sockets]
    report["logs"] = {path.name: path.read_text(errors="replace")
                      for path in (node.logs).glob("*raylet*") if path.is_file()}
    report["leaks"] = [path.name for path in node.logs.glob("*")
                       if path.is_file() and sys.argv[1] in path.read_text(errors="replace")]
    print("REPORT", json.dumps(report))
"""


def test_secrets_and_sockets_are_the_users_own(tmp_path):
    """With everything logged, no log holds the token; the sockets are the user's own; an open token file is told of."""
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    token.chmod(0o644)
    environment = harness.clean_environment(
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=token, RAYLET_URING_LOG="trace" if OURS else None,
    )
    out = harness.run_program(PROGRAM, TOKEN, environment=environment, timeout_s=240)
    report = json.loads(out.split("REPORT", 1)[1])
    assert report["leaks"] == []
    assert report["modes"], "no sockets"
    if OURS:
        assert set(report["modes"]) == {0o600}
        log = "".join(report["logs"].values())
        assert "TRACE" in log and re.search("token can be read by other users.*chmod 600", log), log[:2000]
    # Others may not write to them in either case.
    assert not any(mode & stat.S_IWOTH for mode in report["modes"])
