"""Labels that lie sorted in the shards come out near independent.

Statistic 1: the chi-square of a batch's labels against equal shares, mean over the batches of an epoch. Independent
draws of C equally frequent classes give C - 1. Less is a batch that represents the classes better than chance.
Statistic 2: the mean length of runs of one label in the order served; independent draws give C / (C - 1).
"""

import numpy as np
import pytest

from ebmscale.data.assign import locate
from ebmscale.data.order import SampleOrder

NUM_CLASSES, PER_CLASS, PER_SHARD = 10, 5000, 1000  # a set of CIFAR-10's size in 50 shards of one class each
BATCH = 128
MOST_CHI_SQUARE = {16: 60, 64: NUM_CLASSES - 1}
"""The default of 64 streams is at least as even as chance; with 16, a batch sees 16 places of the set at a time."""


@pytest.mark.parametrize("num_streams", [16, 64])
def test_class_sorted_shards_come_out_mixed(num_streams):
    num = NUM_CLASSES * PER_CLASS
    labels = np.repeat(np.arange(NUM_CLASSES), PER_CLASS)
    order = SampleOrder(np.bincount(np.arange(num) // PER_SHARD), seed=0, num_streams=num_streams, window=512)
    for epoch in range(2):
        served = labels[serve(order, epoch)]
        counts = np.stack(
            [np.bincount(batch, minlength=NUM_CLASSES) for batch in np.split(served[: num - num % BATCH], num // BATCH)]
        )
        chi_square = ((counts - BATCH / NUM_CLASSES) ** 2).sum(1).mean() / (BATCH / NUM_CLASSES)
        run_length = num / (1 + np.count_nonzero(np.diff(served)))
        assert chi_square < MOST_CHI_SQUARE[num_streams]
        assert run_length < 1.5 * NUM_CLASSES / (NUM_CLASSES - 1)


def serve(order, epoch):
    """The samples of an epoch in the order served."""
    numbers = np.arange(epoch * order.num_samples, (epoch + 1) * order.num_samples)
    _, streams, _ = locate(numbers, order.num_samples, order.num_streams)
    served = np.empty_like(numbers)
    for stream in range(order.num_streams):
        places = np.flatnonzero(streams == stream)
        num_windows = -(-len(places) // order.window_size)
        served[places] = np.concatenate([order.window(epoch, stream, number) for number in range(num_windows)])
    return served
