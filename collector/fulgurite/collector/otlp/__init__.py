"""OTLP in: the spans of other instrumentations, kept by trace id, to be shown beside the frames."""
