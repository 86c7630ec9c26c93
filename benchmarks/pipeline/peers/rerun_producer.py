"""The same arrays of each token, logged by Rerun's SDK to its gRPC proxy.

Runs in an environment of its own: ``rerun_producer.py PORT LAYERS HEADS TOKENS_PER_S SECONDS``. Prints one
JSON object.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
import rerun as rr


def cpu_s() -> float:
    """CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Log a token's arrays at a pace."""
    port, layers, heads = map(int, sys.argv[1:4])
    per_s, seconds = map(float, sys.argv[4:6])
    rng = np.random.default_rng(0)
    rr.init("peer")
    rr.connect_grpc(f"rerun+http://127.0.0.1:{port}/proxy")
    stream = rr.get_global_data_recording()
    tables = [(rng.random((layers, heads), np.float32), rng.random(layers, np.float32)) for _ in range(64)]
    tokens = int(per_s * seconds)
    began = time.perf_counter()
    before = cpu_s()
    for token in range(tokens):
        wait = began + token / per_s - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        write, ffn = tables[token % 64]
        rr.set_time("position", sequence=token)
        rr.log("replica/head_write", rr.Tensor(write))
        rr.log("replica/ffn_write", rr.Tensor(ffn))
    stream.flush()
    print(json.dumps({"tokens": tokens, "cpu_s": cpu_s() - before, "wall_s": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
