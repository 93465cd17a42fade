"""How the programs in this directory report: one line of JSON {program, result, seconds}.

The programs themselves are plain Ray: each calls ray.init() with no argument and works on whatever node it finds
(RAY_ADDRESS) or starts.
"""

import json
import pathlib
import sys
import time


def main(program):
    """Runs `program` in a Ray session, and prints what it returned and how long it took."""
    import ray

    ray.init(log_to_driver=False)
    started = time.perf_counter()
    result = program()
    seconds = time.perf_counter() - started
    ray.shutdown()
    print(json.dumps({"program": pathlib.Path(sys.argv[0]).stem, "result": result, "seconds": round(seconds, 3)}))
