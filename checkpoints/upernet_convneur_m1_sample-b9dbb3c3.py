auto_scale_lr = dict(base_batch_size=4, enable=False)
dataset = dict(
    data_root='data/sample',
    img_suffix='.png',
    metainfo=dict(
        classes=(
            'coin',
            'star',
            'triangle',
            'ring',
            'bar',
            'brick',
            'grass',
            'gravel',
        ),
        palette=[
            [
                230,
                180,
                40,
            ],
            [
                220,
                60,
                60,
            ],
            [
                60,
                160,
                230,
            ],
            [
                170,
                90,
                220,
            ],
            [
                60,
                190,
                110,
            ],
            [
                150,
                75,
                50,
            ],
            [
                40,
                110,
                40,
            ],
            [
                130,
                130,
                130,
            ],
        ]),
    reduce_zero_label=True,
    seg_map_suffix='.png',
    type='BaseSegDataset')
default_hooks = dict(
    checkpoint=dict(
        backend_args=dict(backend='mmconvneur_atomic'),
        by_epoch=False,
        interval=1200,
        max_keep_ckpts=1,
        type='CheckpointHook'),
    logger=dict(interval=50, log_metric_by_epoch=False, type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    timer=dict(type='IterTimerHook'),
    visualization=dict(type='SegVisualizationHook'))
default_scope = 'mmseg'
env_cfg = dict(
    cudnn_benchmark=True,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
load_from = 'mask_rcnn_convneur_m1_sample'
log_level = 'INFO'
log_processor = dict(by_epoch=False)
max_iters = 7200
metainfo = dict(
    classes=(
        'coin',
        'star',
        'triangle',
        'ring',
        'bar',
        'brick',
        'grass',
        'gravel',
    ),
    palette=[
        [
            230,
            180,
            40,
        ],
        [
            220,
            60,
            60,
        ],
        [
            60,
            160,
            230,
        ],
        [
            170,
            90,
            220,
        ],
        [
            60,
            190,
            110,
        ],
        [
            150,
            75,
            50,
        ],
        [
            40,
            110,
            40,
        ],
        [
            130,
            130,
            130,
        ],
    ])
model = dict(
    auxiliary_head=dict(
        align_corners=False,
        channels=64,
        concat_input=False,
        dropout_ratio=0.1,
        in_channels=160,
        in_index=2,
        loss_decode=dict(loss_weight=0.4, type='CrossEntropyLoss'),
        norm_cfg=dict(requires_grad=True, type='BN'),
        num_classes=8,
        num_convs=1,
        type='FCNHead'),
    backbone=dict(arch='m1', init_cfg=None, type='mmconvneur.ConvNeur'),
    data_preprocessor=dict(
        bgr_to_rgb=True,
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        pad_val=0,
        seg_pad_val=255,
        size=(
            192,
            192,
        ),
        std=[
            58.395,
            57.12,
            57.375,
        ],
        type='SegDataPreProcessor'),
    decode_head=dict(
        align_corners=False,
        channels=64,
        dropout_ratio=0.1,
        in_channels=[
            40,
            80,
            160,
            320,
        ],
        in_index=[
            0,
            1,
            2,
            3,
        ],
        loss_decode=dict(loss_weight=1.0, type='CrossEntropyLoss'),
        norm_cfg=dict(requires_grad=True, type='BN'),
        num_classes=8,
        pool_scales=(
            1,
            2,
            3,
            6,
        ),
        type='UPerHead'),
    test_cfg=dict(mode='whole'),
    train_cfg=dict(),
    type='EncoderDecoder')
norm_cfg = dict(requires_grad=True, type='BN')
optim_wrapper = dict(
    clip_grad=dict(max_norm=3.0),
    optimizer=dict(
        betas=(
            0.9,
            0.95,
        ), lr=0.001, type='AdamW', weight_decay=0.05),
    paramwise_cfg=dict(
        bias_decay_mult=0.0, flat_decay_mult=0.0, norm_decay_mult=0.0),
    type='OptimWrapper')
param_scheduler = [
    dict(begin=0, by_epoch=False, end=50, start_factor=0.01, type='LinearLR'),
    dict(
        begin=50,
        by_epoch=False,
        end=7200,
        eta_min=0.0,
        power=1.0,
        type='PolyLR'),
]
randomness = dict(seed=130103161)
resume = False
test_cfg = dict(type='TestLoop')
test_dataloader = dict(
    batch_size=1,
    dataset=dict(
        data_prefix=dict(img_path='images/val', seg_map_path='semantic/val'),
        data_root='data/sample',
        img_suffix='.png',
        metainfo=dict(
            classes=(
                'coin',
                'star',
                'triangle',
                'ring',
                'bar',
                'brick',
                'grass',
                'gravel',
            ),
            palette=[
                [
                    230,
                    180,
                    40,
                ],
                [
                    220,
                    60,
                    60,
                ],
                [
                    60,
                    160,
                    230,
                ],
                [
                    170,
                    90,
                    220,
                ],
                [
                    60,
                    190,
                    110,
                ],
                [
                    150,
                    75,
                    50,
                ],
                [
                    40,
                    110,
                    40,
                ],
                [
                    130,
                    130,
                    130,
                ],
            ]),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        reduce_zero_label=True,
        seg_map_suffix='.png',
        type='BaseSegDataset'),
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=False, type='DefaultSampler'))
test_evaluator = dict(
    iou_metrics=[
        'mIoU',
    ], type='IoUMetric')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_cfg = dict(max_iters=7200, type='ResumableIterLoop', val_interval=1200)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        data_prefix=dict(
            img_path='images/train', seg_map_path='semantic/train'),
        data_root='data/sample',
        img_suffix='.png',
        metainfo=dict(
            classes=(
                'coin',
                'star',
                'triangle',
                'ring',
                'bar',
                'brick',
                'grass',
                'gravel',
            ),
            palette=[
                [
                    230,
                    180,
                    40,
                ],
                [
                    220,
                    60,
                    60,
                ],
                [
                    60,
                    160,
                    230,
                ],
                [
                    170,
                    90,
                    220,
                ],
                [
                    60,
                    190,
                    110,
                ],
                [
                    150,
                    75,
                    50,
                ],
                [
                    40,
                    110,
                    40,
                ],
                [
                    130,
                    130,
                    130,
                ],
            ]),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(
                direction=[
                    'horizontal',
                    'vertical',
                    'diagonal',
                ],
                prob=0.75,
                type='RandomFlip'),
            dict(type='PackSegInputs'),
        ],
        reduce_zero_label=True,
        seg_map_suffix='.png',
        type='BaseSegDataset'),
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=True, type='InfiniteSampler'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        direction=[
            'horizontal',
            'vertical',
            'diagonal',
        ],
        prob=0.75,
        type='RandomFlip'),
    dict(type='PackSegInputs'),
]
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        transforms=[
            [
                dict(prob=0.0, type='RandomFlip'),
                dict(prob=1.0, type='RandomFlip'),
            ],
            [
                dict(type='LoadAnnotations'),
            ],
            [
                dict(type='PackSegInputs'),
            ],
        ],
        type='TestTimeAug'),
]
val_cfg = dict(type='ValLoop')
val_dataloader = dict(
    batch_size=1,
    dataset=dict(
        data_prefix=dict(img_path='images/val', seg_map_path='semantic/val'),
        data_root='data/sample',
        img_suffix='.png',
        metainfo=dict(
            classes=(
                'coin',
                'star',
                'triangle',
                'ring',
                'bar',
                'brick',
                'grass',
                'gravel',
            ),
            palette=[
                [
                    230,
                    180,
                    40,
                ],
                [
                    220,
                    60,
                    60,
                ],
                [
                    60,
                    160,
                    230,
                ],
                [
                    170,
                    90,
                    220,
                ],
                [
                    60,
                    190,
                    110,
                ],
                [
                    150,
                    75,
                    50,
                ],
                [
                    40,
                    110,
                    40,
                ],
                [
                    130,
                    130,
                    130,
                ],
            ]),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        reduce_zero_label=True,
        seg_map_suffix='.png',
        type='BaseSegDataset'),
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=False, type='DefaultSampler'))
val_evaluator = dict(
    iou_metrics=[
        'mIoU',
    ], type='IoUMetric')
vis_backends = [
    dict(type='LocalVisBackend'),
]
visualizer = dict(
    name='visualizer',
    type='SegLocalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
    ])
