"""The same arrays logged by Rerun's columnar call, 256 tokens at once: its fast way, for who can batch.

Runs in an environment of its own: ``rerun_columns.py PORT LAYERS HEADS TOKENS_PER_S SECONDS``. Prints one
JSON object.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
import rerun as rr

BATCH = 256


def cpu_s() -> float:
    """CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Send a batch's arrays at a pace."""
    port, layers, heads = map(int, sys.argv[1:4])
    per_s, seconds = map(float, sys.argv[4:6])
    rng = np.random.default_rng(0)
    rr.init("peer")
    rr.connect_grpc(f"rerun+http://127.0.0.1:{port}/proxy")
    stream = rr.get_global_data_recording()
    write = rng.random((BATCH, layers * heads), np.float32)
    ffn = rng.random((BATCH, layers), np.float32)
    batches = max(1, int(per_s * seconds / BATCH))
    began = time.perf_counter()
    before = cpu_s()
    for batch in range(batches):
        wait = began + batch * BATCH / per_s - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        position = rr.TimeColumn("position", sequence=np.arange(BATCH) + batch * BATCH)
        for name, values in (("head_write", write), ("ffn_write", ffn)):
            columns = rr.Scalars.columns(scalars=values.ravel())
            rr.send_columns(f"replica/{name}", [position], columns.partition([values.shape[1]] * BATCH))
    stream.flush()
    spent, wall = cpu_s() - before, time.perf_counter() - began
    print(json.dumps({"tokens": batches * BATCH, "cpu_s": spent, "wall_s": wall}))


if __name__ == "__main__":
    main()
