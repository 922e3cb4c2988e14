"""A stand-in for timm's `train.py`, which is not in timm's wheel: the same timm calls in the same order, fewer flags.

The end-to-end tests run it where `TIMM_TRAIN_SCRIPT` names no real one. It knows nothing of timm-molly. One thing
differs on purpose: distributed training works on the CPU (`device_ids=None`).
"""

import json
import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import yaml
from timm import utils
from timm.data import (
    AugMixDataset,
    FastCollateMixup,
    Mixup,
    create_dataset,
    create_loader,
    resolve_data_config,
)
from timm.layers import convert_splitbn_model
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn
from train_flags import config_parser, parser

try:  # what older timms lack, so that they can only be asked for its flags
    from timm.data import NaFlexMixup, create_naflex_loader
    from timm.task import ClassificationTask, LogitDistillationTask, load_task_ema_checkpoint, resume_task_checkpoint
except ImportError:
    pass

_logger = logging.getLogger('train')


def parse_args(argv=None):
    config, remaining = config_parser.parse_known_args(argv)
    if config.config:
        with open(config.config) as file:
            parser.set_defaults(**yaml.safe_load(file))
    return parser.parse_args(remaining)


def make_model(args, device, dtype):
    overlay = {}
    if args.pretrained_path:
        overlay['pretrained_cfg_overlay'] = dict(file=args.pretrained_path, num_classes=-1)
    model = create_model(
        args.model,
        pretrained=args.pretrained,
        in_chans=args.in_chans or 3,
        num_classes=args.num_classes,
        drop_rate=args.drop,
        drop_path_rate=args.drop_path,
        global_pool=args.gp,
        bn_momentum=args.bn_momentum,
        bn_eps=args.bn_eps,
        **overlay,
        **args.model_kwargs,
    )
    if args.head_init_scale is not None:
        with torch.no_grad():
            model.get_classifier().weight.mul_(args.head_init_scale)
            model.get_classifier().bias.mul_(args.head_init_scale)
    if args.num_classes is None:
        args.num_classes = model.num_classes
    data_config = resolve_data_config(vars(args), model=model, verbose=utils.is_primary(args))
    if args.split_bn:
        model = convert_splitbn_model(model, max(args.aug_splits, 2))
    model.to(device=device, dtype=dtype)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    return model, data_config


def make_loaders(args, data_config, device, dtype):
    mode = 'RGB' if data_config['input_size'][0] == 3 else 'L'
    options = dict(root=args.data_dir, input_img_mode=mode, download=args.dataset_download)
    open_split = partial(create_dataset, args.dataset, **options)
    dataset_train = open_split(split=args.train_split, is_training=True, batch_size=args.batch_size, seed=args.seed)
    dataset_eval = open_split(split=args.val_split, is_training=False, batch_size=args.batch_size)
    common = dict(
        mean=data_config['mean'],
        std=data_config['std'],
        img_dtype=dtype or torch.float32,
        device=device,
        distributed=args.distributed,
        use_prefetcher=args.prefetcher,
        num_workers=args.workers,
        batch_size=args.batch_size,
        pin_memory=args.pin_mem,
    )
    train = dict(
        is_training=True,
        no_aug=args.no_aug,
        re_prob=args.reprob,
        re_mode=args.remode,
        re_count=args.recount,
        re_split=args.resplit,
        train_crop_mode=args.train_crop_mode,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        color_jitter=args.color_jitter,
        auto_augment=args.aa,
        num_aug_repeats=args.aug_repeats,
        num_aug_splits=args.aug_splits,
        interpolation=args.train_interpolation,
    )
    if args.naflex_loader:
        mixup_fn = None
        if args.mixup or args.cutmix:
            options = dict(mixup_alpha=args.mixup, cutmix_alpha=args.cutmix, label_smoothing=args.smoothing)
            mixup_fn = NaFlexMixup(num_classes=args.num_classes, **options)
        layout = dict(patch_size=16, patchify_channels_last=not args.naflex_patchify_channels_first, **common)
        ranks = dict(rank=args.rank, world_size=args.world_size)
        loader_train = create_naflex_loader(
            dataset=dataset_train,
            train_seq_lens=args.naflex_train_seq_lens,
            mixup_fn=mixup_fn,
            **ranks,
            **train,
            **layout,
        )
        loader_eval = create_naflex_loader(dataset=dataset_eval, max_seq_len=args.naflex_max_seq_len, **layout)
        return loader_train, loader_eval, None

    collate_fn = mixup_fn = None
    if args.mixup or args.cutmix:
        options = dict(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            label_smoothing=args.smoothing,
            num_classes=args.num_classes,
        )
        if args.prefetcher:
            collate_fn = FastCollateMixup(**options)
        else:
            mixup_fn = Mixup(**options)
    if args.aug_splits > 1:
        dataset_train = AugMixDataset(dataset_train, num_splits=args.aug_splits)
    sizes = {} if args.train_img_sizes is None else dict(input_size_choices=args.train_img_sizes)
    loader_train = create_loader(
        dataset_train,
        input_size=data_config['input_size'],
        collate_fn=collate_fn,
        use_multi_epochs_loader=args.use_multi_epochs_loader,
        **sizes,
        **common,
        **train,
    )
    loader_eval = create_loader(
        dataset_eval,
        input_size=data_config['input_size'],
        is_training=False,
        interpolation=data_config['interpolation'],
        crop_pct=data_config['crop_pct'],
        **{**common, 'batch_size': args.validation_batch_size or args.batch_size},
    )
    return loader_train, loader_eval, mixup_fn


def make_loss(args):
    mixed = args.mixup > 0 or args.cutmix > 0
    if args.jsd_loss:
        return JsdCrossEntropy(num_splits=args.aug_splits, smoothing=args.smoothing)
    if mixed and args.bce_loss:
        return BinaryCrossEntropy(target_threshold=args.bce_target_thresh)
    if mixed:
        return SoftTargetCrossEntropy()
    if args.smoothing and args.bce_loss:
        return BinaryCrossEntropy(smoothing=args.smoothing, target_threshold=args.bce_target_thresh)
    if args.smoothing:
        return LabelSmoothingCrossEntropy(smoothing=args.smoothing)
    return nn.CrossEntropyLoss()


def make_task(args, model, device, dtype):
    options = dict(criterion=make_loss(args).to(device), device=device, dtype=dtype, verbose=utils.is_primary(args))
    if args.kd_model_name:
        return LogitDistillationTask(student_model=model, teacher_model=args.kd_model_name, **options)
    return ClassificationTask(model=model, **options)


def make_optimizer(args, task):
    return create_optimizer_v2(task.get_trainable_module(), **optimizer_kwargs(cfg=args), **args.opt_kwargs)


def train_one_epoch(epoch, task, loader, optimizer, scheduler, args, autocast, device, dtype, mixup_fn):
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        if args.prefetcher and loader.mixup_enabled:
            loader.mixup_enabled = False
        elif mixup_fn is not None:
            mixup_fn.mixup_enabled = False
    task.get_trainable_module().train()
    losses = utils.AverageMeter()
    accumulate = args.grad_accum_steps
    updates = epoch * (len(loader) // accumulate)
    optimizer.zero_grad()
    for step, (input, target) in enumerate(loader):
        if not args.prefetcher:
            input, target = input.to(device=device, dtype=dtype), target.to(device=device)
            if mixup_fn is not None:
                input, target = mixup_fn(input, target)
        if args.channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        update = (step + 1) % accumulate == 0 or step + 1 == len(loader)
        with nullcontext() if update or not args.distributed else task.no_sync():
            with autocast():
                loss = task(input, target)['loss'] / accumulate
            loss.backward()
        losses.update(loss.item() * accumulate, len(target))
        if update:
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            task.update_ema(step=updates)
            scheduler.step_update(num_updates=updates, metric=losses.avg)
            if utils.is_primary(args):
                _logger.info(f'Train: {epoch} [{step:>4d}/{len(loader)}]  Loss: {losses.val:#.3g} ({losses.avg:#.3g})')
    return {'loss': losses.avg}


@torch.inference_mode()
def validate(model, loader, args, autocast, device, dtype):
    losses, top1 = utils.AverageMeter(), utils.AverageMeter()
    loss_fn = nn.CrossEntropyLoss()
    model.eval()
    for input, target in loader:
        if not args.prefetcher:
            input, target = input.to(device=device, dtype=dtype), target.to(device=device)
        if args.channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        with autocast():
            output = model(input)
            loss = loss_fn(output, target)
        losses.update(loss.item(), len(target))
        top1.update(utils.accuracy(output, target, topk=(1,))[0].item(), len(target))
    return {'loss': losses.avg, 'top1': top1.avg}


def main():
    utils.setup_default_logging()
    args = parse_args()
    args_text = yaml.safe_dump(args.__dict__, default_flow_style=False)
    args.prefetcher = not args.no_prefetcher
    device = utils.init_distributed_device(args)
    dtype = getattr(torch, args.model_dtype) if args.model_dtype else None
    utils.random_seed(args.seed, args.rank)
    model, data_config = make_model(args, device, dtype)
    autocast = nullcontext
    if args.amp:
        autocast = partial(torch.autocast, device_type=device.type, dtype=getattr(torch, args.amp_dtype))
    loader_train, loader_eval, mixup_fn = make_loaders(args, data_config, device, dtype)
    task = make_task(args, model, device, dtype)
    optimizer = make_optimizer(args, task)
    start_epoch = resume_task_checkpoint(task, args.resume, optimizer=optimizer) if args.resume else 0
    if args.model_ema:
        task.setup_ema(decay=args.model_ema_decay)
        if args.resume:
            load_task_ema_checkpoint(task, args.resume)
    if args.torchcompile:
        task.compile(backend=args.torchcompile)
    eval_model = task.get_eval_model()
    if args.distributed:
        task.prepare_distributed(device_ids=None)
    saver = None
    if utils.is_primary(args):
        output_dir = utils.get_outdir(args.output or './output/train', args.experiment or 'run')
        saver = utils.CheckpointSaver(
            model=task.get_trainable_module(),
            optimizer=optimizer,
            args=args,
            checkpoint_dir=output_dir,
            recovery_dir=output_dir,
            max_history=args.checkpoint_hist,
            task=task,
        )
        Path(output_dir, 'args.yaml').write_text(args_text)
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        **scheduler_kwargs(args),
        updates_per_epoch=len(loader_train) // args.grad_accum_steps,
    )
    results = []
    for epoch in range(start_epoch, epochs):
        for sampler in (loader_train.batch_sampler, loader_train.sampler):
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(epoch)
                break
        train = train_one_epoch(
            epoch, task, loader_train, optimizer, scheduler, args, autocast, device, dtype, mixup_fn
        )
        metrics = validate(eval_model, loader_eval, args, autocast, device, dtype)
        if task.get_trainable_module(ema=True) is not None:
            metrics = validate(task.get_eval_model(ema=True), loader_eval, args, autocast, device, dtype)
        if saver is not None:
            lr = sum(group['lr'] for group in optimizer.param_groups) / len(optimizer.param_groups)
            first = epoch == start_epoch
            utils.update_summary(epoch, train, metrics, Path(output_dir, 'summary.csv'), lr=lr, write_header=first)
            saver.save_checkpoint(epoch, metric=metrics['top1'])
        scheduler.step(epoch + 1, metrics['top1'])
        results.append({'epoch': epoch, 'train': train, 'validation': metrics})
    if args.distributed:
        torch.distributed.destroy_process_group()
    if utils.is_primary(args):
        print(f'--result\n{json.dumps(results, indent=4)}')


if __name__ == '__main__':
    main()
