"""The shared vocabulary: frames, topology, their columns on the wire, and the ledger."""
