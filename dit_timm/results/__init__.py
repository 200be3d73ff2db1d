"""Results of trained networks: rows of CSVs, statistics, pictures."""
