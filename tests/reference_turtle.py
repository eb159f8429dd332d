"""TURTLE by hand, in float64: arXiv 2406.07236 with one embedding."""

import numpy as np


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class Adam:
    """Kingma and Ba, 2015, with its usual constants; changes the parameters in place."""

    def __init__(self, parameters, rate):
        self.parameters, self.rate, self.steps = parameters, rate, 0
        self.means = [(np.zeros_like(p), np.zeros_like(p)) for p in parameters]

    def step(self, gradients):
        self.steps += 1
        for p, (first, second), slope in zip(self.parameters, self.means, gradients, strict=True):
            first += 0.1 * (slope - first)
            second += 0.001 * (slope**2 - second)
            scale = np.sqrt(second / (1 - 0.999**self.steps)) + 1e-8
            p -= self.rate * first / (1 - 0.9**self.steps) / scale


def turtle(first, batches, *, gamma, inner_steps, rate):
    """Return weight and bias of the task encoder after all steps.

    Args:
        first: Weight (C, d) and bias (C,) that it starts with.
        batches: Per step the points (b, d), and the classifier's first weight and bias.
        gamma: Weight of the entropy of the mean label.
        inner_steps: Steps of the classifier.
        rate: Of both Adams.
    """
    direction, bias = (part.copy() for part in first)
    length = np.linalg.norm(direction, axis=1, keepdims=True)
    outer = Adam([direction, length, bias], rate)
    for x, (weight, offset) in batches:
        norm = np.linalg.norm(direction, axis=1, keepdims=True)
        unit = direction / norm
        labels = softmax(x @ (length * unit).T + bias)
        inner = Adam([weight, offset], rate)
        for _ in range(inner_steps):
            error = (softmax(x @ weight.T + offset) - labels) / len(x)
            inner.step([error.T @ x, error.sum(axis=0)])
        # Cross entropy of the labels, less gamma times the entropy of their mean, by the labels.
        judged = np.log(softmax(x @ weight.T + offset))
        slope = (-judged + gamma * (np.log(labels.mean(axis=0)) + 1)) / len(x)
        slope = labels * (slope - (slope * labels).sum(axis=1, keepdims=True))
        by_weight = slope.T @ x
        along = (by_weight * unit).sum(axis=1, keepdims=True)
        outer.step([length / norm * (by_weight - along * unit), along, slope.sum(axis=0)])
    norm = np.linalg.norm(direction, axis=1, keepdims=True)
    return length * direction / norm, bias
