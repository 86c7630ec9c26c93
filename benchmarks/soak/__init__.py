"""Half an hour of load with random faults, to see whether anything grows."""
