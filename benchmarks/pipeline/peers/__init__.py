"""Programs that run in an environment of their own, without Fulgurite in it."""
