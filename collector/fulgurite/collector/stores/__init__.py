"""What the collector can store in."""
