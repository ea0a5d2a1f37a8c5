"""What a trainer of ratios keeps of latents: recent posteriors, tables of the prior's samples, and the base p_0.

Shapes: B rows of this rank, M rows of all ranks, R ratio updates of a batch, Z latent.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebmscale.density.bases import MomentBase
from ebmscale.density.prior import Base
from ebmscale.errors import ConfigError, DivergenceError
from ebmscale.model.pieces import Piece, Span, piece, shapes_of, share_of, whole_spans
from ebmscale.model.prior_base import BASE, base_from, filled_up
from ebmscale.model.saved_part import SavedPart
from ebmscale.seeds import StreamNoise, torch_generator
from ebmscale.stages.base import choose_among
from ebmscale.stages.held_out import rows_of_all
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.stages.stream_table import StreamTable
from ebmscale.stages.targets import Posteriors, Samples, Target
from ebmscale.world import World

log = logging.getLogger(__name__)

HELD_OUT_SHARE = 10
"""Without posteriors of held-out images every tenth row of the buffer chooses the base."""


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
        tried: held-out nats by the number of components, of all mixtures in a mean, where those chose the base.
        buffer: recent posteriors, as samples or as means and standard deviations.
        tables: the buffer and the other tables, by name.
    """

    def __init__(self, base: Base, settings: RatioSettings, world: World, tables: Mapping[str, StreamTable]):
        chains, num_streams = settings.chains, settings.num_streams
        width = 2 * base.dim if settings.amortised else base.dim
        self.base = base
        self.fits_base = chains.base == "moments"
        self.tried: dict[int, float] = {}
        self.buffer = StreamTable(num_streams, settings.stages.buffer_samples // num_streams, width, world)
        self.tables = {"buffer": self.buffer, **tables}
        self._settings, self._world = settings, world
        self._judges: Tensor | None = None
        self._sizes = [one for one in chains.base_sizes if one * base.dim <= settings.stages.buffer_samples] or [1]
        self._most_components = self._sizes[-1] * chains.base_fits
        self._base_form: dict[str, Tensor] = {}  # N(0, I) in the tensors of a base that is fitted
        if self.fits_base:
            form = MomentBase.standard(base.dim, self._most_components)
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

    def wants_held_out(self, position: int) -> bool:
        """Whether a batch at `samples_seen` needs posteriors of held-out images, by which the base is chosen."""
        return self.fits_base and self._settings.chains.chooses_base and position >= self._settings.stages.start_samples

    def judge_base_by(self, posteriors: Tensor) -> None:
        """Takes this rank's posteriors of held-out images, in the form of `observe` (collective)."""
        self._judges = rows_of_all(posteriors, self._settings.num_streams, self._world)

    def fit_base(self) -> Base:
        """Fits the base to the posteriors in the buffer (collective).

        The first rank computes it from the whole buffer in the order of the streams, so that it is the same whatever
        the number of ranks.
        """
        num_streams = self._settings.num_streams
        tables, size = self._world.gather(self.buffer.z), self._world.size
        rows = torch.cat([tables[stream % size][stream // size] for stream in range(num_streams)])
        found: tuple[dict[str, Tensor], dict[int, float]] | None = None
        if self._world.is_first:
            with suppress(ValueError):
                found = self._chosen(rows.cpu()) if self._settings.chains.chooses_base else self._given(rows.cpu())
        found = self._world.broadcast(found)
        if found is None:
            raise DivergenceError(
                "The posterior latents in the buffer do not fill the latent space, or are not finite, so no base can "
                "be fitted to them; use prior.base=standard, or lower model.latent_dim or train.generator.rate."
            )
        tensors, self.tried = found
        self.base = self._on_device(base_from(self.base.dim, tensors))
        self.fits_base, self._judges = False, None
        return self.base

    def _given(self, rows: Tensor) -> tuple[dict[str, Tensor], dict[int, float]]:
        """The base of the given number of components."""
        chains, generator = self._settings.chains, torch_generator(self._settings.seed, "base")
        mean, std = rows.chunk(2, dim=1) if self._settings.amortised else (rows, torch.zeros_like(rows))
        base = MomentBase.of_posteriors(
            mean, std.square(), self._sizes[0], generator, chains.base_fits, self._settings.maps
        )
        return base.tensors(), {}

    def _chosen(self, rows: Tensor) -> tuple[dict[str, Tensor], dict[int, float]]:
        """The base under which held-out posteriors are likeliest, with room for the most components."""
        judges = self._judges
        if judges is None:
            apart = torch.arange(len(rows)) % HELD_OUT_SHARE == 0
            rows, judges = rows[~apart], rows[apart]
        if not bool(rows.isfinite().all()):
            raise ValueError("the posteriors are not finite")
        sides = self._target(rows), self._target(judges.cpu())
        settings = self._settings
        chosen = choose_among(
            *sides, self._sizes, settings.seed, symmetric=settings.maps, fits=settings.chains.base_fits
        )
        tried = dict[int, float]()
        for one in chosen.tried:
            tried[one.num_components] = max(one.nats, tried.get(one.num_components, -math.inf))
        said = ", ".join(f"{size}: {nats:.2f}" for size, nats in tried.items())
        log.info("base: %d components; held-out nats by components: %s", max(tried, key=lambda one: tried[one]), said)
        return filled_up(chosen.base.tensors(), self._most_components), tried

    def _target(self, rows: Tensor) -> Target:
        if not self._settings.amortised:
            return Samples(rows)
        mean, std = rows.chunk(2, dim=1)
        return Posteriors(mean, std)

    def values(self) -> dict[str, Any]:
        """The plain values of a checkpoint."""
        return {"fits_base": self.fits_base, "base_tried": [list(one) for one in self.tried.items()]}

    def load_values(self, values: Mapping[str, Any]) -> None:
        """Takes what `values` gave; checkpoints of earlier versions lack some of it."""
        self.fits_base = values.get("fits_base", False)
        self.tried = {int(size): float(nats) for size, nats in values.get("base_tried", [])}

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
            Piece(_within(name, one.span), one.values) for name, table in self.tables.items() for one in table.share()
        ]
        base = [piece(name, tensor) for name, tensor in self._base_tensors().items()]
        return tables + share_of(base, self._world.rank, self._world.size)

    def wanted(self) -> list[Span]:
        """The spans that `restore` needs on this rank."""
        tables = [_within(name, span) for name, table in self.tables.items() for span in table.wanted()]
        return tables + whole_spans(shapes_of(self._base_form))

    def restore(self, values: Mapping[Span, Tensor]) -> None:
        """Takes what `share` gave, on any world size; `fits_base` says already whether the base was fitted."""
        whole = {span.name.removeprefix(BASE): values[span] for span in whole_spans(shapes_of(self._base_form))}
        self.base = self._on_device(base_from(self.base.dim, {} if self.fits_base else whole))
        for name, table in self.tables.items():
            table.restore({span: values[_within(name, span)] for span in table.wanted()})

    @property
    def only_buffer(self) -> SavedPart:
        """The buffer alone, of a checkpoint whose other tables and base may have another form."""
        return _Buffer(self.buffer)

    def _base_tensors(self) -> dict[str, Tensor]:
        """The base that was fitted; before, N(0, I) in tensors of the same shapes."""
        if self.fits_base:
            return self._base_form
        tensors = filled_up(self.base.tensors(), self._most_components)
        return {f"{BASE}{name}": tensor for name, tensor in tensors.items()}


@dataclass(frozen=True)
class _Buffer:
    """The buffer among the `chains` of a checkpoint (a `SavedPart`)."""

    table: StreamTable

    def shapes(self) -> dict[str, torch.Size]:
        """See `SavedPart.shapes`."""
        return {f"buffer/{name}": size for name, size in self.table.shapes().items()}

    def check_shapes(self, found: Mapping[str, Sequence[int]]) -> None:
        """See `SavedPart.check_shapes`."""
        if any(torch.Size(found.get(name, ())) != size for name, size in self.shapes().items()):
            raise ConfigError(
                "The checkpoint keeps a buffer of another size; set stages.buffer_samples and data.num_streams back."
            )

    def share(self) -> list[Piece]:
        """See `SavedPart.share`."""
        return [Piece(_within("buffer", one.span), one.values) for one in self.table.share()]

    def wanted(self) -> list[Span]:
        """See `SavedPart.wanted`."""
        return [_within("buffer", span) for span in self.table.wanted()]

    def restore(self, values: Mapping[Span, Tensor]) -> None:
        """See `SavedPart.restore`."""
        self.table.restore({span: values[_within("buffer", span)] for span in self.table.wanted()})


def _within(table: str, span: Span) -> Span:
    """The span of a table as one of the `chains`."""
    return span._replace(name=f"{table}/{span.name}")
