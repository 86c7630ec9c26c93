"""What frames mean to OpenTelemetry and Prometheus: request spans, metrics, and their way out.

Agent and collector share it. Nothing here knows of a model, a store or a viewer; importing it costs what
numpy costs, and the OpenTelemetry SDK is imported where a span or a metric is made.
"""
