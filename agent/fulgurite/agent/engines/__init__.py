"""What differs between serving engines, and nothing else."""
