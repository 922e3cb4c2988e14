"""What the loader's workers do with mollification beside what they do without: the same, to the byte."""

import time

import numpy as np
import torch
from timm.data import create_dataset, create_loader

from timm_molly import register
from timm_molly.plugin.loader import MollyLoader

RUNS = 9


def test_the_workers_do_exactly_what_they_did_before(benchmark, row, image_folder):
    register()

    def batches(aa):
        torch.manual_seed(0)
        dataset = create_dataset('', root=str(image_folder), split='train')
        options = {'is_training': True, 'num_workers': 1, 'device': torch.device('cpu'), 'auto_augment': aa}
        loader = create_loader(dataset, input_size=(3, 224, 224), batch_size=8, **options)
        prefetcher = loader.__wrapped__ if isinstance(loader, MollyLoader) else loader
        start = time.perf_counter()
        images = torch.cat([x for x, _ in prefetcher.loader])  # what the workers send
        return images, time.perf_counter() - start

    different, ratios = [], []

    def run():
        with_molly, seconds = batches('rand-m9-mstd0.5-inc1+molly')
        without, before = batches('rand-m9-mstd0.5-inc1')
        different.append((with_molly != without).sum())
        ratios.append(seconds / before)

    benchmark.pedantic(run, rounds=RUNS)
    row('bytes that the workers send otherwise than without', '<= 0', different)
    row("time of the workers' epoch with over without", '', np.array(ratios))
