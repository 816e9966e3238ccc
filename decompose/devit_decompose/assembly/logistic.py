"""A linear head by multinomial logistic regression on stored features, starting from ridge regression.

The loss is the mean cross-entropy plus ``strength / 2`` times the squared weights of standardised features. It is
convex, but L-BFGS needs hundreds of steps where features are as correlated as those of several backbones; in the axes
of the ridge regression, each scaled by its own curvature, some twenty do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from devit_contract.arrays import Float64Array, Int64Array
from devit_contract.service.progress import Progress
from devit_decompose.assembly.ridge import Fitted, LinearHead, Parts, Ridge, chunks

STRENGTHS = tuple(10.0**power for power in (0, -1, -2, -3, -3.5, -4, -4.5, -5))
"""Tried from strong to weak, each from the one before."""
_STEPS = 20
_PATIENCE = 2
"""Strengths without a better validation accuracy before the rest is not tried."""
_CURVATURE = 0.05
"""About the mean of p (1 - p), by which the loss is flatter than the squared error; it only sets the pace."""
_STAGE = "logistic regression"


def fit_logistic(
    ridge: Ridge,
    begin: LinearHead,
    training: tuple[Parts, Int64Array],
    validation: tuple[Parts, Int64Array],
    device: torch.device,
    progress: Progress,
) -> Fitted:
    """Train from a ridge head for falling strengths; keep the head that is best on validation.

    Training and validation are the features of each backbone and the labels ``(n,)``; ``ridge`` is solved on the same
    training features. The first strength begins at ``begin``, with the length of its logits fitted.
    """
    state = _scaled(begin, training)
    best = Fitted(state, 0.0, -1.0)
    since_best = 0
    for tried, strength in enumerate(STRENGTHS):
        state = _fit(ridge, state, strength, training, device)
        found = Fitted(state, strength, state.accuracy(*validation))
        since_best += 1
        if found.validation_accuracy > best.validation_accuracy:
            best, since_best = found, 0
        progress(_STAGE, tried + 1, len(STRENGTHS), f"best {best.validation_accuracy:.2%}")
        if since_best == _PATIENCE:
            break
    progress(_STAGE, len(STRENGTHS), len(STRENGTHS), f"best {best.validation_accuracy:.2%}")
    return best


def _scaled(head: LinearHead, training: tuple[Parts, Int64Array]) -> LinearHead:
    """Stretch logits that were fitted to 0 and 1 to the length that is likeliest on the first rows."""
    parts, labels = training
    rows, features = next(chunks(parts))
    logits = torch.from_numpy(features @ head.weight.T + head.bias)
    wanted = torch.from_numpy(labels[rows])
    factor = min(
        (2.0**power for power in range(8)), key=lambda one: float(functional.cross_entropy(logits * one, wanted))
    )
    return LinearHead(head.weight * factor, head.bias * factor)


def _fit(
    ridge: Ridge, begin: LinearHead, strength: float, training: tuple[Parts, Int64Array], device: torch.device
) -> LinearHead:
    parts, labels = training
    moments = ridge.moments
    pace = 1.0 / np.sqrt(ridge.values + strength / _CURVATURE)  # (d,)
    standardised = begin.weight.T * moments.scale[:, np.newaxis]  # (d, K)
    steps = _on(device, ridge.axes.T @ standardised / pace[:, np.newaxis]).requires_grad_()
    offset = _on(device, begin.bias + begin.weight @ moments.mean).requires_grad_()
    to_weight = _on(device, ridge.axes * pace / moments.scale[:, np.newaxis])  # (d, d)
    penalty = _on(device, strength / 2 * pace**2)[:, None]
    mean = _on(device, moments.mean)
    optimizer = torch.optim.LBFGS([steps, offset], max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        weight = to_weight @ steps
        # One backward pass through the small products for all chunks.
        free = weight.detach().requires_grad_()
        total = torch.zeros((), device=device)
        for rows, features in chunks(parts):
            logits = (torch.from_numpy(features).to(device) - mean) @ free + offset
            wanted = torch.from_numpy(labels[rows]).to(device)
            part = functional.cross_entropy(logits, wanted, reduction="sum") / len(labels)
            part.backward()  # type: ignore[no-untyped-call]
            total += part.detach()
        cost = (penalty * steps**2).sum()
        torch.autograd.backward([weight, cost], [free.grad, None])
        return total + cost.detach()

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    weight = (to_weight @ steps).detach().double().cpu().numpy().T
    return LinearHead(weight, offset.detach().double().cpu().numpy() - weight @ moments.mean)


def _on(device: torch.device, values: Float64Array) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device)
