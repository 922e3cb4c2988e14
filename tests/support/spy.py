"""Run a train script and write down what its loss is given, to see from outside that the coupling is in force.

`python spy.py RECORD.json SCRIPT ARGUMENTS...`; under torchrun each rank writes RECORD.json.<rank>. The script is
run as it is; this file only listens at the losses, and computes each one again from the method's own formula.
"""

import atexit
import json
import os
import runpy
import sys
from pathlib import Path

import timm.loss
import torch
from torch import nn

import timm_molly.mollify
from timm_molly import CoupledTarget

record = {'calls': [], 'batches': []}


def soft_label(target, num_classes, smoothing=0.0):
    """The method's label, in float64 and in a loop."""
    labels, gamma = target.labels.tolist(), target.gamma.double().tolist()
    y = torch.zeros(len(labels), num_classes, dtype=torch.float64)
    for i in range(len(labels)):
        for k in range(num_classes):
            hard = (1 - gamma[i]) * (k == labels[i]) + gamma[i] / num_classes
            y[i, k] = (1 - smoothing) * hard + smoothing / num_classes
    return y


def expected(criterion, logits, target):
    """The value of a loss on the dense soft label, in float64."""
    logits = logits.detach().double()
    y = soft_label(target, logits.shape[1], getattr(criterion, 'smoothing', 0.0))
    if isinstance(criterion, timm.loss.BinaryCrossEntropy):
        if criterion.target_threshold is not None:
            y = (y > criterion.target_threshold).double()
        p = logits.sigmoid()
        return -(y * p.log() + (1 - y) * (1 - p).log()).mean().item()
    return -(y * (logits.softmax(1)).log()).sum(1).mean().item()


def listen(cls):
    forward = cls.forward

    def wrapper(self, logits, target, *args):
        loss = forward(self, logits, target, *args)
        if torch.is_grad_enabled():  # not validation
            call = {'loss': cls.__name__, 'value': loss.item()}
            if isinstance(target, CoupledTarget):
                hard = CoupledTarget(target.labels, torch.zeros_like(target.gamma))
                call |= {
                    'gamma': target.gamma.tolist(),
                    'expected': expected(self, logits, target),
                    'hard': expected(self, logits, hard),
                }
            elif target.ndim == 2:
                call['rows'] = target.sort(1).values.tolist()
            record['calls'].append(call)
        return loss

    cls.forward = wrapper


def watch_batches():
    apply = timm_molly.mollify.Mollify.apply

    def wrapper(self, x, target, roles, t, *args):
        out = apply(self, x, target, roles, t, *args)
        record['batches'].append(
            {
                'roles': (roles * len(t))[: len(t)] * self.num_splits,
                't': t.tolist() * self.num_splits,
                'shape': list(x.shape),
                'dtype': str(x.dtype),
                'checksum': out[0].double().sum().item(),
            }
        )
        return out

    timm_molly.mollify.Mollify.apply = wrapper


@atexit.register
def write():
    rank = os.environ.get('RANK')
    Path(out + (f'.{rank}' if rank else '')).write_text(json.dumps(record))


if __name__ == '__main__':
    _, out, script, *arguments = sys.argv
    for cls in (
        nn.CrossEntropyLoss,
        timm.loss.LabelSmoothingCrossEntropy,
        timm.loss.BinaryCrossEntropy,
        timm.loss.SoftTargetCrossEntropy,
    ):
        listen(cls)
    watch_batches()
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name='__main__')
