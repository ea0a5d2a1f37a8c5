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


def inverse_of(root: Tensor) -> tuple[Tensor, float]:
    """The inverse (Z, Z) and the log determinant of a root (Z, Z): lower triangular, or symmetric and positive."""
    if bool(root.triu(1).any()):
        return torch.linalg.inv(root), float(root.logdet())
    one = torch.eye(len(root), dtype=root.dtype, device=root.device)
    return torch.linalg.solve_triangular(root, one, upper=False), float(root.diagonal().log().sum())


def symmetric_root(covariance: Tensor) -> Tensor:
    """The symmetric root S (Z, Z) of a covariance S S (Z, Z).

    Raises:
        ValueError: it is not positive definite.
    """
    values, vectors = torch.linalg.eigh(covariance)
    if not bool(values[0] > 0):
        raise ValueError("the samples' covariance is not positive definite")
    return (vectors * values.sqrt()) @ vectors.T
