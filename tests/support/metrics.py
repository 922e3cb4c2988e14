"""What the metrics should be, computed apart."""

import numpy as np


def independent(logits, target):
    """The definitions, in NumPy and float64."""
    z = np.asarray(logits, np.float64)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    rows = np.arange(len(p))
    confidence, correct = p.max(1), p.argmax(1) == target
    ece = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    order = np.argsort(confidence, kind='stable')
    bins = np.array_split(order, 15)
    adaptive = sum(abs(correct[b].sum() - confidence[b].sum()) for b in bins if len(b)) / len(p)

    def area(errors):
        risk = np.cumsum(errors) / np.arange(1, len(errors) + 1)
        return ((risk[1:] + risk[:-1]) / 2).mean()

    wrong = np.array([1 - correct[confidence == c].mean() for c in confidence])  # the mean over orders of equal ones
    aurc, best = (area(wrong[order[::-1]]), area(np.sort(~correct))) if len(p) > 1 else (np.nan, np.nan)
    log_p = z - z.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    return {
        'error': 1 - correct.mean(),
        'nll': -log_p[rows, target].mean(),
        'brier': ((p - np.eye(p.shape[1])[target]) ** 2).sum(1).mean(),
        'ece': ece,
        'confidence': confidence.mean(),
        'adaptive_ece': adaptive,
        'aurc': aurc,
        'e_aurc': aurc - best,
    }
