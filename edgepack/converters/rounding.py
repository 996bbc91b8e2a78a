"""Weights in int8, rounded so that a layer's outputs change least. Pure numpy; nothing here is random.

A weight array has the shape [groups, outputs, inputs]: rows of the sums that a layer computes (`inputs` counts the
kernel's points too). ``integer = clip(round(weight * factor), -127, 127)`` with one factor per row. What counts is the
error of the sums, ``(q - w) C (q - w)^T``, where C [groups, inputs, inputs] is the covariance of what the layer reads:
the mean is left out, because bias correction takes care of it.
"""

import numpy as np

LARGEST = 127
TINY = 1e-8  # a row whose weights are all below this is dead: the factor 1 gives zeros
SHRINKS = np.linspace(1.0, 0.6, 33)  # of the largest weight: ranges that are tried
DAMPING = 0.01  # of the mean variance, added to each: what is hardly ever seen must not grow without limit
WIDTH = 64  # columns that are rounded before the rest learns of it


def nearest(weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Each weight as its nearest integer, int8 [groups, outputs, inputs]; `factor` [groups, outputs]."""
    return np.clip(np.rint(weight * factor[:, :, None]), -LARGEST, LARGEST).astype(np.int8)


def whole_range(weight: np.ndarray) -> np.ndarray:
    """Factors [groups, outputs] that put each row's largest weight at 127. Never infinite: a dead row gets 1."""
    largest = np.abs(weight).max(axis=2, initial=0.0)
    return np.where(largest > TINY, LARGEST / np.maximum(largest, TINY), 1.0).astype(np.float32)


def least_error(weight: np.ndarray, covariance: np.ndarray | None = None) -> np.ndarray:
    """Factors [groups, outputs] with the least squared error, each input weighted with its variance if that is known.

    The largest weights of a row may be clipped for finer steps elsewhere.
    """
    widest = whole_range(weight)
    power = np.ones((1, 1, 1)) if covariance is None else np.diagonal(covariance, axis1=1, axis2=2)[:, None, :]
    best, least = widest, np.full(widest.shape, np.inf)
    for shrink in SHRINKS:
        factor = np.where(widest == 1.0, 1.0, widest / shrink).astype(np.float32)
        error = nearest(weight, factor) / factor[:, :, None].astype(np.float64) - weight
        loss = (np.square(error) * power).sum(axis=2)
        best = np.where(loss < least, factor, best)
        least = np.minimum(loss, least)
    return best


def compensated(weight: np.ndarray, factor: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Integers whose errors cancel in the layer's sums; int8 [groups, outputs, inputs].

    Optimal brain quantization, one input after the other for all rows at once (GPTQ, Frantar et al. 2022,
    arXiv:2210.17323): what rounding one weight does is taken up by those that aren't rounded yet, which minimises
    the same layer-wise error as AdaRound (Nagel et al. 2020, arXiv:2004.10568) in closed form. Inputs with the largest
    variance come first, `DAMPING` of the mean variance keeps the inverse finite. Where the sums come out no better
    than with the nearest integers (rows that are clipped much), those are returned.
    """
    inputs = weight.shape[2]
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    order = np.argsort(-variance, axis=1, kind="stable")
    left = np.take_along_axis(weight.astype(np.float64), order[:, None, :], axis=2)
    sorted_covariance = np.take_along_axis(covariance, order[:, :, None], axis=1)
    sorted_covariance = np.take_along_axis(sorted_covariance, order[:, None, :], axis=2)
    damping = DAMPING * variance.mean(axis=1) + np.finfo(np.float32).tiny
    spread = sorted_covariance + damping[:, None, None] * np.eye(inputs)
    upper = np.swapaxes(np.linalg.cholesky(np.linalg.inv(spread)), 1, 2)
    steps = factor.astype(np.float64)
    chosen = np.empty(weight.shape, np.int8)
    for start in range(0, inputs, WIDTH):
        end = min(start + WIDTH, inputs)
        errors = np.empty((*weight.shape[:2], end - start))
        for column in range(start, end):
            values = left[:, :, column]
            integers = np.clip(np.rint(values * steps), -LARGEST, LARGEST)
            chosen[:, :, column] = integers
            error = (values - integers / steps) / upper[:, column, column, None]
            left[:, :, column + 1 : end] -= error[:, :, None] * upper[:, None, column, column + 1 : end]
            errors[:, :, column - start] = error
        left[:, :, end:] -= errors @ upper[:, start:end, end:]
    found = np.empty_like(chosen)
    np.put_along_axis(found, np.broadcast_to(order[:, None, :], chosen.shape), chosen, axis=2)
    plain = nearest(weight, factor)
    better = loss(weight, found, factor, covariance) < loss(weight, plain, factor, covariance)
    return np.where(better[:, :, None], found, plain)


def loss(weight: np.ndarray, integers: np.ndarray, factor: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Variance of the error of each row's sum, [groups, outputs]."""
    error = integers / factor[:, :, None].astype(np.float64) - weight
    return ((error @ covariance) * error).sum(axis=2)
