# UPerNet from image to label map, for onnxruntime by mmdeploy 1.3.1: docs/deploy.md
# mmdeploy pools exactly where 1, 2, 3 and 6 divide the last map: sides that are multiples of 192.
onnx_config = dict(
    type='onnx',
    export_params=True,
    keep_initializers_as_inputs=False,
    opset_version=16,
    save_file='end2end.onnx',
    input_names=['input'],
    output_names=['output'],
    input_shape=(192, 192),
    optimize=True,
)
codebase_config = dict(type='mmseg', task='Segmentation', with_argmax=True)
backend_config = dict(type='onnxruntime')
