"""Runtime environments: made by the agent, asked for by the raylet, and told to the caller when they can't be made."""

import os

import pytest
import ray
from ray.exceptions import RuntimeEnvSetupError

from harness import get, run_program, clean_environment

NODE = {"num_cpus": 2}
#: The agent tries once to make an environment, not three times: a broken one is broken.
ENVIRONMENT = {"RUNTIME_ENV_RETRY_TIMES": "1"}

pytestmark = [pytest.mark.usefixtures("node"), pytest.mark.timeout(200)]


@ray.remote(num_cpus=0)
class Elsewhere:
    """An actor that looks around in its environment."""

    def variable(self, name):
        return os.environ.get(name)

    def version(self, module):
        import importlib

        return importlib.import_module(module).__version__


def test_environment_variables_of_tasks_and_actors():
    @ray.remote(runtime_env={"env_vars": {"FLAVOUR": "salt"}})
    def outer():
        return os.environ["FLAVOUR"], ray.get(ray.remote(lambda: os.environ["FLAVOUR"]).remote())

    assert get(outer.remote()) == ("salt", "salt"), "children inherit it"
    sweet = Elsewhere.options(runtime_env={"env_vars": {"FLAVOUR": "sweet"}}).remote()
    assert get(sweet.variable.remote("FLAVOUR")) == "sweet"
    assert get(Elsewhere.remote().variable.remote("FLAVOUR")) is None


def test_working_dir_and_py_modules_of_a_job(node, tmp_path):
    """A second driver brings a directory and a package; its workers run in the one and import the other."""
    kitchen, carried = tmp_path / "kitchen", tmp_path / "carried"
    kitchen.mkdir()
    carried.mkdir()
    (kitchen / "recipe.txt").write_text("flour")
    (kitchen / "cook_module.py").write_text("def cook():\n    return open('recipe.txt').read() + ' and water'\n")
    (carried / "__init__.py").write_text("__version__ = '4.5.6'\n")
    out = run_program(
        """
        import sys, ray
        ray.init(address=sys.argv[1], log_to_driver=False,
                 runtime_env={"working_dir": sys.argv[2], "py_modules": [sys.argv[3]], "env_vars": {"OVEN": "hot"}})
        @ray.remote
        def cook():
            import os, carried, cook_module
            assert "working_dir_files" in os.getcwd(), os.getcwd()
            return " ".join([cook_module.cook(), os.environ["OVEN"], carried.__version__])
        print(ray.get(cook.remote(), timeout=60))
        """,
        node.address, kitchen, carried, environment=clean_environment(RAY_AUTH_MODE=os.environ.get("RAY_AUTH_MODE")),
    )
    assert out.strip().endswith("flour and water hot 4.5.6")


def test_pip_installs_a_package_for_one_actor():
    """A version that the driver does not have."""
    import six

    assert six.__version__ != "1.16.0"
    actor = Elsewhere.options(runtime_env={"pip": ["six==1.16.0"]}).remote()
    assert get(actor.version.remote("six"), 180) == "1.16.0"
    assert get(Elsewhere.remote().version.remote("six")) == six.__version__


def test_failed_environment_is_told_with_its_cause(tmp_path):
    archive = f"file://{tmp_path}/no_such_archive.zip"
    actor = Elsewhere.options(runtime_env={"working_dir": archive}).remote()
    with pytest.raises((RuntimeEnvSetupError, ray.exceptions.ActorDiedError), match="no_such_archive"):
        get(actor.variable.remote("HOME"))

    @ray.remote(runtime_env={"working_dir": archive}, max_retries=0)
    def never():
        return 1

    with pytest.raises(RuntimeEnvSetupError, match="no_such_archive"):
        get(never.remote())
    assert get(ray.remote(lambda: 5).remote()) == 5, "the node goes on"


def test_failed_pip_is_told_with_its_cause(tmp_path):
    @ray.remote(runtime_env={"pip": [str(tmp_path / "no_such_package")]}, max_retries=0)
    def never():
        return 1

    with pytest.raises(RuntimeEnvSetupError, match="no_such_package"):
        get(never.remote(), 180)


@pytest.mark.parametrize("eager", [True, False])
def test_environment_of_a_job_is_built_ahead(node, tmp_path, eager):
    """As a job begins, before any task of it: unless it asks for the contrary."""
    pantry = tmp_path / "pantry"
    pantry.mkdir()
    (pantry / f"jar-{eager}.txt").write_text("honey")
    out = run_program(
        """
        import glob, sys, time, ray
        eager = sys.argv[4] == "True"
        ray.init(address=sys.argv[1], log_to_driver=False,
                 runtime_env={"working_dir": sys.argv[2], "config": {"eager_install": eager}})
        unpacked = f"{sys.argv[3]}/runtime_resources/working_dir_files/*/jar-{eager}.txt"
        deadline = time.monotonic() + (30 if eager else 4)
        while not glob.glob(unpacked) and time.monotonic() < deadline:
            time.sleep(0.1)
        print(bool(glob.glob(unpacked)))
        print(ray.get(ray.remote(lambda: open(f"jar-{eager}.txt").read()).remote(), timeout=60))
        """,
        node.address, pantry, node.session_dir, eager,
        environment=clean_environment(RAY_AUTH_MODE=os.environ.get("RAY_AUTH_MODE")),
    )
    assert out.split() == [str(eager), "honey"]
