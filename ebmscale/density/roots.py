"""Roots of covariances. Shapes: Z coordinates."""

import torch
from torch import Tensor


def factor(covariance: Tensor) -> Tensor:
    """The lower triangle L (Z, Z) of a covariance L L^T (Z, Z) of samples.

    Raises:
        ValueError: it is not positive definite.
    """
    cholesky, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed):
        raise ValueError("the samples' covariance is not positive definite")
    return cholesky


def symmetric_root(covariance: Tensor) -> Tensor:
    """The symmetric root S (Z, Z) of a covariance S S (Z, Z).

    Raises:
        ValueError: it is not positive definite.
    """
    values, vectors = torch.linalg.eigh(covariance)
    if not bool(values[0] > 0):
        raise ValueError("the samples' covariance is not positive definite")
    return (vectors * values.sqrt()) @ vectors.T
