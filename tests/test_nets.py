"""Networks of this project, and what is made of anybody's own."""

import pytest
import torch
from torch import nn

from shardsieve.train.encoder import load_encoder
from shardsieve.train.nets import check_size, embed_and_classify, light, with_trunk


def test_a_built_in_network_takes_images_down_to_its_smallest_side():
    check_size("light", 4)
    assert light(2).eval()(torch.zeros(1, 3, 4, 4)).shape == (1, 2)
    with pytest.raises(ValueError, match="at least 4 pixels for model light, got 3"):
        check_size("light", 3)
    for height, width in ((3, 8), (8, 3)):
        with pytest.raises(ValueError, match=f"at least 4 .* got images of {width} x {height}"):
            light(2)(torch.zeros(1, 3, height, width))


def test_embeddings_and_logits_are_of_single_precision_whatever_a_network_computes_in():
    images = torch.rand(2, 3, 8, 8)
    of_others = with_trunk(nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Linear(5, 3)), 3)
    for net in (light(3), of_others, nn.Sequential(nn.Flatten(), nn.Linear(192, 3))):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            points, logits = embed_and_classify(net.eval(), images)
        assert (points.dtype, logits.dtype) == (torch.float32, torch.float32)


def test_a_network_embeds_what_its_last_head_is_given_and_keeps_no_batch():
    body, head = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), nn.Linear(3, 3)
    net, images = with_trunk(nn.Sequential(body, head), 3), torch.rand(2, 3, 8, 8)
    points, logits = net.both(images)
    assert torch.equal(points, body(images))
    assert torch.equal(logits, head(body(images)))
    assert not head._forward_pre_hooks


def test_a_network_without_a_run_is_the_same_at_every_call_and_leaves_the_random_numbers():
    weights = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        network = load_encoder("light", num_classes=2).network
        assert torch.equal(torch.get_rng_state(), before)
        assert not network.training
        weights.append(network.classifier.weight)
    assert torch.equal(*weights)
