"""Training, from the options of a run to its results."""
