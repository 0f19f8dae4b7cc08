"""Looking at what flows into layers while a model runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from shrinkage.core.evaluation import evaluating

Seen = Callable[[Tensor], None]


@contextmanager
def watching(model: nn.Module, seen: Mapping[str, Seen]) -> Iterator[None]:
    """Evaluation mode without gradients and without compiled code, which does not see hooks that are added later.

    Args:
        model: to be run within; left as it was.
        seen: by the path of a layer, what is given its operand (see :func:`operand`) each time it is called.
    """
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(evaluating(model))
        for path, tell in seen.items():

            def hook(module: nn.Module, args: Any, kwargs: Any, tell: Seen = tell) -> None:
                tell(operand(module, args, kwargs))

            handle = model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def operand(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a layer that is called like this multiplies its weight by: its input, padded as the layer does."""
    x: Tensor = args[0] if args else kwargs["x" if "x" in kwargs else "input"]
    if isinstance(module, _ConvNd) and module.padding_mode != "zeros":
        x = functional.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
    return x.detach()
