import copy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shardsieve.train.averaging import RunningAverage


def changing(model):
    """Steps of some training, whose batch normalisation counts its batches."""
    torch.manual_seed(1)
    while True:
        with torch.no_grad():
            for values in model.parameters():
                values.add_(torch.randn_like(values))
        yield model(torch.randn(8, 3))


def test_the_average_is_torchs_to_the_bit_also_when_it_goes_on_from_a_state():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    torchs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    ours, steps = RunningAverage(model, torch.device("cpu"), 0.9), changing(model)
    start = copy.deepcopy(ours.state_dict())
    for number in range(8):
        next(steps)
        if number == 4:
            state, ours = ours.state_dict(), RunningAverage(model, torch.device("cpu"), 0.9)
            ours.load_state_dict(state)
        for average in (torchs, ours):
            average.update_parameters(model)
        assert ours.state_dict().keys() == torchs.state_dict().keys()
        for name, values in torchs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], values), name
    ours.load_state_dict(start)
    ours.update_parameters(model)
    assert torch.equal(ours.module[0].weight, model[0].weight)
