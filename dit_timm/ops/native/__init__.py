"""The quadratic form on a CPU, by compiled kernels."""
