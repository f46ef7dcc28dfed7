# ConvNeXt of ImageNet-1K (224 x 224), the files of MMDetection's and MMSegmentation's own configs:
# mmpretrain's copies (Apache 2.0) of those of facebookresearch/ConvNeXt (MIT).
# With a neutral gate ConvNeur-T, -S, -B compute the same; names are converted while they load.
url = 'https://mmassets.onedl.ai/mmclassification/v0/convnext/downstream/'
convnext = dict(
    t=dict(
        type='Pretrained',
        checkpoint=url + 'convnext-tiny_3rdparty_32xb128-noema_in1k_20220301-795e9634.pth',
    ),
    s=dict(
        type='Pretrained',
        checkpoint=url + 'convnext-small_3rdparty_32xb128-noema_in1k_20220301-303e75e3.pth',
    ),
    b=dict(
        type='Pretrained',
        checkpoint=url + 'convnext-base_3rdparty_32xb128-noema_in1k_20220301-2a0ee547.pth',
    ),
)
# ConvNeXt of ImageNet-21K (224 x 224), the files of MMSegmentation's own configs, copied alike.
convnext_in21k = dict(
    b=dict(
        type='Pretrained',
        checkpoint=url + 'convnext-base_3rdparty_in21k_20220301-262fd037.pth',
    ),
    l=dict(
        type='Pretrained',
        checkpoint=url + 'convnext-large_3rdparty_in21k_20220301-e6e0ea0a.pth',
    ),
)
# DINOv3's ConvNeXt of LVD-1689M, the files of its own repository, given out under its licence.
url = 'https://dl.fbaipublicfiles.com/dinov3/'
dinov3 = dict(
    t=dict(
        type='Pretrained',
        checkpoint=url + 'dinov3_convnext_tiny/dinov3_convnext_tiny_pretrain_lvd1689m-21b726bb.pth',
    ),
    s=dict(
        type='Pretrained',
        checkpoint=url
        + 'dinov3_convnext_small/dinov3_convnext_small_pretrain_lvd1689m-296db49d.pth',
    ),
    b=dict(
        type='Pretrained',
        checkpoint=url + 'dinov3_convnext_base/dinov3_convnext_base_pretrain_lvd1689m-801f2ba9.pth',
    ),
    l=dict(
        type='Pretrained',
        checkpoint=url
        + 'dinov3_convnext_large/dinov3_convnext_large_pretrain_lvd1689m-61fa432d.pth',
    ),
)
del url
