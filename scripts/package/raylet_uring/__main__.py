"""`python -m raylet_uring ...`: the executable with these arguments; attach and detach mean this interpreter's Ray."""

import os
import sys

from . import executable


def main():
    arguments = sys.argv[1:]
    names_python = any(not argument.startswith("-") for argument in arguments[1:])
    if arguments and arguments[0] in ("attach", "detach") and not names_python and "--help" not in arguments:
        arguments.append(sys.executable)
    path = executable()
    os.execv(path, [path, *arguments])


if __name__ == "__main__":
    main()
