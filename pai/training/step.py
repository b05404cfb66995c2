"""One optimization step of the masked network."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from pai.distributed import sum_over_processes, world_size
from pai.layouts import PlainGradients
from pai.models.batchnorm import synchronise_batchnorms
from pai.training.masked import PrunedWeights
from pai.training.mixup import Mixture
from pai.training.options import Training


class MaskedStep:
    """The optimizer of a masked network and what it does to one batch.

    Building it brings the model into the layout of the options and sets its pruned weights to
    zero; after each step they are zero again. With several processes each takes the step on its
    share of the batch, and all get the weights of a step on the whole batch.
    """

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor], options: Training) -> None:
        if options.channels_last:
            model.to(memory_format=torch.channels_last)
        self.optimizer = options.optimizer(model.parameters())
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self._model = model
        self._network: Callable[[Tensor], Tensor] = _shared(model, options)
        if options.compile:
            self._network = torch.compile(self._network, dynamic=False)
        self._options = options
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        self.looks_at_once = on_cpu and world_size() == 1
        self._watched = PlainGradients if on_cpu and not options.compile else nullcontext
        self._pruned = PrunedWeights(model, mask)
        self._pruned.zero()

    def __call__(
        self, inputs: Tensor, targets: Tensor, lr_factor: float, mixture: Mixture | None
    ) -> tuple[Tensor, Tensor]:
        """Take a step at ``lr_factor`` times the optimizer's own learning rate.

        Where the loss can be looked at for nothing (:attr:`looks_at_once`), one that is NaN or
        infinite leaves the weights as they are.

        Returns:
            The mean loss of these samples before the step and the number of right predictions, on
            the model's device. With a mixture a prediction is right to the share of the target it
            hits.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_factor
        self.optimizer.zero_grad(set_to_none=True)
        if mixture is not None:
            inputs = mixture.inputs(inputs)
        with self._watched():
            logits = self._options.run(self._network, inputs)
        loss, correct = self._loss(logits, targets), _hits(logits, targets)
        if mixture is not None:
            paired = targets[mixture.pair]
            loss = mixture.targets(loss, self._loss(logits, paired))
            correct = mixture.targets(correct, _hits(logits, paired))
        if self.looks_at_once and not math.isfinite(loss.item()):
            return loss.detach(), correct
        _share_of(loss, len(targets)).backward()
        if self._options.clip_grad_norm is not None:
            self._pruned.zero_gradients()
            nn.utils.clip_grad_norm_(self._model.parameters(), self._options.clip_grad_norm)
        self.optimizer.step()
        self._pruned.zero()
        return loss.detach(), correct

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=self._options.label_smoothing)


def _shared(model: nn.Module, options: Training) -> nn.Module:
    """Return ``model``, its gradients averaged over the processes if there are several."""
    if world_size() == 1:
        return model
    if options.sync_batchnorm:
        synchronise_batchnorms(model)
    device = next(model.parameters()).device
    return DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)


def _share_of(loss: Tensor, samples: int) -> Tensor:
    """Weigh the mean loss of a share so that the processes' average is the mean of the batch.

    Shares differ by a sample if the batch size is no multiple of the number of processes.
    """
    if world_size() == 1:
        return loss
    whole = sum_over_processes(torch.tensor(float(samples), device=loss.device))
    return loss * (samples * world_size() / whole)


def _hits(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == targets).sum().float()
