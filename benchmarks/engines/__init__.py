"""What observing a serving engine costs it: requests per second, time to and between tokens."""
