"""The compiled kernels; everything else about the package is in pyproject.toml.

They are optional: where they cannot be compiled, the package installs without them and computes the quadratic term
with plain torch.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            'dit_timm.ops._native_kernels',
            sources=['dit_timm/ops/native_kernels.c'],
            depends=['dit_timm/ops/native_kernels.h'],
            extra_compile_args=['-O3', '-fopenmp'],
            extra_link_args=['-fopenmp'],
            optional=True,
        ),
    ],
)
