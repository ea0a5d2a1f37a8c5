"""Opens a trained model from a run or from an export."""

from ebmscale.config import RunConfig
from ebmscale.density.prior import RatioSequence
from ebmscale.errors import DamagedError, StorageError
from ebmscale.model.build import build_model, build_ratio_network
from ebmscale.model.checkpoint import SavedCheckpoint
from ebmscale.model.checkpoint_reader import CheckpointReader
from ebmscale.model.export import ABOUT_FILE, NETWORKS, RATIOS, read_export
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.prior_base import BASE, base_from
from ebmscale.model.residuals import Residuals
from ebmscale.model.run_folder import check_model, load_run_config
from ebmscale.model.saved_tensors import SavedTensors, saved_tensors
from ebmscale.storage import Storage
from ebmscale.world import device_of


def load(url: str, device: str = "cpu") -> LatentModel:
    """Opens the newest valid checkpoint of a run, or an export.

    Args:
        url: a folder, or any address that fsspec reads, such as `s3://bucket/runs/digits`.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.

    Raises:
        ConfigError: there is no run at the address, or no such device.
        StorageError: it has no valid checkpoint, or the export is damaged.

    Example:
        >>> ebmscale.load("runs/digits", device="auto").sample(64).shape
        torch.Size([64, 1, 8, 8])
    """
    return open_model(Storage.at(url)).to(device_of(device))


def open_model(storage: Storage) -> LatentModel:
    """Opens the newest valid checkpoint of a run, or an export, on the CPU. Raises as `load`."""
    return _load_export(storage) if storage.exists(ABOUT_FILE) else _load_run(storage)


def _load_run(storage: Storage) -> LatentModel:
    config, store = load_run_config(storage), CheckpointReader(storage)
    model = store.newest(lambda saved: from_checkpoint(config, saved))
    if model is None and store.damaged:
        raise StorageError(
            f"The run {storage.url} has no valid checkpoint left, every one is damaged; `ebmscale inspect "
            f"{storage.url}` shows how."
        )
    if model is None:
        raise StorageError(f"The run {storage.url} has no valid checkpoint yet; train it first.")
    return model


def from_checkpoint(config: RunConfig, saved: SavedCheckpoint) -> LatentModel:
    """The model in a checkpoint, with averaged weights if the run has them. The state of the optimisers is not read.

    Raises as `saved_tensors`, and a `ConfigError` where the configuration is of another model.
    """
    check_model(config, saved)
    state = saved.state()
    tensors = saved_tensors(config, saved, state.image_shape)
    return _assemble(config, state.image_shape, saved.samples_seen, tensors, state.residuals, state.mean_square)


def _load_export(storage: Storage) -> LatentModel:
    about, config, tensors = read_export(storage)
    networks, base, ratios = (
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in (NETWORKS, BASE, RATIOS)
    )
    saved = SavedTensors(networks, base, ratios)
    return _assemble(config, about.image_shape, about.samples_seen, saved, about.residuals, about.mean_square)


def _assemble(
    config: RunConfig,
    shape: tuple[int, ...],
    samples_seen: int,
    tensors: SavedTensors,
    residuals: Residuals | None,
    mean_square: float | None,
) -> LatentModel:
    base = base_from(config.model.latent_dim, tensors.base)
    model = build_model(config, shape)
    model.load_state_dict(tensors.networks)
    model.requires_grad_(False)
    prior = RatioSequence(base, build_ratio_network(config), tensors.ratios)
    if prior.powers is not None and not bool((prior.powers > 0).all()):
        raise DamagedError(
            "A frozen ratio has a power of the prior that is not above 0, so its prior is no density; use another "
            "checkpoint, or export one again."
        )
    return LatentModel(config, model, prior, shape, samples_seen, residuals, mean_square)
