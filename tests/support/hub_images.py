"""A handful of images for each published model, stored as one picture, and how many of them it recognises.

    python tests/hub_images.py hub_cards/NAME path/to/images/validation digits

stores the first images of each class folder as digits.png, and how the model does on them, for `test_hub_cards.py`.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

FOLDER = Path(__file__).parent / 'hub_images'
RECORDS = FOLDER / 'records.json'
EACH = 5  # images of a class, a column


def tiles(path: Path, classes: int) -> tuple[list[Image.Image], list[int]]:
    """Cut a stored picture, one column a class, into images and labels."""
    with Image.open(path) as picture:
        side = picture.width // classes
        boxes = [
            (label, (label * side, row * side, (label + 1) * side, (row + 1) * side))
            for label in range(classes)
            for row in range(EACH)
        ]
        return [picture.crop(box) for _, box in boxes], [label for label, _ in boxes]


def measure(folder: Path, images: Path) -> dict[str, object]:
    """Hash a published model's weights, and count the stored images that plain timm's model of it recognises."""
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    pictures, labels = tiles(images, model.num_classes)
    with torch.inference_mode():
        logits = model(torch.stack([transform(picture.convert('RGB')) for picture in pictures]))
    correct = int((logits.argmax(1) == torch.tensor(labels)).sum())
    weights = hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()
    return {'sha256': weights, 'images': images.name, 'of': len(labels), 'correct': correct}


def main(folder: Path, split: Path, name: str) -> None:
    """Store images and record."""
    columns = []
    for class_folder in sorted(split.iterdir()):
        paths = sorted(class_folder.glob('*.png'))[:EACH]
        columns.append(np.concatenate([np.asarray(Image.open(path).convert('L')) for path in paths]))
    path = FOLDER / f'{name}.png'
    FOLDER.mkdir(exist_ok=True)
    Image.fromarray(np.concatenate(columns, 1)).save(path, optimize=True)
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    records[folder.name] = measure(folder, path)
    RECORDS.write_text(json.dumps(records, indent=1, sort_keys=True) + '\n')


if __name__ == '__main__':
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
