"""What observing costs on a model of real size, ours beside what else there is."""
