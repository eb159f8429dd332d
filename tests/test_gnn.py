import numpy as np
import pytest
import torch
from torch_geometric.nn import GCNConv

from shardsieve.extrapolate import GNN, measure
from shardsieve.extrapolate.gnn import coefficients, drawn, forward, knn_graph


def clouds(count, seed=0):
    """Points on a line in 4 dimensions, whose score varies smoothly along it."""
    generator = np.random.default_rng(seed)
    along = generator.uniform(0, 6, count)
    points = np.stack([along, np.sin(along), np.cos(along), along / 2], axis=1)
    points += generator.normal(0, 0.05, points.shape)
    return points.astype(np.float32), np.sin(along).astype(np.float32)


def test_the_graph_is_every_nodes_nearest_others():
    points, _ = clouds(40)
    ids, weights = knn_graph(points, 5)
    for node in range(40):
        distances = np.linalg.norm(points - points[node], axis=1)
        distances[node] = np.inf
        nearest = np.sort(distances)[:5]
        np.testing.assert_allclose(distances[ids[node]], nearest, rtol=1e-4)
        np.testing.assert_allclose(weights[node], np.exp(-nearest / 2), rtol=1e-4)


def test_equal_points_are_not_their_own_neighbours():
    ids, weights = knn_graph(np.zeros((9, 3), dtype=np.float32), 4)
    assert ids.shape == (9, 4)
    assert (ids != np.arange(9)[:, None]).all()
    assert (weights == 1).all()


def test_layer_wise_inference_equals_torch_geometrics_full_batch():
    torch.manual_seed(0)
    points, _ = clouds(60)
    ids, weights = (torch.from_numpy(a) for a in knn_graph(points, 6))
    layers = torch.nn.ModuleList([GCNConv(4, 16), GCNConv(16, 8), GCNConv(8, 1)])
    edges = torch.stack([ids.flatten(), torch.arange(60).repeat_interleave(6)])
    hidden = torch.from_numpy(points)
    with torch.no_grad():
        for layer in layers:
            hidden = hidden if layer is layers[0] else hidden.relu()
            hidden = layer(hidden, edges, weights.flatten())
    ours = forward(layers, torch.from_numpy(points), ids, weights)
    torch.testing.assert_close(ours, hidden[:, 0], rtol=1e-4, atol=1e-5)


def test_drawn_neighbours_sum_right_on_average():
    points, _ = clouds(30)
    ids, weights = (torch.from_numpy(a) for a in knn_graph(points, 8))
    edges, _ = coefficients(ids, weights)
    draw, total = torch.Generator().manual_seed(0), torch.zeros(30)
    for _ in range(3000):
        total += drawn(ids, edges, 3, draw)[1].sum(dim=1)
    torch.testing.assert_close(total / 3000, edges.sum(dim=1), rtol=0.03, atol=0.01)


@pytest.mark.slow
def test_it_learns_a_smooth_score_and_repeats_itself():
    points, values = clouds(700)
    seeds, rest = slice(0, 300), slice(300, None)

    def fitted():
        model = GNN(k=10, epochs=12, dropout=0.1)
        return model.fit(points[seeds], values[seeds], rest=points[rest])

    state = torch.get_rng_state()
    predicted = fitted().predict(points[rest])
    assert torch.equal(torch.get_rng_state(), state)
    assert predicted.dtype == np.float32
    assert measure(values[rest], predicted).spearman > 0.9
    np.testing.assert_array_equal(fitted().predict(points[rest]), predicted)


@pytest.mark.slow
def test_labels_are_features():
    generator = np.random.default_rng(0)
    points = generator.normal(size=(400, 3)).astype(np.float32)
    labels = generator.integers(0, 2, 400)
    values = labels.astype(np.float32)
    how = {"k": 3, "epochs": 40, "dropout": 0.0, "learning_rate": 1e-2}
    told = GNN(**how).fit(points[:200], values[:200], labels=labels[:200])
    untold = GNN(**how).fit(points[:200], values[:200])
    assert measure(values[200:], told.predict(points[200:], labels[200:])).pearson > 0.3
    assert abs(measure(values[200:], untold.predict(points[200:])).pearson) < 0.2


def test_bad_input_is_refused():
    points, values = clouds(20)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        GNN(k=0)
    with pytest.raises(ValueError, match="must be fitted"):
        GNN().predict(points)
    with pytest.raises(ValueError, match="at least 3 seeds, got 2"):
        GNN().fit(points[:2], values[:2])
    model = GNN(k=2, epochs=1).fit(points, values, labels=np.zeros(20, dtype=np.int64))
    with pytest.raises(ValueError, match="labels must be given for all nodes or for none"):
        model.predict(points)
    with pytest.raises(ValueError, match="labels must lie below 1"):
        model.predict(points[:1], [3])
