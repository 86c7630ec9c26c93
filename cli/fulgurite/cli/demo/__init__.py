"""The demo: a collector, replicas of a small model under steady traffic, and a viewer, each a process."""
