"""Layers that drop parts of their filters while they are trained, in the place of PyTorch's own.

Each is the PyTorch layer of the same shape in all but what its calls in training compute; names of parameters, entries
of the ``state_dict`` and initial weights are the same. In evaluation mode they are the plain layer, unless
``scaling="test"``. For a model that exists already there is :func:`shrinkage.dropfilter.convert`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from shrinkage.dropfilter.masks import FilterRule, PlusRule, Rule


class _Dropping(nn.Module):
    """Attaches a rule to the layer that it is mixed into."""

    _kind: type[Rule]

    def __init__(self, *args: Any, p: float, scaling: str = "inverted", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rule = self._kind(p, scaling)
        self._rule.attach(self)

    @property
    def p(self) -> float:
        """The drop rate now; :func:`shrinkage.dropfilter.set_rate` changes it."""
        return self._rule.p

    @property
    def scaling(self) -> str:
        """How training and evaluation are made to agree."""
        return self._rule.scaling

    def extra_repr(self) -> str:
        """The layer's own arguments, the drop rate, and the scaling."""
        return f"{super().extra_repr()}, p={self.p:g}, scaling={self.scaling!r}"


class _Filter(_Dropping):
    _kind = FilterRule


class _Plus(_Dropping):
    _kind = PlusRule


class DropFilterConv1d(_Filter, nn.Conv1d):
    """:class:`torch.nn.Conv1d` with DropFilter; arguments as for :class:`DropFilterConv2d`."""


class DropFilterConv2d(_Filter, nn.Conv2d):
    """:class:`torch.nn.Conv2d` that drops elements of its filter and bias, others in every call of the training.

    Source: :mod:`shrinkage.dropfilter.masks`, Algorithm 1.

    Args:
        *args: as for :class:`torch.nn.Conv2d`.
        p: probability that an element is dropped, in [0, 1).
        scaling: ``"inverted"`` divides what is kept by 1 − p, so that evaluation is the plain layer; ``"test"``
            multiplies outputs by 1 − p in evaluation instead; ``"none"`` does neither.
        **kwargs: as for :class:`torch.nn.Conv2d`.

    Raises:
        InputError: if ``p`` or ``scaling`` is something else.

    >>> import torch
    >>> layer = DropFilterConv2d(1, 8, 3, p=0.25)
    >>> x = torch.ones(2, 1, 5, 5)
    >>> torch.equal(layer(x), layer(x))
    False
    >>> torch.equal(layer.eval()(x), layer(x)), sorted(layer.state_dict())
    (True, ['bias', 'weight'])
    """


class DropFilterConv3d(_Filter, nn.Conv3d):
    """:class:`torch.nn.Conv3d` with DropFilter; arguments as for :class:`DropFilterConv2d`."""


class DropFilterLinear(_Filter, nn.Linear):
    """:class:`torch.nn.Linear` with DropFilter; arguments as for :class:`DropFilterConv2d`.

    This is DropConnect (Wan, Zeiler, Zhang, LeCun, Fergus, ICML 2013) with one mask for all examples of a batch.
    """


class DropFilterPlusConv1d(_Plus, nn.Conv1d):
    """:class:`torch.nn.Conv1d` with DropFilter-PLUS; arguments as for :class:`DropFilterPlusConv2d`."""


class DropFilterPlusConv2d(_Plus, nn.Conv2d):
    """:class:`torch.nn.Conv2d` with noise on its outputs and gradients, after masks that change at every position.

    Source: :mod:`shrinkage.dropfilter.masks`, Algorithm 2. The noise on the outputs is the same for every p > 0.

    Args:
        *args: as for :class:`torch.nn.Conv2d`.
        p: drop rate, in [0, 1); 0 is the plain layer.
        scaling: ``"inverted"`` draws from (0, 2), so that evaluation is the plain layer; ``"test"`` draws from
            (0, 1) and multiplies outputs by ½ in evaluation; ``"none"`` does the former only.
        **kwargs: as for :class:`torch.nn.Conv2d`.

    Raises:
        InputError: if ``p`` or ``scaling`` is something else.

    >>> import torch
    >>> layer = DropFilterPlusConv2d(1, 8, 3, p=0.25)
    >>> share = layer(torch.ones(2, 1, 5, 5)) / layer.eval()(torch.ones(2, 1, 5, 5))
    >>> bool(share.min() > 0), bool(share.max() < 2)
    (True, True)
    """


class DropFilterPlusConv3d(_Plus, nn.Conv3d):
    """:class:`torch.nn.Conv3d` with DropFilter-PLUS; arguments as for :class:`DropFilterPlusConv2d`."""
