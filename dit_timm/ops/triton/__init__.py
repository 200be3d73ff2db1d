"""The quadratic form on a GPU, by Triton kernels."""
