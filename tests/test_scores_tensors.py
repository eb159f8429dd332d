"""What is made of torch tensors, of any type and device, is made of the numbers that they hold."""

import math
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from tars import write_shards

import shardsieve as ss
from shardsieve import scores
from shardsieve.extrapolate import KNN, Direct, Fused, by_class, match_quantiles, spearman
from shardsieve.scores.inputs import plain

RNG = np.random.default_rng(0)
P_TRUE = RNG.random((12, 4))
PROBS = RNG.dirichlet(np.ones(3), size=(12, 4))
LABELS = RNG.integers(3, size=4)
RIGHT = RNG.random((12, 4)) < 0.5
NEAR, APART = RNG.integers(4, size=(4, 2)), RNG.random((4, 2))

CALLS = {
    "dynamic_uncertainty": lambda as_: scores.dynamic_uncertainty(as_(P_TRUE)),
    "tdds": lambda as_: scores.tdds(as_(PROBS)),
    "el2n": lambda as_: scores.el2n(as_(PROBS), as_(LABELS)),
    "aum": lambda as_: scores.aum(as_(20 * PROBS - 9), as_(LABELS)),
    "forgetting": lambda as_: scores.forgetting(as_(RIGHT), presented=as_(~RIGHT)),
    "message_passing": lambda as_: scores.message_passing(as_(P_TRUE[0]), as_(NEAR), as_(APART)),
    "prototypicality": lambda as_: scores.prototypicality(as_(PROBS[0]), as_(PROBS[1])),
    "k_means": lambda as_: scores.k_means(as_(PROBS[0]), 2),
    "from_signals": lambda as_: scores.from_signals("dyn_unc", {"p_true": as_(P_TRUE)}).values,
    "oriented": lambda as_: scores.oriented("aum", as_(P_TRUE[0])),
    "streamed": lambda as_: streamed(as_),
    "keep_top": lambda as_: ss.keep_top(as_(P_TRUE[0]), 0.5),
    "keep_class_balanced": lambda as_: ss.keep_stratified(as_(P_TRUE[0]), as_(LABELS), 0.75),
    "keep_ccs": lambda as_: ss.keep_ccs(as_(P_TRUE[0]), 0.5, difficulty=as_(P_TRUE[1])),
    "keep_beta": lambda as_: ss.keep_beta(as_(P_TRUE[0]), as_(P_TRUE[1]), 0.5),
    "keep_moderate": lambda as_: ss.keep_moderate(as_(PROBS[0]), as_(LABELS), 0.5),
    "KNN": lambda as_: predicted(KNN(2), as_),
    "KNN of rows": lambda as_: of_rows(KNN(2), as_),
    "Direct": lambda as_: predicted(Direct(), as_, as_(PROBS[1])),
    "Fused": lambda as_: predicted(Fused(2), as_, {"net": as_(np.stack(PROBS[1:3], axis=1))}),
    "taught": lambda as_: taught(as_),
    "spearman": lambda as_: np.full(2, spearman(as_(P_TRUE[0]), as_(P_TRUE[1]))),
    "match_quantiles": lambda as_: match_quantiles(as_(P_TRUE[0]), as_(P_TRUE[1])),
    "by_class": lambda as_: [
        row["spearman"] for row in by_class(as_(P_TRUE[0]), as_(P_TRUE[1]), as_(LABELS))
    ],
}


def predicted(model, as_, *signals):
    """Predictions of the seeds themselves."""
    model.fit(as_(PROBS[0]), as_(P_TRUE[0]), *signals)
    return model.predict(as_(PROBS[0]), *signals)


def of_rows(model, as_):
    """Likewise, from a list of their embeddings."""
    rows = [as_(row) for row in PROBS[0]]
    return model.fit(rows, as_(P_TRUE[0])).predict(rows)


def taught(as_):
    labels, points = as_(LABELS), as_(PROBS[0])
    model = Fused(2).fit(
        points, as_(P_TRUE[0]), as_(PROBS[1]), labels=labels, trained=as_(np.arange(4) < 2)
    )
    return model.predict(points, as_(PROBS[1]), labels=labels)


def streamed(as_):
    stream = scores.StreamingDynamicUncertainty(4)
    for row in P_TRUE:
        stream.update(as_(np.arange(4)), as_(row))
    return stream.score()


class Elsewhere(torch.Tensor):
    """A tensor on a device that numpy cannot read."""

    device = property(lambda self: torch.device("cuda", 0))

    def cpu(self):
        return self.as_subclass(torch.Tensor).detach()

    def detach(self):
        return torch.Tensor.detach(self).as_subclass(Elsewhere)

    def numpy(self):
        raise TypeError("can't convert to numpy")

    __array__ = numpy


def rounded(array, kind):
    """The numbers that a tensor of floats of this kind holds; integers and truths as they are."""
    made = torch.from_numpy(array)
    return made.to(kind) if made.is_floating_point() else made


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_tensor_scores_as_the_array_of_its_numbers(call, kind):
    def numbers(array):
        held = rounded(array, kind)
        return held.double().numpy() if held.is_floating_point() else array

    want = call(numbers)
    np.testing.assert_array_equal(call(lambda array: rounded(array, kind)), want)
    assert len(want) >= 2


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_tensor_with_a_gradient_on_another_device_scores_too(call):
    def far(array):
        made = torch.from_numpy(array)
        made = made.requires_grad_() if made.is_floating_point() else made
        return made.as_subclass(Elsewhere)

    with pytest.raises(TypeError, match="can't convert"):
        np.asarray(far(P_TRUE))
    np.testing.assert_array_equal(call(far), call(np.asarray))


def test_a_list_of_an_epochs_tensors_is_a_recording():
    epochs = [torch.from_numpy(row).bfloat16() for row in P_TRUE]
    want = scores.dynamic_uncertainty(torch.stack(epochs))
    np.testing.assert_array_equal(scores.dynamic_uncertainty(epochs), want)


def test_rules_about_types_stay():
    with pytest.raises(ValueError, match="labels must be integers, got float32"):
        scores.el2n(torch.from_numpy(PROBS), torch.ones(4, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"probs must lie in \[0, 1\], got 3.0 for sample 0"):
        scores.entropy(torch.full((2, 3), 3.0, dtype=torch.bfloat16))
    assert plain([1, 2]) == [1, 2]


def test_half_precision_losses_reach_a_policy(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [6]), tmp_path / "s.zarr")
    learned = []
    for kind in (torch.bfloat16, torch.float64):
        policy = ss.InfoBatch(num_epochs=4)
        policy.bind(store)
        policy.update(torch.from_numpy(store.ids()), torch.arange(6).to(kind).requires_grad_())
        policy.choose(1)
        learned.append(policy.learned())
    np.testing.assert_array_equal(*learned)


def far(values):
    return torch.tensor(values).as_subclass(Elsewhere)


@pytest.fixture
def policy(tmp_path):
    made = ss.InfoBatch(num_epochs=4)
    made.bind(ss.index(write_shards(tmp_path / "d", [6]), tmp_path / "s.zarr"))
    return made


def waiting(policy):
    return [values.tolist() for values in policy.state_dict()["waiting"]]


def test_losses_on_a_device_wait_as_they_were(policy):
    losses, ids = far([3.0, math.nan]), far([4, 5])
    for given in ((ids, [1.0, 2.0]), ([0, 1], losses.requires_grad_()), (far([2]), far([5.0]))):
        policy.update(*given)
    with torch.no_grad():
        losses.zero_()
        ids.zero_()
    assert waiting(policy) == [[4, 5, 0, 1, 2], [1.0, 2.0, 3.0, math.inf, 5.0]]
    policy.choose(1)
    assert policy.not_finite == 1
    np.testing.assert_array_equal(policy.learned(), [3, math.nan, 5, math.nan, 1, 2])


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(_, values):
        return 2 * values


def test_losses_on_a_device_wait_without_the_graph_that_made_them(policy, monkeypatch):
    losses = Doubled.apply(far([1.0, 2.0]).requires_grad_())
    graph = weakref.ref(losses.grad_fn)
    policy.update([0, 1], losses)
    del losses
    assert graph() is None
    assert not policy.holds_its_own  # there is nobody else
    monkeypatch.setattr("shardsieve.policy.base.world_size", lambda: 2)
    assert policy.holds_its_own
    policy.sync()
    assert not policy.holds_its_own


def test_bad_losses_on_a_device_are_refused_when_they_are_joined(policy):
    policy.update(far([1, 1]), far([1.0, 2.0]), repeats=True)
    policy.update(far([2, 2]), [1.0, 2.0])
    with pytest.raises(ValueError, match="got 3 twice"):  # at once, where they lie here
        policy.update(torch.tensor([3, 3]), torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="ids must come once per batch, got 2 twice"):
        policy.choose(1)
    policy.choose(1)  # of what was refused nothing is left
    np.testing.assert_array_equal(policy.learned(), [math.nan, 1, *[math.nan] * 4])


def test_a_state_that_is_loaded_leaves_nothing_waiting_of_before(policy):
    policy.update([0], [1.0])
    policy.sync()
    empty = {**policy.state_dict(), "waiting": [torch.zeros(0).long(), torch.zeros(0)]}
    policy.update([1], [1.0])
    policy.update(far([2]), far([1.0]))
    policy.load_state_dict(empty)
    assert waiting(policy) == [[], []]


def test_a_stored_score_may_come_as_a_tensor(tmp_path):
    store = ss.index(write_shards(tmp_path / "d", [6]), tmp_path / "s.zarr")
    store.put_score("mine", torch.arange(6).bfloat16().requires_grad_())
    assert store.score("mine").tolist() == [0, 1, 2, 3, 4, 5]


def test_who_has_no_tensor_loads_no_torch():
    code = "import sys; from shardsieve import scores; scores.margin([[.2, .8]]); "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
