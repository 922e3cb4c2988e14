"""Load a model with plain timm, and write down its logits for given images, and its own view of an image file.

`python load_pushed.py NAME BATCHES.pt IMAGE OUT.pt`
"""

import sys

import timm
import torch
from PIL import Image

if __name__ == '__main__':
    torch.set_num_threads(1)  # in which order numbers are added depends on it
    name, batches, image, out = sys.argv[1:]
    model = timm.create_model(name, pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        logits = [model(x) for x in torch.load(batches)]
    torch.save({'logits': logits, 'image': transform(Image.open(image).convert('RGB'))}, out)
    print(type(model).__module__, model.pretrained_cfg['label_names'], 'timm_molly' in sys.modules)
