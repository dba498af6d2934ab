"""FSDP2 sharding, applied to a single-device model from outside."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint


def shard(
    model: nn.Module, mesh: DeviceMesh, *, blocks: Iterable[nn.Module], methods: Iterable[str] = ()
) -> None:
    """Shard `model` over the data-parallel ranks, each of `blocks` gathered on its own.

    Args:
        model: the plain module; parameters outside `blocks` are gathered for a whole forward pass.
        mesh: the data-parallel mesh of one dimension.
        blocks: repeated layers, such as the transformer blocks.
        methods: methods of `model` beside `forward` that need whole parameters, such as `generate`.
    """
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for method in methods:
        register_fsdp_forward_method(model, method)


def most_of_all_ranks(model: nn.Module, count: int) -> int:
    """The greatest `count` over the ranks of a sharded model; `count` itself if it is whole.

    Each call of a sharded model gathers its parameters, so that all ranks have to call it as often.
    """
    if not isinstance(model, FSDPModule):
        return count
    counts = torch.tensor(count, device=next(model.parameters()).device)
    torch.distributed.all_reduce(counts, torch.distributed.ReduceOp.MAX)
    return int(counts)


def whole_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict with sharded tensors gathered; every rank has to call it."""
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
    }


def checkpoint_activations(blocks: Iterable[nn.Module]) -> None:
    """Recompute each block in the backward pass instead of keeping what is inside it.

    The forward method is replaced on the instance, so that names, types and state dict of the model
    stay as they are.
    """
    for block in blocks:
        block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
