import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shardsieve.extrapolate import GNN, measure
from shardsieve.extrapolate.graph import Graph, drawn, knn_graph
from shardsieve.extrapolate.inference import apart, forward, forward_and_tables
from shardsieve.extrapolate.layers import KINDS
from shardsieve.extrapolate.ranks import Ranks
from shardsieve.extrapolate.sampling import Hop, Sampler, _active


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


def setup(kind, sizes=(4, 16, 8, 1)):
    torch.manual_seed(0)
    points, _ = clouds(60)
    ids, weights = (torch.from_numpy(a) for a in knn_graph(points, 6))
    layers = torch.nn.ModuleList(map(KINDS[kind], sizes, sizes[1:]))
    for layer in layers:
        torch.nn.init.normal_(layer.lin_l.bias if kind == "sage" else layer.bias)
    return torch.from_numpy(points), ids, weights, layers


def by_torch_geometric(kind, layers, points, ids, weights):
    edges = torch.stack([ids.flatten(), torch.arange(len(ids)).repeat_interleave(ids.shape[1])])
    hidden = points
    for layer in layers:
        hidden = hidden if layer is layers[0] else hidden.relu()
        hidden = layer(hidden, edges, weights.flatten()) if kind == "gcn" else layer(hidden, edges)
    return hidden[:, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_layer_wise_inference_equals_torch_geometrics_full_batch(kind):
    points, ids, weights, layers = setup(kind)
    with torch.no_grad():
        want = by_torch_geometric(kind, layers, points, ids, weights)
    ours = forward(layers, points, Graph.of(ids, weights))
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_mini_batches_of_all_neighbours_equal_torch_geometrics_outputs_and_gradients(kind):
    points, ids, weights, layers = setup(kind)
    roots = torch.tensor([3, 41, 7])
    graph = Graph.of(ids, weights)
    sampler = Sampler(layers, points, graph, fan_out=(6, 6), draw=torch.Generator())
    ours = sampler.outputs(sampler.around(roots))
    want = by_torch_geometric(kind, layers, points, ids, weights)[roots]
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-5)
    parameters = list(layers.parameters())
    gradients = zip(*(torch.autograd.grad(o.sum(), parameters) for o in (ours, want)), strict=True)
    for got, right in gradients:
        torch.testing.assert_close(got, right, rtol=1e-3, atol=1e-4)
    if sampler.first is not None:
        whole = forward(layers, points, graph, first=sampler.first)
        torch.testing.assert_close(whole, forward(layers, points, graph), rtol=1e-4, atol=1e-5)


@given(count=st.integers(0, 50), size=st.integers(1, 60))
def test_ranks_share_all_rows_evenly_and_each_once(count, size):
    shares = [Ranks(rank, size).share(count) for rank in range(size)]
    assert [row for share in shares for row in range(count)[share]] == list(range(count))
    assert {len(range(count)[share]) for share in shares} <= {count // size, -(-count // size)}
    assert shares == [Ranks(0, size).share(count, rank) for rank in range(size)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 3, 7])
def test_shares_of_a_batch_make_its_outputs_and_gradients_together(kind, size):
    points, ids, weights, layers = setup(kind)
    graph, roots = Graph.of(ids, weights), torch.tensor([3, 41, 7, 22, 8])
    sampler = Sampler(layers, points, graph, fan_out=(3, 2), draw=torch.Generator())

    def made(ranks):
        sampler.draw.manual_seed(1)
        sampler.ranks = ranks
        torch.manual_seed(2)
        around = sampler.around(roots)
        outputs = sampler.outputs(around, 0.5)
        layers.zero_grad()
        outputs.square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in layers.parameters()]
        return outputs.detach(), gradients, len(around.hops[-1].nodes)

    want, right, nodes = made(Ranks())
    parts = [made(Ranks(rank, size)) for rank in range(size)]
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), want)
    for whole, *shared in zip(right, *(part[1] for part in parts), strict=True):
        torch.testing.assert_close(sum(shared), whole, rtol=1e-4, atol=1e-5)
    assert max(part[2] for part in parts) < nodes


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_that_no_edge_leaves_are_predicted_from_tables(kind):
    points, ids, weights, layers = setup(kind)
    inner = 40
    ids, weights = ids % inner, weights.contiguous()
    graph = Graph.of(ids, weights)
    want = forward(layers, points, graph)
    tables, first = forward_and_tables(layers, points[:inner], graph.part(slice(inner)))
    torch.testing.assert_close(first, want[:inner], rtol=1e-4, atol=1e-5)
    rest = apart(layers, tables, points[inner:], graph.part(slice(inner, None)))
    torch.testing.assert_close(rest, want[inner:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_tables_lose_little(kind, monkeypatch):
    points, ids, weights, layers = setup(kind)
    graph = Graph.of(ids, weights)
    exact = forward(layers, points, graph)
    monkeypatch.setattr("shardsieve.extrapolate.inference._LARGE", 1)
    monkeypatch.setattr("shardsieve.extrapolate.inference._ROWS", 7)
    half = forward(layers, points.half(), graph)
    assert not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_everywhere_and_keeps_the_mean(dropout):
    torch.manual_seed(0)
    hop = Hop(*5 * [torch.zeros(0)])
    dropped = _active(torch.ones(4000, 34), hop, dropout)
    assert set(dropped.unique().tolist()) == {0, float(torch.ones(1) / (1 - dropout))}
    np.testing.assert_allclose(dropped.mean(dim=0), 1, atol=0.25)
    assert dropped.mean() == pytest.approx(1, abs=0.03)
    columns = np.corrcoef(dropped.T.numpy()) - np.eye(34)
    assert np.abs(columns).max() < 0.08
    assert torch.equal(_active(-torch.ones(5, 3), hop, dropout), torch.zeros(5, 3))


def test_drawn_neighbours_sum_right_on_average():
    points, _ = clouds(30)
    ids, weights = (torch.from_numpy(a) for a in knn_graph(points, 8))
    edges = Graph.of(ids, weights).edges
    draw, total = torch.Generator().manual_seed(0), torch.zeros(30)
    for _ in range(3000):
        total += drawn(ids, edges, 3, draw)[1].sum(dim=1)
    torch.testing.assert_close(total / 3000, edges.sum(dim=1), rtol=0.03, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{}, {"graph": "seeds", "layer": "sage"}, {"graph": "seeds", "layer": "gat"}]
)
def test_it_learns_a_smooth_score_and_repeats_itself(how):
    points, values = clouds(700)
    seeds, rest = slice(0, 300), slice(300, None)

    def fitted():
        model = GNN(k=10, epochs=12, dropout=0.1, **how)
        return model.fit(points[seeds], values[seeds])

    state = torch.get_rng_state()
    predicted = fitted().predict(points[rest])
    assert torch.equal(torch.get_rng_state(), state)
    assert predicted.dtype == np.float32
    assert measure(values[rest], predicted).spearman > 0.9
    np.testing.assert_array_equal(fitted().predict(points[rest]), predicted)


def test_the_rest_is_predicted_in_the_graph_that_was_trained_on():
    points, values = clouds(160)
    how = {"k": 5, "epochs": 2, "fan_out": (5, 5)}
    model = GNN(**how).fit(points[:60], values[:60], rest=points[60:])
    np.testing.assert_array_equal(model.predict_rest(), model.predict(points[60:]))
    alone = GNN(**how).fit(points[:60], values[:60])
    assert np.abs(alone.predict(points[60:]) - model.predict_rest()).max() > 1e-4
    with pytest.raises(ValueError, match="rest must be given to fit, got none; use predict"):
        alone.predict_rest()


@pytest.mark.slow
def test_labels_are_features():
    generator = np.random.default_rng(0)
    points = generator.normal(size=(400, 3)).astype(np.float32)
    labels = generator.integers(0, 2, 400)
    values = labels.astype(np.float32)
    how = {"k": 3, "epochs": 40, "patience": 40, "dropout": 0.0, "learning_rate": 1e-2}
    told = GNN(**how).fit(points[:200], values[:200], labels=labels[:200])
    untold = GNN(**how).fit(points[:200], values[:200])
    assert measure(values[200:], told.predict(points[200:], labels[200:])).pearson > 0.3
    assert abs(measure(values[200:], untold.predict(points[200:])).pearson) < 0.2


@pytest.mark.parametrize("graph", ["all", "seeds"])
def test_a_class_without_a_seed_is_unknown(graph):
    points, values = clouds(40)
    seeds, rest = slice(0, 25), points[25:]
    labels = np.arange(25) % 3 * 2  # 0, 2 and 4
    model = GNN(k=3, epochs=1, graph=graph).fit(points[seeds], values[seeds], labels=labels)
    want = model.predict(rest, np.full(15, -1))
    for unseen in (1, 3, 5, 2**40):
        np.testing.assert_array_equal(model.predict(rest, np.full(15, unseen)), want)
    assert np.abs(model.predict(rest, np.full(15, 2)) - want).max() > 1e-4
    none = GNN(k=3, epochs=1, graph=graph).fit(points[seeds], values[seeds], labels=[-1] * 25)
    bare = GNN(k=3, epochs=1, graph=graph).fit(points[seeds], values[seeds])
    np.testing.assert_array_equal(none.predict(rest, [0] * 15), bare.predict(rest))


def test_training_stops_when_the_held_out_seeds_stop_gaining(monkeypatch):
    points, values = clouds(100)
    epochs, permute = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: epochs.append(1) or permute(*a, **k))
    monkeypatch.setattr("shardsieve.extrapolate.gnn.pearson", lambda *_: 0.5)
    GNN(k=3, epochs=30, patience=4).fit(points, values)
    assert len(epochs) == 5


def test_in_a_graph_of_seeds_a_prediction_depends_on_its_row_alone():
    points, values = clouds(120)
    labels = (points[:, 0] > 3).astype(np.int64)
    model = GNN(k=5, epochs=2, graph="seeds").fit(points[:60], values[:60], labels=labels[:60])
    whole = model.predict(points[60:], labels[60:])
    alone = [model.predict(points[i : i + 1], labels[i : i + 1])[0] for i in range(60, 120, 7)]
    np.testing.assert_allclose(whole[::7], alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="rest must be left out of a graph of seeds"):
        model.fit(points, values, rest=points)


def test_a_search_chosen_once_serves_all_predictions(monkeypatch):
    points, values = clouds(1900)
    points = np.concatenate([points, np.roll(points, 1, axis=0), points**2], axis=1)
    model = GNN(k=5, epochs=1, graph="seeds").fit(points[:1500], values[:1500])
    exact = model.predict(points[1500:])
    assert model.choose(points[1500:]).search == "exact"
    monkeypatch.setattr("shardsieve.extrapolate.approximate._EXACT_PAIRS", 1)
    chosen = model.choose(points[1500:], 10_000)
    assert (chosen.search, chosen.recall > 0.98) == ("scan", True)
    monkeypatch.setattr("shardsieve.extrapolate.gnn.finder_for", None)
    np.testing.assert_allclose(model.predict(points[1500:]), exact, atol=0.1)


def test_bad_input_is_refused():
    points, values = clouds(20)
    with pytest.raises(ValueError, match=r"rank must lie in \[0, 2\) for 2 ranks, got 2"):
        Ranks(2, 2)
    with pytest.raises(ValueError, match="graph must be 'seeds' and fitted to choose a search"):
        GNN().choose(points)
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, got 0"):
        GNN(k=0)
    with pytest.raises(ValueError, match=r"epochs must be a whole number of at least 1, got 2\.5"):
        GNN(epochs=2.5)
    with pytest.raises(ValueError, match="layer must be one of gcn, sage, gat, got 'gin'"):
        GNN(layer="gin")
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1"):
        GNN(dropout=1.0)
    with pytest.raises(ValueError, match="fan_out must be two numbers, one per hop, got 10"):
        GNN(fan_out=10)
    with pytest.raises(ValueError, match="learning_rate must be above 0, got -1"):
        GNN(learning_rate=-1)
    with pytest.raises(ValueError, match="must be fitted"):
        GNN().predict(points)
    with pytest.raises(ValueError, match="at least 3 seeds, got 2"):
        GNN().fit(points[:2], values[:2])
    model = GNN(k=2, epochs=1).fit(points, values, labels=np.zeros(20, dtype=np.int64))
    with pytest.raises(ValueError, match="labels must be given for all nodes or for none"):
        model.predict(points)
