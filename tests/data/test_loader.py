import pickle

import pytest
import torch
from torch import multiprocessing

from shrinkage.core.errors import InputError
from shrinkage.data import Split, batches

SPLIT = Split(torch.arange(20, dtype=torch.uint8).reshape(10, 2), torch.arange(10))


def order(loader, epoch=None):
    if epoch is not None:
        loader.sampler.set_epoch(epoch)
    return torch.cat([y for _, y in loader]).tolist()


def test_items_are_whole_batches_in_order():
    items = list(batches(SPLIT, 4, shuffle=False))
    assert [len(x) for x, _ in items] == [4, 4, 2]
    assert all(isinstance(item, tuple) for item in items)
    assert torch.equal(torch.cat([x for x, _ in items]), SPLIT.x)
    assert torch.equal(torch.cat([y for _, y in items]), SPLIT.y)


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [4, 4, 2]), (True, [4, 4])])
def test_the_last_batch_and_the_length(drop_last, sizes):
    loader = batches(SPLIT, 4, shuffle=True, drop_last=drop_last)
    assert [len(x) for x, _ in loader] == sizes
    assert len(loader) == len(sizes)


def test_shuffling_permutes_and_keeps_examples_with_their_labels():
    loader = batches(SPLIT, 3, shuffle=True)
    assert sorted(order(loader)) == list(range(10))
    assert order(loader) != list(range(10))
    assert all(torch.equal(x, SPLIT.x[y]) for x, y in loader)


def test_the_order_is_a_function_of_seed_and_epoch_only():
    loader = batches(SPLIT, 3, shuffle=True, seed=1)
    third = order(loader, 3)
    assert order(loader, 0) != third
    assert order(loader, 3) == third
    assert order(batches(SPLIT, 5, shuffle=True, seed=1), 3) == third
    torch.manual_seed(99)
    assert order(batches(SPLIT, 3, shuffle=True, seed=1), 3) == third
    assert order(batches(SPLIT, 3, shuffle=True, seed=3), 1) != third


def test_iterating_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    order(batches(SPLIT, 3, shuffle=True))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_loader_can_be_pickled():
    loader = pickle.loads(pickle.dumps(batches(SPLIT, 3, shuffle=True, seed=5)))
    assert order(loader, 2) == order(batches(SPLIT, 3, shuffle=True, seed=5), 2)


def _put_order(rank, loader, queue):
    queue.put(order(loader, 1))


def test_the_loader_can_be_sent_to_a_spawned_process():
    loader = batches(SPLIT, 3, shuffle=True)
    queue = multiprocessing.get_context("spawn").Queue()
    multiprocessing.spawn(_put_order, (loader, queue))
    assert queue.get(timeout=60) == order(loader, 1)


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_a_batch_size_that_is_none_is_an_error(size):
    with pytest.raises(InputError, match="batch_size must be a positive whole number"):
        batches(SPLIT, size, shuffle=True)


def test_dropping_the_only_batch_is_an_error():
    with pytest.raises(InputError, match="leaves no batch of 10 examples"):
        batches(SPLIT, 11, shuffle=True, drop_last=True)


def test_a_negative_seed_is_an_error():
    with pytest.raises(InputError, match="must not be negative, got -1"):
        batches(SPLIT, 2, shuffle=True, seed=-1)
