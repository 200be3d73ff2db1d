"""Numerics of the quadratic term. Depends on torch alone."""

from .backends import (
    available_backends as available_backends,
    check_backend as check_backend,
    register_backend as register_backend,
    unregister_backend as unregister_backend,
)
from .dispatch import quadratic_form as quadratic_form

__all__ = ['available_backends', 'check_backend', 'quadratic_form', 'register_backend', 'unregister_backend']
