"""The compiled kernels; everything else about the package is in pyproject.toml.

They are optional: where they cannot be compiled, the package installs without them and computes the quadratic term
with plain torch. They know nothing of Python, so that one build serves every version of it.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            'dit_timm.ops.native._kernels',
            sources=['dit_timm/ops/native/kernels.c'],
            depends=['dit_timm/ops/native/kernels.h'],
            extra_compile_args=['-O3', '-fopenmp'],
            extra_link_args=['-fopenmp'],
            py_limited_api=True,
            optional=True,
        ),
    ],
    options={'bdist_wheel': {'py_limited_api': 'cp310'}},
)
