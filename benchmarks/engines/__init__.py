"""What observing a serving engine costs it: requests per second, time to the first token, time between tokens."""
