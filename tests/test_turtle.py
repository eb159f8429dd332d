"""TURTLE against its definition, and what the size of batches changes."""

import numpy as np
import pytest
import torch
from reference_turtle import turtle

from shardsieve.train import turtle as tested
from shardsieve.train.turtle import TurtleConfig, task_encoders


def points(count, clusters=3):
    rng = np.random.default_rng(0)
    middles = 3 * rng.normal(size=(clusters, 8))
    return (middles[np.arange(count) % clusters] + rng.normal(size=(count, 8))).astype(np.float32)


@pytest.mark.parametrize(
    "how",
    [{}, {"gamma": 0.0, "inner_steps": 1}, {"batch_size": 15, "learning_rate": 1e-2}],
    ids=str,
)
def test_it_is_the_one_of_its_definition(how, monkeypatch):
    drawn, batches = [], []
    fresh, step = tested._fresh, tested._Task.step

    def noted(*given):
        made = fresh(*given)
        drawn.append([part.numpy().astype(np.float64) for part in made])
        return made

    monkeypatch.setattr(tested, "_fresh", noted)
    monkeypatch.setattr(
        tested._Task, "step", lambda self, x, draw: (batches.append(x.numpy()), step(self, x, draw))
    )
    config = TurtleConfig(4, epochs=3, **how)
    *_, (weight, bias) = task_encoders(torch.from_numpy(points(45)), config)
    wanted = turtle(
        drawn[0],
        list(zip(batches, drawn[1:], strict=True)),
        gamma=config.gamma,
        inner_steps=config.inner_steps,
        rate=config.learning_rate,
    )
    np.testing.assert_allclose(weight, wanted[0], atol=1e-5)
    np.testing.assert_allclose(bias, wanted[1], atol=1e-5)


@pytest.mark.parametrize(("count", "batch_size"), [(60, 60), (61, 60), (121, 40)])
def test_seeds_that_fill_no_batch_do_not_drive_the_classes_together(count, batch_size):
    rows = torch.from_numpy(points(count))
    config = TurtleConfig(3, epochs=100, batch_size=batch_size, learning_rate=1e-2)
    *_, (weight, bias) = task_encoders(rows, config)
    assert (rows @ weight.T + bias).softmax(dim=1).max(dim=1).values.mean() > 0.9
