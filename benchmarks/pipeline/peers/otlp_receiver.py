"""A minimal OTLP receiver: parses what comes, counts spans, answers. Stores nothing, shows nobody.

Runs in an environment of its own: ``otlp_receiver.py PORT``. Prints one JSON object when its input ends.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service


class Receiver(service.TraceServiceServicer):
    """Counts."""

    spans = 0
    nbytes = 0

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002 - the name that gRPC wants
        """Take spans."""
        self.spans += sum(len(s.spans) for r in request.resource_spans for s in r.scope_spans)
        self.nbytes += request.ByteSize()
        return messages.ExportTraceServiceResponse()


def main() -> None:
    """Receive until the input ends."""
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(4))
    add: Any = service.add_TraceServiceServicer_to_server
    add(receiver, server)
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    server.start()
    sys.stdin.read()
    print(json.dumps({"spans": receiver.spans, "nbytes": receiver.nbytes}))


if __name__ == "__main__":
    main()
