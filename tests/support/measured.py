"""A network after a few steps, and the flags to measure it; `conftest.py` makes its fixtures known."""

import argparse

import numpy as np
import pytest
import timm
import torch
from PIL import Image

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture(scope='module')
def checkpoint(image_folder, tmp_path_factory):
    """Weights after a few steps, in the form in which train.py leaves them."""
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=3)
    images, labels = validation_images(image_folder)
    x = torch.stack([torch.from_numpy((np.asarray(i, float) / 255 - MEAN) / STD).permute(2, 0, 1) for i in images])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x.float()), torch.from_numpy(labels)).backward()
        optimizer.step()
    with torch.no_grad():
        model.fc.weight.mul_(10)
    averaged = {name: value * 1.1 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    path = tmp_path_factory.mktemp('run') / 'model_best.pth.tar'
    state = {
        'epoch': 3,
        'arch': 'test_resnet',
        'state_dict': {f'module.{name}': value for name, value in model.state_dict().items()},
        'state_dict_ema': averaged,
        'optimizer': {'state': {}},
        'version': 2,
        'args': argparse.Namespace(aa='molly-b4+rand-m9', model='test_resnet'),
        'metric': 50.0,
    }
    torch.save(state, path)
    return path


@pytest.fixture
def flags(image_folder, checkpoint):
    """The flags of a run on the validation images."""
    return [
        *('--data-dir', str(image_folder), '--model', 'test_resnet', '--num-classes', '3', '--img-size', '32'),
        *(
            '--mean',
            *map(str, MEAN),
            '--std',
            *map(str, STD),
            '--interpolation',
            'bicubic',
            '--checkpoint',
            str(checkpoint),
            '-b',
            '5',
            '-j',
            '0',
        ),
    ]


def validation_images(root, crop_pct=0.95):
    """Images as a person would prepare them: resized, cropped in the middle, in the order of the files."""
    transform = timm.data.create_transform(32, interpolation='bicubic', crop_pct=crop_pct).transforms[:2]
    images, labels = [], []
    for label, folder in enumerate(sorted((root / 'validation').iterdir())):
        for path in sorted(folder.iterdir()):
            image = Image.open(path).convert('RGB')
            for step in transform:
                image = step(image)
            images.append(image)
            labels.append(label)
    return images, np.array(labels)
