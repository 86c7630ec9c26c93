"""A load generator: any number of replicas from one process, on the real wire, open loop."""
