# Shards parameters, gradients and optimizer state over the GPUs. Untested: no GPUs were at hand.
# Add this file to the bases of a config and start it with torchrun and --launcher pytorch.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg='full',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        use_orig_params=True,
        auto_wrap_policy=dict(
            type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy', min_num_params=1_000_000
        ),
    ),
)
