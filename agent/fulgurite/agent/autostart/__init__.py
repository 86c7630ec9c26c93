"""What `fulgurite run` puts on PYTHONPATH. Nothing in it imports Fulgurite when a process starts."""
