"""Trains a small classifier on the labels of a packed set; its 64 penultimate features are those of `FD-<name>`.

    python tools/feature_net.py data/mnist features/mnist
    python tools/feature_net.py data/cifar10 features/cifar10 --width 32 --epochs 8
    ebmscale evaluate runs/mnist --metrics frechet --features features/mnist

Writes feature_net.safetensors and feature_net.json (name, sha256, accuracy on the test part, recipe).
"""

import argparse
import time

from ebmscale.data.manifest import Manifest
from ebmscale.errors import EbmscaleError
from ebmscale.evaluate.classifier import Recipe, held_out_split, measure_accuracy, save_classifier, train_classifier
from ebmscale.storage import Storage
from ebmscale.terminal import Terminal, progress_on

console = Terminal()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="address of a packed, labelled set of images")
    parser.add_argument("out", help="folder or address for the classifier")
    parser.add_argument("--name", help="name of the metric FD-NAME (default: the set's name with -classifier)")
    parser.add_argument("--width", type=int, default=Recipe.width)
    parser.add_argument("--epochs", type=float, default=Recipe.epochs)
    parser.add_argument("--batch-size", type=int, default=Recipe.batch_size)
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    recipe = Recipe(given.width, given.epochs, given.batch_size, given.rate, seed=given.seed)
    try:
        run(given.data, given.out, given.name, recipe)
    except EbmscaleError as error:
        Terminal(stderr=True).print(f"error: {error}")
        raise SystemExit(error.exit_code) from None


def run(url: str, out: str, name: str | None, recipe: Recipe) -> None:
    data, target, began_s = Storage.at(url), Storage.at(out), time.process_time()
    target.probe("address")
    manifest = Manifest.load(data)
    with progress_on(console) as progress:
        task = progress.add_task("training")
        network = train_classifier(
            data, manifest, recipe, lambda done, total, _: progress.update(task, completed=done, total=total)
        )
    train_s = time.process_time() - began_s
    split = held_out_split(manifest)
    accuracy, num_images = measure_accuracy(network, data, manifest, split)
    held_out = f"{split}, {num_images} images"
    about = save_classifier(
        target, network, manifest, recipe, accuracy, held_out, name or f"{manifest.name}-classifier"
    )
    console.print(f"FD-{about.name}: accuracy {accuracy:.4f} ({held_out}), {train_s:.0f} CPU seconds of training")
    console.print(f"{target.url}: sha256 {about.sha256}")


if __name__ == "__main__":
    main()
