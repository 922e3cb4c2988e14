"""Every recipe against the flags of train.py, built, and trained for two steps on a handful of images."""

import argparse
import logging
import re
import shlex
import shutil
import subprocess
from importlib.metadata import requires
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from support import small_data
from support.recipes import OWNER, PARSER, SCRIPT, problems
from support.train_flags import parser as STAND_IN
from timm.data.auto_augment import rand_augment_transform

HERE = Path(__file__).parent
FOLDER = HERE.parent / 'recipes'
RECIPES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob('*.yaml'))}
PAPER = [name for name in RECIPES if name.startswith(('cifar', 'tinyimagenet')) and '_jsd_' not in name]
needs_script = pytest.mark.skipif(not SCRIPT, reason='set TIMM_TRAIN_SCRIPT to a train.py of timm')


@pytest.mark.parametrize('name', RECIPES)
def test_train_py_knows_every_key_and_type(name):
    assert list(problems(name, RECIPES[name], PARSER)) == []


@needs_script
def test_the_flags_of_the_stand_in_are_those_of_timms_own_script():
    real = {action.dest: action for action in PARSER._actions}
    ours = {action.dest: action for action in STAND_IN._actions}
    newer = {dest for dest in ours if dest.startswith('naflex_')} | {'train_img_sizes', 'kd_model_name'}
    assert ours.keys() - real.keys() <= newer
    for dest in ours.keys() & real.keys():
        for key in ('option_strings', 'nargs', 'const', 'default', 'type', 'choices'):
            assert getattr(ours[dest], key) == getattr(real[dest], key), (dest, key)
        assert type(ours[dest]).__name__ == type(real[dest]).__name__


def example_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument('--input-size', type=int, nargs=3)
    parser.add_argument('--schedule', choices=('slow', 'fast'))
    return parser


@pytest.mark.parametrize(
    ('recipe', 'parser', 'expected'),
    [
        ({'smothing': 0.1}, PARSER, [f'{OWNER} has no --smothing; the key smothing is misspelt or for a newer timm']),
        ({'lr': '5e-3'}, PARSER, ["--lr takes float, not '5e-3'"]),  # as YAML reads 5e-3 without a point
        ({'lr': True}, PARSER, ['--lr takes float, not True']),
        ({'epochs': 1.5}, PARSER, ['--epochs takes int, not 1.5']),
        ({'amp': 'true'}, PARSER, ["--amp takes true or false, not 'true'"]),
        ({'scale': 0.5}, PARSER, ['--scale takes a list of float, not 0.5']),
        ({'scale': [0.5, 'x']}, PARSER, ["--scale takes a list of float, not [0.5, 'x']"]),
        ({'opt_kwargs': 'nesterov=False'}, PARSER, ["--opt-kwargs takes a mapping, not 'nesterov=False'"]),
        ({'aa': None}, PARSER, ['--aa takes str, not None']),
        ({'model': 'resnet50', 'lr': 1, 'scale': [1, 0.5], 'amp': False}, PARSER, []),
        ({'input_size': [3, 32]}, example_parser(), ['--input-size takes a list of int, 3 of them, not [3, 32]']),
        ({'input_size': [3, 32, 32], 'schedule': 'fast'}, example_parser(), []),
        ({'schedule': 'warp'}, example_parser(), ["--schedule takes one of slow, fast, not 'warp'"]),
        (
            {'lr': '1', 'foo_bar': 2},
            PARSER,
            ["--lr takes float, not '1'", f'{OWNER} has no --foo-bar; the key foo_bar is misspelt or for a newer timm'],
        ),
    ],
)
def test_a_bad_recipe_is_refused_by_name(recipe, parser, expected):
    assert list(problems('mine', recipe, parser)) == [f'mine.yaml: {problem}' for problem in expected]


def test_a_recipe_for_a_newer_timm_is_refused_by_name():
    """Against the flags as they were before there was one that a recipe uses."""
    older = argparse.ArgumentParser()
    older._actions = [action for action in STAND_IN._actions if action.dest != 'layer_decay']
    (problem,) = problems('finetune_convnext_tiny', RECIPES['finetune_convnext_tiny'], older)
    assert problem == (
        f'finetune_convnext_tiny.yaml: {OWNER} has no --layer-decay; '
        'the key layer_decay is misspelt or for a newer timm'
    )


@pytest.mark.parametrize('name', RECIPES)
def test_the_commands_in_its_head_are_right(name):
    text = (FOLDER / f'{name}.yaml').read_text()
    head = text.split('\n\n')[0]
    for part in ('Base:', 'Molly:', 'Without molly:', 'Memory and time:'):
        assert f'# {part}' in head
    commands = re.findall(r'^#   ((?:python|torchrun) .*)$', head, re.MULTILINE)
    assert [command.split()[0] for command in sorted(commands)] == ['python', 'torchrun']
    images = {}
    for command in commands:
        words = shlex.split(command)
        at = words.index('train.py')
        assert words[at + 1 : at + 5] == ['--config', '$(timm-molly', 'recipes', f'{name})']
        processes = int(words[words.index('--nproc-per-node') + 1]) if words[0] == 'torchrun' else 1
        args = parse(name, words[at + 5 :])
        assert bool(args.aug_repeats) <= (processes > 1)  # timm asserts it
        images[words[0]] = processes * args.batch_size * args.grad_accum_steps
    assert images['python'] == images['torchrun']  # a step is the same on any number of GPUs
    without = parse(name, shlex.split(re.search(r'^# Without molly: (.*)$', head, re.MULTILINE)[1]))
    assert 'molly' not in without.aa
    with_molly = {part for part in RECIPES[name]['aa'].split('+') if not part.startswith('molly')}
    assert with_molly == {without.aa} - {''}


def parse(name, words):
    STAND_IN_DEFAULTS = {action.dest: action.default for action in STAND_IN._actions}
    try:
        STAND_IN.set_defaults(**RECIPES[name])
        return STAND_IN.parse_args(words)
    finally:
        STAND_IN.set_defaults(**STAND_IN_DEFAULTS)


# Those of the bases, but for the small steps of finetune_convnext_tiny.
# images a step, epochs, learning rate, weight decay, warm-up, last rate, drop path, mixup, cutmix, erasing, policy
PUBLISHED = {
    'cifar10_jsd_augmix': (128, 100, 0.1, 5e-4, (0, 1e-5), 1e-6, None, 0, 0, 0, 'augmix-m3-w3'),
    'cifar100_jsd_augmix': (128, 100, 0.1, 5e-4, (0, 1e-5), 1e-6, None, 0, 0, 0, 'augmix-m3-w3'),
    'imagenet_resnet50_a1': (2048, 600, 5e-3, 0.01, (5, 1e-4), 1e-6, 0.05, 0.2, 1.0, 0, 'rand-m7-mstd0.5-inc1'),
    'imagenet_resnet50_a2': (2048, 300, 5e-3, 0.02, (5, 1e-4), 1e-6, 0.05, 0.1, 1.0, 0, 'rand-m7-mstd0.5-inc1'),
    'imagenet_resnet50_a3': (2048, 100, 8e-3, 0.02, (5, 1e-4), 1e-6, None, 0.1, 1.0, 0, 'rand-m6-mstd0.5-inc1'),
    'imagenet_resnet50_jsd_randaugment': (
        128,
        210,
        0.05,
        1e-4,
        (3, 1e-4),
        1e-5,
        None,
        0,
        0,
        0.6,
        'rand-m9-mstd0.5-inc1',
    ),
    'imagenet_resnet50_jsd_augmix': (128, 210, 0.05, 1e-4, (3, 1e-4), 1e-5, None, 0, 0, 0.3, 'augmix-m1-mstd0.5'),
    'imagenet_deit_small': (1024, 300, 1e-3, 0.05, (5, 1e-6), 1e-5, 0.1, 0.8, 1.0, 0.25, 'rand-m9-mstd0.5-inc1'),
    'imagenet_convnext_tiny': (4096, 300, 4e-3, 0.05, (20, 0.0), 1e-6, 0.1, 0.8, 1.0, 0.25, 'rand-m9-mstd0.5-inc1'),
    'finetune_convnext_tiny': (64, 30, 5e-5, 1e-8, (0, 1e-5), 1e-6, 0.1, 0, 0, 0.25, 'rand-m9-mstd0.5-inc1'),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_its_numbers_are_those_of_its_base(name):
    text = (FOLDER / f'{name}.yaml').read_text()
    command = shlex.split(re.search(r'^#   (torchrun .*)$', text, re.MULTILINE)[1])
    args = parse(name, command[command.index('--data-dir') :])
    assert (
        int(command[2]) * args.batch_size * args.grad_accum_steps,
        args.epochs + args.cooldown_epochs,
        args.lr,
        args.weight_decay,
        (args.warmup_epochs, args.warmup_lr),
        args.min_lr,
        args.drop_path,
        args.mixup,
        args.cutmix,
        args.reprob,
        '+'.join(part for part in args.aa.split('+') if not part.startswith('molly')),
    ) == PUBLISHED[name]
    data, _, model = name.removesuffix('_randaugment').removesuffix('_augmix').partition('_')
    assert (args.model, args.opt) == {
        'jsd': (f'wide_resnet40_2.{data}', 'sgd'),
        'resnet50_jsd': ('resnet50', 'sgd'),
        'deit_small': ('deit_small_patch16_224', 'adamw'),
        'convnext_tiny': ('convnext_tiny.fb_in22k' if args.pretrained else 'convnext_tiny', 'adamw'),
    }.get(model, ('resnet50', 'lamb'))
    assert args.sched == 'cosine'
    assert args.smoothing == 0
    assert args.bce_target_thresh is None
    assert args.remode == 'pixel'
    assert args.train_interpolation == ('random' if model == 'resnet50_jsd' else 'bicubic')
    assert args.aug_repeats == (
        3 if name in ('imagenet_resnet50_a1', 'imagenet_resnet50_a2', 'imagenet_deit_small') else 0
    )


def test_the_papers_recipes_differ_in_nothing_but_data_and_augmentation():
    assert len(PAPER) == 21
    by_data, by_augmentation, common = {}, {}, {}
    for name in PAPER:
        recipe = dict(RECIPES[name])
        data, _, augmentation = name.partition('_')
        own = {key: recipe.pop(key, None) for key in ('dataset', 'model', 'scale')}
        assert by_data.setdefault(data, own) == own
        own = {key: recipe.pop(key, None) for key in ('aa', 'mixup', 'cutmix')}
        assert by_augmentation.setdefault(augmentation, own) == own
        assert common.setdefault('all', recipe) == recipe
    # Heinonen et al., AISTATS 2025, appendix: SGD at a batch of 128 over 300 epochs, cosine from 0.01 to 0.
    stated = {'opt': 'momentum', 'momentum': 0.9, 'weight_decay': 5e-4, 'batch_size': 128, 'epochs': 300}
    stated |= {'lr': 0.01, 'sched': 'cosine', 'warmup_epochs': 0, 'min_lr': 0.0, 'smoothing': 0.0}
    assert stated.items() <= common['all'].items()
    assert set(by_augmentation) == {
        '',
        'randaugment',
        'autoaugment',
        'augmix',
        'trivialaugment',
        'mixup',
        'cutmix',
    }


@pytest.fixture(scope='session')
def cifar(tmp_path_factory):
    root = tmp_path_factory.mktemp('cifar')
    small_data.write(root)
    return root


@pytest.fixture(scope='session')
def photos(tmp_path_factory):
    """Eight training and four validation images of 40 pixels in two classes."""
    root = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('validation', 2)):
        for label in ('cat', 'dog'):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f'{i}.png')
    return root


@pytest.fixture
def scaled_down(cifar, photos, tmp_path):
    """Return the flags that make a recipe small: two steps of four images, small ones where possible."""

    def flags(name):
        recipe = RECIPES[name]
        words = f'--data-dir {cifar if recipe.get("dataset") else photos} -b 4 -j 1 --epochs 1 --device cpu'
        if recipe.get('grad_accum_steps'):
            words += ' --grad-accum-steps 1'
        if recipe.get('cooldown_epochs'):
            words += ' --cooldown-epochs 0'
        if 'deit' not in recipe['model']:  # whose size is in its weights
            words += ' --img-size 16' if name.startswith(('cifar', 'tinyimagenet')) else ' --img-size 64'
        if recipe.get('pretrained'):
            weights = tmp_path / 'weights.pth'
            torch.save(timm.create_model(recipe['model']).state_dict(), weights)
            words += f' --pretrained-path {weights} --num-classes 2'
        return words.split()

    return flags


# One of each loss: cross entropy, of mixed labels, BCE and JSD. CPUs without AVX-512 take long over bfloat16.
MIXED_PRECISION = ('cifar10', 'cifar10_mixup', 'imagenet_resnet50_a3', 'imagenet_resnet50_jsd_augmix')
OPTIMIZERS = {'momentum': 'SGD', 'sgd': 'SGD', 'lamb': 'Lamb', 'adamw': 'AdamW'}


@pytest.mark.train
@pytest.mark.skipif(bool(SCRIPT), reason='the test below trains with the real script')
@pytest.mark.parametrize('name', RECIPES)
def test_it_builds_and_trains_two_steps(name, scaled_down, cifar, monkeypatch, caplog):
    from support import train_script
    from timm import utils
    from torch import nn

    for dataset, attributes in small_data.sums(cifar).items():
        for attribute, value in attributes.items():
            monkeypatch.setattr(dataset, attribute, value)
    caplog.set_level(logging.INFO)
    recipe = RECIPES[name]
    args = parse(name, scaled_down(name))
    args.prefetcher = True
    device = utils.init_distributed_device(args)
    utils.random_seed(0)
    model, data_config = train_script.make_model(args, device, None)
    loader, loader_eval, _ = train_script.make_loaders(args, data_config, device, None)
    assert caplog.text.count('Mollification is on') == 1
    assert f'Mollification is on: {next(p for p in recipe["aa"].split("+") if p.startswith("molly"))} ' in caplog.text
    task = train_script.make_task(args, model, device, None)
    optimizer = train_script.make_optimizer(args, task)
    assert type(optimizer).__name__ == OPTIMIZERS[recipe['opt']]
    decayed = {id(p) for group in optimizer.param_groups if group['weight_decay'] for p in group['params']}
    norms = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm) and m.weight is not None]
    assert all((id(norm) in decayed) == name.startswith(('cifar', 'tinyimagenet')) for norm in norms)

    before = [p.detach().clone() for p in model.parameters()]
    autocast = lambda: torch.autocast('cpu', torch.bfloat16, enabled=name in MIXED_PRECISION)  # noqa: E731
    scheduler, epochs = train_script.create_scheduler_v2(
        optimizer, **train_script.scheduler_kwargs(args), updates_per_epoch=len(loader)
    )
    assert (epochs, len(loader)) == (1, 2)
    for group in optimizer.param_groups:
        group['lr'] = group['initial_lr'] * group.get('lr_scale', 1.0)  # past the warm-up
    result = train_script.train_one_epoch(0, task, loader, optimizer, scheduler, args, autocast, device, None, None)
    assert np.isfinite(result['loss'])
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert np.mean(changed) > 0.8  # a residual branch that starts at zero takes longer
    input, target = next(iter(loader_eval))
    assert target.dtype == torch.int64
    with torch.no_grad():
        assert model.eval()(input).shape == (4, model.num_classes)


@pytest.mark.train
@needs_script
@pytest.mark.parametrize('name', RECIPES)
def test_it_starts_under_timms_own_script(name, scaled_down, cifar, tmp_path, python):
    words = [*scaled_down(name), '--log-interval', '1', '--output', str(tmp_path), '--experiment', 'run']
    done = python(
        HERE / 'support' / 'small_data.py',
        SCRIPT,
        '--config',
        FOLDER / f'{name}.yaml',
        *words,
        env={'MOLLY_SMALL_DATA': str(cifar)},
    )
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-4000:]
    assert log.count('Mollification is on: molly') == 1
    losses = [float(loss) for loss in re.findall(r'Train: .*Loss: *([\d.]+|nan)', log)]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert (tmp_path / 'run' / 'summary.csv').exists()
    shutil.rmtree(tmp_path)


def test_the_readme_lists_every_recipe_as_it_is():
    text = (FOLDER / 'README.md').read_text()
    assert sorted(re.findall(r'\(([a-z0-9_]+)\.yaml\)', text)) == sorted(RECIPES)
    for label, linked in re.findall(r'\[([a-z0-9_]+)\]\(([a-z0-9_]+)\.yaml\)', text):
        assert label in (linked, linked.partition('_')[0])
    rows = re.findall(r'^\| \[([a-z0-9_]+)\]\(.*?\) \| (.*) \|$', text, re.MULTILINE)
    assert {name for name, _ in rows} == RECIPES.keys() - PAPER
    for name, row in rows:
        _, epochs, images, loss, molly = row.split(' | ')
        recipe = RECIPES[name]
        step, total, *_ = PUBLISHED[name]
        assert epochs == str(total)
        assert images.removesuffix(', in 3 views') == str(step)
        assert images.endswith('in 3 views') == (recipe.get('aug_splits') == 3)
        assert loss.startswith('BCE') == recipe.get('bce_loss', False)
        assert ('JSD' in loss) == recipe.get('jsd_loss', False)
        assert re.findall(r'mixup (\S+),', loss) == [str(recipe[key]) for key in ('mixup',) if key in recipe]
        assert ('cutmix' in loss) == ('cutmix' in recipe)
        assert molly.strip('`') in recipe['aa'].split('+')


def test_the_commands_arrange_tinyimagenet_in_folders_of_classes(tmp_path):
    text = (FOLDER / 'details.md').read_text()
    (commands,) = re.findall(r'```bash\n(.*?)```', text, re.DOTALL)
    root = tmp_path / 'tiny-imagenet-200'
    for wnid in ('n01', 'n02'):
        (root / 'train' / wnid / 'images').mkdir(parents=True)
        (root / 'train' / wnid / f'{wnid}_boxes.txt').write_text('')
        for i in range(3):
            Image.new('RGB', (64, 64)).save(root / 'train' / wnid / 'images' / f'{wnid}_{i}.JPEG')
    (root / 'val' / 'images').mkdir(parents=True)
    for i in range(4):
        Image.new('RGB', (64, 64)).save(root / 'val' / 'images' / f'val_{i}.JPEG')
    rows = [f'val_{i}.JPEG\tn0{i % 2 + 1}\t0\t1\t2\t3\n' for i in range(4)]
    (root / 'val' / 'val_annotations.txt').write_text(''.join(rows))

    subprocess.run(['bash', '-euc', commands], cwd=tmp_path, check=True)
    from timm.data import create_dataset

    train = create_dataset('', root=root, split='train')
    validation = create_dataset('', root=root, split='validation')
    assert [target for _, target in train] == [0, 0, 0, 1, 1, 1]
    assert [target for _, target in validation] == [0, 0, 1, 1]
    assert validation.filename(2, basename=True) == 'val_1.JPEG'


@pytest.mark.parametrize('policy', ['rand-m10-inc1', 'rand-m0'])
def test_no_operation_of_timms_policies_fails_at_its_end_of_the_scale(policy):
    """At one end timm's posterize keeps 0 bits, which Pillow 13 refuses in mid-training and Pillow 12 does not."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    operations = rand_augment_transform(policy, {}).ops
    assert any('Posterize' in operation.name for operation in operations)
    for operation in operations:
        operation.prob = 1.0
        assert operation(image).size == (8, 8)


def test_who_installs_the_package_gets_a_pillow_that_timm_can_posterize_with():
    assert any(re.match(r'pillow\b.*<13\b', requirement) for requirement in requires('timm-molly'))
