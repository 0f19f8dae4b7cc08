"""Two processes, one model: the masks agree without a word between them."""

import os

import torch
from torch import distributed, multiprocessing, nn
from torch.optim import AdamW

from nets import MLP, batch, fit
from shrinkage import HALO


def train_one(rank, folder):
    torch.set_num_threads(1)
    # They meet at a file: a port found free may be taken again, by the other's own attempts to reach it.
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(MLP())
    optimizer = AdamW(model.parameters(), lr=0.01)
    halo = HALO(model, 0.9, 40).attach(optimizer)
    fit(model, optimizer, range(45), lambda step: batch(2 * step + rank))
    result = halo.finalize()
    torch.save([result.zeros, halo.masks(), model.module.state_dict(), halo.state_dict()], f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)  # torch 2.13 sometimes aborts when a process that used gloo takes its own static objects down


def test_two_processes_fix_the_same_pattern(tmp_path):
    multiprocessing.spawn(train_one, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    zeros, masks, weights, state = ranks[0]
    assert zeros == round(0.9 * 960) == ranks[1][0]
    assert all(torch.equal(mask, ranks[1][1][name]) for name, mask in masks.items())
    assert all(torch.equal(weight, ranks[1][2][name]) for name, weight in weights.items())
    alone = MLP()
    alone.load_state_dict(weights)
    halo = HALO(alone, 0.9, 40)
    halo.load_state_dict(state)
    halo.attach(AdamW(alone.parameters()))
    assert halo.finalize().zeros == zeros
