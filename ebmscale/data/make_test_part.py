"""A test part for a source that has none: a fixed choice of its train samples, by a hash of their keys."""

import dataclasses
from collections.abc import Iterator

from ebmscale.data.formats import Record, Source
from ebmscale.data.shard_index import key_hash
from ebmscale.errors import ConfigError, DataError

SALT = "packed test/"  # makes this choice independent of which samples are validation


def with_test_part(source: Source, fraction: float) -> Source:
    """The source with that share of its train samples as part test; the test samples come last.

    The key of a sample alone decides, so the choice stays when samples are added.

    Args:
        source: without a test part.
        fraction: share of the train samples, above 0 and below 1.

    Raises:
        ConfigError: the source has a test part already, or the fraction is not between 0 and 1.
        DataError: no sample would be left in one of the two parts.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"--test-fraction is {fraction:g}; it must be above 0 and below 1.")
    if source.counts.get("test"):
        raise ConfigError(
            f"{source.name} has a test part of {source.counts['test']:,} samples already; leave out --test-fraction."
        )

    def is_test(record: Record) -> bool:
        return record.part == "train" and key_hash(SALT + record.key) < fraction

    def records() -> Iterator[Record]:
        yield from (record for record in source.records() if not is_test(record))
        yield from (record._replace(part="test") for record in source.records() if is_test(record))

    num_test = sum(map(is_test, source.records()))
    num_train = source.counts.get("train", 0) - num_test
    if not (num_test and num_train):
        raise DataError(
            f"--test-fraction {fraction:g} of {source.name} leaves {num_train:,} samples for training and {num_test:,} "
            "for the test; choose another share or a larger set."
        )
    return dataclasses.replace(source, counts=source.counts | {"train": num_train, "test": num_test}, records=records)
