"""Commands that make the features of a Frechet distance."""

import time

import click

from ebmscale.cli.group import Count, NumberRange, cli, console, example
from ebmscale.cli.outputs import ADDRESS, output_folder
from ebmscale.cli.progress import Steps


@cli.group(epilog=example("ebmscale features train data/mnist features/mnist"))
def features() -> None:
    """Make features for the Frechet distance."""


@features.command(epilog=example("ebmscale features train data/cifar10 features/cifar10 --width 32 --epochs 8"))
@click.argument("data", metavar="DATA", type=ADDRESS)
@click.argument("out", metavar="OUT", type=ADDRESS)
@click.option("--name", help="Name of the metric FD-NAME (default: the set's name with -classifier).")
@click.option("--width", type=Count(1), default=16, show_default=True, help="Channels of the first layer.")
@click.option(
    "--epochs", type=NumberRange(0, 1e6, min_open=True), default=3.0, show_default=True, help="Passes over the set."
)
@click.option("--batch-size", type=Count(1), default=128, show_default=True, help="Images of an update.")
@click.option(
    "--rate", type=NumberRange(0, 1e6, min_open=True), default=3e-3, show_default=True, help="Learning rate of AdamW."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of everything random.")
def train(
    data: str, out: str, name: str | None, width: int, epochs: float, batch_size: int, rate: float, seed: int
) -> None:
    """Train a small classifier on the labels of the packed set DATA.

    Its 64 penultimate features are those of the metric FD-NAME (`ebmscale evaluate RUN --features
    OUT`). OUT gets feature_net.safetensors and feature_net.json: name, sha256, accuracy on held-out images, and these
    options.
    """
    from ebmscale.data.manifest import Manifest  # noqa: PLC0415 (commands import what they use)
    from ebmscale.evaluate.classifier import (  # noqa: PLC0415
        Recipe,
        held_out_split,
        measure_accuracy,
        save_classifier,
        train_classifier,
    )
    from ebmscale.storage import Storage  # noqa: PLC0415

    recipe = Recipe(width, epochs, batch_size, rate, seed=seed)
    source, target, began_s = Storage.at(data), output_folder(out, "feature network"), time.process_time()
    manifest = Manifest.load(source)
    with Steps("training the classifier", "updates") as show:
        network = train_classifier(source, manifest, recipe, lambda done, total, _: show(done, total))
    train_s, split = time.process_time() - began_s, held_out_split(manifest)
    accuracy, num_images = measure_accuracy(network, source, manifest, split)
    held_out = f"{split}, {num_images} images"
    about = save_classifier(
        target, network, manifest, recipe, accuracy, held_out, name or f"{manifest.name}-classifier"
    )
    console.print(f"FD-{about.name}: accuracy {accuracy:.4f} ({held_out}), {train_s:.0f} CPU seconds of training")
    console.print(f"{target.url}: sha256 {about.sha256}")
