"""One of two real processes: a stepper that loaded a state steps on as the one that saved it."""

import copy

import torch

from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig
from shardsieve.train.images import Batch
from shardsieve.train.launch import make_accelerator
from shardsieve.train.nets import load_model
from shardsieve.train.stepping import Stepper


def batch_of(place, rank):
    draw = torch.Generator().manual_seed(10 * place + rank)
    images = torch.randint(0, 256, (8, 1, 8, 8), generator=draw, dtype=torch.uint8)
    labels = torch.randint(0, 3, (8,), generator=draw)
    return Batch(images, labels, torch.arange(8), torch.ones(8))


def step(stepper, place):
    batch = batch_of(place, stepper.accelerator.process_index)
    stepper.batch(batch, epoch=0, place=place, share=1.0, last=True)
    stepper.update(0.3)


def main():
    accelerator, config = make_accelerator(), TrainConfig(epochs=1, size=8, channels=1)
    for method in ("pgd", "trades"):
        torch.manual_seed(0)
        how = {"adversary": Adversary(method=method, steps=2)}
        stepper = Stepper(load_model("light", 3, 1), config, accelerator, **how)
        step(stepper, 0)
        states = [copy.deepcopy(stepper.state_dict())]
        torch.distributed.broadcast_object_list(states, src=0)
        step(stepper, 1)
        other = Stepper(load_model("light", 3, 1), config, accelerator, **how)
        other.load_state_dict(states[0])
        step(other, 1)
        for name, one in stepper.bare.named_parameters():
            assert torch.equal(one, other.bare.get_parameter(name)), (method, name)
    accelerator.end_training()


if __name__ == "__main__":
    main()
