"""Numerics of the quadratic term. Depends on torch alone."""

from .dispatch import (
    available_backends as available_backends,
    check_backend as check_backend,
    quadratic_form as quadratic_form,
)

__all__ = ['available_backends', 'check_backend', 'quadratic_form']
