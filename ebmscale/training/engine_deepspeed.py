"""The DeepSpeed engine: the plain engine's update, with its state sharded over the ranks (ZeRO 0 to 3).

Only this file uses DeepSpeed. DeepSpeed gets torch's Adam, so no operator has to be compiled. The canonical state is
read and written through DeepSpeed's tensor API, so its checkpoint formats are not used.
"""

import atexit
import importlib
import logging
import math
import os
import warnings
from collections.abc import Mapping
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime import compiler
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
)
from torch import Tensor, nn

from ebmscale.errors import ConfigError
from ebmscale.training.adam import OptimizerSettings, make_adam, set_rate, start_adam
from ebmscale.training.engine import MAX_BUCKET, WEIGHTS, Engine, EngineSettings, Store
from ebmscale.training.engine_plain import WholeStore
from ebmscale.training.rank_tensors import clip_, copy_buffers_from_first
from ebmscale.world import World, leave_group


class DeepSpeedEngine(Engine):
    """Trains a module with DeepSpeed. One process may have several such engines.

    ZeRO reduces and shards through hooks on the module. So the forward pass and the backward pass of a loss must run
    through the engine. `loss.backward()`, or a forward pass through `module`, would give wrong gradients.

    Raises:
        ConfigError: DeepSpeed was set up for another kind of device.
    """

    def __init__(self, module: nn.Module, optimizer: OptimizerSettings, settings: EngineSettings, world: World):
        _prepare(world)
        _join_group(world)
        weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
        super().__init__(module, make_adam(dict(module.named_parameters()), optimizer), settings, world)
        self._parameters = dict(module.named_parameters())
        self._clip_norm, self._groups = optimizer.clip_norm, optimizer.groups(self._parameters)
        self._wraps_adam = _wraps_adam(settings)
        num_elements = sum(p.numel() for p in module.parameters())
        self._deepspeed, *_ = deepspeed.initialize(
            model=module,
            optimizer=self._adam,
            config=_config(optimizer, settings, num_elements, world),
            dist_init_required=False,
        )
        self._store = self._make_store()
        self.reset(weights)  # DeepSpeed rounds its master weights to bf16; these are exact

    def _forward(self, *inputs: Any) -> Any:
        return self._deepspeed(*inputs)

    def backward(self, loss: Tensor) -> None:
        """See `Engine.backward`."""
        self._deepspeed.backward(loss)

    def step(self, rate: float) -> float:
        """See `Engine.step`."""
        set_rate(self._adam, rate)
        if self._wraps_adam:
            self._deepspeed.step()
            norm = float(self._deepspeed.get_global_grad_norm())
        else:
            norm = self._step_unwrapped()
        copy_buffers_from_first(self.module, self._world)
        return norm

    @torch.no_grad()
    def _step_unwrapped(self) -> float:
        """Clips and skips as DeepSpeed's optimisers do. The parameters have the whole averaged gradients."""
        norm = clip_([p.grad for p in self._parameters.values() if p.grad is not None], self._clip_norm)
        if math.isfinite(norm):
            self._deepspeed.step()
        else:
            self._deepspeed.zero_grad()
        return norm

    def working_weights(self) -> dict[str, Tensor]:
        """See `Engine.working_weights`."""
        if self._settings.zero_stage < 3:
            return super().working_weights()
        with deepspeed.zero.GatheredParameters(list(self._parameters.values())):
            return {name: value.clone() for name, value in self.module.state_dict().items()}

    def _make_store(self) -> Store:
        zero = self._deepspeed.optimizer
        if self._settings.zero_stage == 3:
            start_adam(self._adam, zero.fp32_partitioned_groups_flat)
            return WeightShards(self._parameters, self._world)
        tensors = [tensor for group in self._adam.param_groups for tensor in group["params"]]
        start_adam(self._adam, tensors)
        if self._settings.zero_stage == 0:
            names = [name for group in self._groups.values() for name in group]
            return WholeStore(self._parameters, dict(zip(names, tensors, strict=True)), self._adam)
        zero._lazy_init_hp_params_optimizer_state()  # links the parameters to the new moments
        return StateShards(self._parameters)


class StateShards:
    """The state under ZeRO 1 and 2: each rank holds a part of the flat master weights and moments.

    Args:
        parameters: the module's parameters by name, whole on every rank.
    """

    is_shared = False

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self._parameters: Mapping[str, Any] = parameters

    def read(self, name: str, kind: str) -> Tensor:
        """The whole tensor, gathered from all ranks."""
        parameter = self._parameters[name]
        whole = (
            safe_get_full_fp32_param(parameter) if kind == WEIGHTS else safe_get_full_optimizer_state(parameter, kind)
        )
        return whole.detach()

    def held(self, name: str, kind: str) -> tuple[int, Tensor]:
        """This rank's part; empty if other ranks hold the parameter."""
        mapping = self._parameters[name]._hp_mapping
        if mapping is None:
            return 0, torch.empty(0)
        values = mapping.get_hp_fragment(None if kind == WEIGHTS else kind)
        return mapping.lp_fragment_address.start, values.detach()

    @torch.no_grad()
    def spread(self, name: str) -> None:
        """Gathers a master weight from all ranks into the module."""
        self._parameters[name].copy_(self.read(name, WEIGHTS))


class WeightShards(StateShards):
    """The state under ZeRO 3: each rank holds a padded, equal part of every weight and its moments.

    Args:
        parameters: the module's parameters by name, whole only while they are gathered.
        world: the ranks that share them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], world: World):
        super().__init__(parameters)
        self._world = world

    def held(self, name: str, kind: str) -> tuple[int, Tensor]:
        """This rank's part without its padding."""
        parameter = self._parameters[name]
        local = (
            safe_get_local_fp32_param(parameter) if kind == WEIGHTS else safe_get_local_optimizer_state(parameter, kind)
        )
        start = self._world.rank * parameter.ds_tensor.numel()
        return start, local.detach()[: max(parameter.ds_numel - start, 0)]

    @torch.no_grad()
    def spread(self, name: str) -> None:
        """Copies this rank's part of a master weight to the module's own part."""
        values = self.held(name, WEIGHTS)[1]
        self._parameters[name].ds_tensor[: values.numel()].copy_(values)


def _wraps_adam(settings: EngineSettings) -> bool:
    """Whether DeepSpeed wraps Adam in its own optimiser, which measures, clips and skips: not for stage 0 in fp32."""
    return settings.zero_stage > 0 or settings.precision == "bf16"


def _config(optimizer: OptimizerSettings, settings: EngineSettings, num_elements: int, world: World) -> dict[str, Any]:
    """DeepSpeed's configuration of one engine."""
    bucket = min(num_elements + num_elements % 2, MAX_BUCKET)  # ZeRO requires an even number
    stage = settings.zero_stage
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # required, but unused: every loss is scaled already
        "gradient_accumulation_steps": 1,
        # Stages 1 to 3 accumulate gradients until the step. Stage 0 reduces them in the backward pass, before the norm.
        "managed_gradient_accumulation": stage == 0,
        "gradient_clipping": optimizer.clip_norm or 0.0 if _wraps_adam(settings) else 0.0,  # otherwise the engine clips
        "steps_per_print": None,
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,  # torch's own Adam counts as untested
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": stage >= 2 and world.device.type == "cuda",
        },
    }
    if settings.precision == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"buffer_dtype": "bf16"}  # otherwise batch normalisation gets two types
    return config


def _prepare(world: World) -> None:
    """Checks that DeepSpeed uses the world's device. Prevents it from compiling and from printing."""
    found, wanted = get_accelerator().device_name(), world.device.type
    if found != wanted:
        raise ConfigError(f"DeepSpeed computes on {found} but device is {wanted}: set DS_ACCELERATOR={wanted}.")
    # On a CPU it would spend a minute compiling a shared-memory all-reduce that only inference uses.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})
    _import_muon()
    log = logging.getLogger("DeepSpeed")
    log.handlers.clear()  # it writes to stdout; now it logs as the program does
    log.propagate = True
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)


def _import_muon() -> None:
    """Imports DeepSpeed's Muon without torch's compiler.

    DeepSpeed imports Muon for every optimiser, and Muon's kernels import the compiler, which takes a second. No engine
    here trains with Muon.
    """
    asked, compiler.compile = compiler.compile, lambda *_, **__: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = asked


def _join_group(world: World) -> None:
    """Lets DeepSpeed use the world's process group. A world of one process gets a group that needs no port."""
    if not dist.is_initialized():
        if world.size > 1:
            raise ValueError("a world of several ranks needs a process group: make it with World.from_environment")
        backend = "nccl" if world.device.type == "cuda" else "gloo"
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        atexit.register(leave_group)
    os.environ.setdefault("LOCAL_RANK", str(world.device.index or 0))
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
