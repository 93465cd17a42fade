"""raylet-uring, the node service of a Ray cluster, as a Python package: where the executable is, and attaching it.

`python -m raylet_uring attach` makes the Ray beside this interpreter use it from the next start on, `detach` undoes that.
"""

import importlib.metadata
import subprocess
import sys

DISTRIBUTION = "raylet-uring"


def executable():
    """The path of the executable that was installed with this package."""
    for file in importlib.metadata.files(DISTRIBUTION) or []:
        if file.name == "raylet-uring":
            return str(file.locate().resolve())
    raise FileNotFoundError("the raylet-uring executable is not part of this installation: install the package again")


def attach(python=sys.executable):
    """Makes the Ray installation of `python` (default: this one) use raylet-uring."""
    subprocess.run([executable(), "attach", python], check=True)


def detach(python=sys.executable):
    """Gives the Ray installation of `python` (default: this one) its own raylet back."""
    subprocess.run([executable(), "detach", python], check=True)
