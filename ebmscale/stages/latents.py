"""What a trainer of ratios keeps of latents: recent posteriors, tables of the prior's samples, and the base p_0.

Shapes: B rows of this rank, R ratio updates of a batch, Z latent.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ebmscale.density.bases import MomentBase
from ebmscale.density.prior import Base
from ebmscale.errors import ConfigError, DivergenceError
from ebmscale.model.pieces import Piece, Span, piece, shapes_of, share_of, whole_spans
from ebmscale.model.prior_base import BASE, base_from
from ebmscale.seeds import StreamNoise, torch_generator
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.stages.stream_table import StreamTable
from ebmscale.world import World


class Latents:
    """The buffer of posteriors, the base, and other tables by stream: the `chains` of a checkpoint (a `SavedPart`).

    Args:
        base: p_0, which `fit_base` replaces where `prior.base` is `moments`.
        settings: how ratios are trained and the prior is sampled.
        world: this process's place.
        tables: what else is kept by stream, as the chains of the prior are.

    Attributes:
        base: p_0 now.
        fits_base: whether the base is yet to be fitted; no ratio is trained before.
        buffer: recent posteriors, as samples or as means and standard deviations.
        tables: the buffer and the other tables, by name.
    """

    def __init__(self, base: Base, settings: RatioSettings, world: World, tables: Mapping[str, StreamTable]):
        chains, num_streams = settings.chains, settings.num_streams
        width = 2 * base.dim if settings.amortised else base.dim
        self.base = base
        self.fits_base = chains.base == "moments"
        self.buffer = StreamTable(num_streams, settings.stages.buffer_samples // num_streams, width, world)
        self.tables = {"buffer": self.buffer, **tables}
        self._settings, self._world = settings, world
        self._base_form: dict[str, Tensor] = {}  # N(0, I) in the tensors of a base that is fitted
        if self.fits_base:
            form = MomentBase.standard(base.dim, chains.base_components * chains.base_fits)
            self._base_form = {f"{BASE}{name}": tensor for name, tensor in form.tensors().items()}

    def observe(self, posterior: Tensor, streams: Tensor) -> None:
        """Adds posteriors of the given streams (B,) to the buffer that ratios are trained on.

        Args:
            posterior: latents (B, Z); of an amortised one means and standard deviations (B, 2 Z).
            streams: of the rows.
        """
        self.buffer.add(posterior, streams)

    def draw_posteriors(self, noise: StreamNoise, streams: Tensor, num: int) -> Tensor:
        """Posterior latents (B, `num`, Z) for rows of the given streams (B,)."""
        drawn = self.buffer.draw(noise.uniform(num), streams)
        if not self._settings.amortised:
            return drawn
        mean, std = drawn.chunk(2, dim=-1)
        return mean + std * noise.normal(num, self.base.dim)

    def are_ready(self, position: int) -> bool:
        """Whether ratios may train at `samples_seen` (collective until there is something to train on)."""
        return position >= self._settings.stages.start_samples and self.buffer.is_ready()

    def is_base_due(self, position: int) -> bool:
        """Whether the base is to be fitted at `samples_seen` (collective until it has been)."""
        return self.fits_base and position >= self._settings.stages.start_samples and self.buffer.is_full()

    def fit_base(self) -> Base:
        """Fits the base to the posteriors in the buffer (collective).

        The first rank computes them from the whole buffer in the order of the streams, so that they are the same
        whatever the number of ranks.
        """
        num_streams, chains = self._settings.num_streams, self._settings.chains
        tables, size = self._world.gather(self.buffer.z), self._world.size
        rows = torch.cat([tables[stream % size][stream // size] for stream in range(num_streams)])
        mean, std = rows.chunk(2, dim=1) if self._settings.amortised else (rows, torch.zeros_like(rows))
        found: dict[str, Tensor] | None = None
        if self._world.is_first:
            generator = torch_generator(self._settings.seed, "base")
            with suppress(ValueError):
                base = MomentBase.of_posteriors(
                    mean.cpu(),
                    std.square().cpu(),
                    chains.base_components,
                    generator,
                    chains.base_fits,
                    symmetric=self._settings.maps,
                )
                found = base.tensors()
        found = self._world.broadcast(found)
        if found is None:
            raise DivergenceError(
                "The posterior latents in the buffer do not fill the latent space, or are not finite, so no base can "
                "be fitted to them; use prior.base=standard, or lower model.latent_dim or train.generator.rate."
            )
        self.base = self._on_device(base_from(self.base.dim, found))
        self.fits_base = False
        return self.base

    def _on_device(self, base: Base) -> Base:
        return base.to(self._world.device)

    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of the chains' and the buffer's tables, over all ranks, and of a fitted base."""
        tables = {f"{name}/{key}": size for name, table in self.tables.items() for key, size in table.shapes().items()}
        return tables | shapes_of(self._base_form)

    def check_shapes(self, found: Mapping[str, Sequence[int]]) -> None:
        """Refuses tables of other shapes, as an earlier version kept them of some runs, with a ConfigError."""
        wrong = [name for name, size in self.shapes().items() if torch.Size(found.get(name, ())) != size]
        if wrong:
            raise ConfigError(
                f"The checkpoint keeps {wrong[0]} in another shape than this version of ebmscale; go on with the "
                "version that began the run, or train anew under another run.name."
            )

    def share(self) -> list[Piece]:
        """This rank's share of the tables and of the base."""
        tables = [
            Piece(one.span._replace(name=f"{name}/{one.span.name}"), one.values)
            for name, table in self.tables.items()
            for one in table.share()
        ]
        base = [piece(name, tensor) for name, tensor in self._base_tensors().items()]
        return tables + share_of(base, self._world.rank, self._world.size)

    def wanted(self) -> list[Span]:
        """The spans that `restore` needs on this rank."""
        tables = [
            span._replace(name=f"{name}/{span.name}") for name, table in self.tables.items() for span in table.wanted()
        ]
        return tables + whole_spans(shapes_of(self._base_form))

    def restore(self, values: Mapping[Span, Tensor]) -> None:
        """Takes what `share` gave, on any world size; `fits_base` says already whether the base was fitted."""
        whole = {span.name.removeprefix(BASE): values[span] for span in whole_spans(shapes_of(self._base_form))}
        self.base = self._on_device(base_from(self.base.dim, {} if self.fits_base else whole))
        for name, table in self.tables.items():
            table.restore({span: values[span._replace(name=f"{name}/{span.name}")] for span in table.wanted()})

    def _base_tensors(self) -> dict[str, Tensor]:
        """The base that was fitted; before, N(0, I) in tensors of the same shapes."""
        if self.fits_base:
            return self._base_form
        return {f"{BASE}{name}": tensor for name, tensor in self.base.tensors().items()}
