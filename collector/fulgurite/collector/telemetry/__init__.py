"""The store's readers that speak OpenTelemetry and Prometheus: a process of its own beside the collectors.

It reads what collectors stored, at its own pace. Whatever happens to it, or to who it sends to, the path from
an agent to a viewer does not notice.
"""
