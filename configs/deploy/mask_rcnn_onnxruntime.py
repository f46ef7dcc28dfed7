# Mask R-CNN, from image to boxes and masks, for onnxruntime by mmdeploy 1.3.1: docs/deploy.md
# Thresholds are those of the model's config; images may have any size.
custom_imports = dict(imports=['mmconvneur.apis.mmdeploy'])
onnx_config = dict(
    type='onnx',
    export_params=True,
    keep_initializers_as_inputs=False,
    opset_version=16,
    save_file='end2end.onnx',
    input_names=['input'],
    output_names=['dets', 'labels', 'masks'],
    input_shape=None,
    dynamic_axes=dict(
        input={0: 'batch', 2: 'height', 3: 'width'},
        dets={0: 'batch', 1: 'detections'},
        labels={0: 'batch', 1: 'detections'},
        masks={0: 'batch', 1: 'detections', 2: 'height', 3: 'width'},
    ),
    optimize=True,
)
codebase_config = dict(
    type='mmdet',
    task='ObjectDetection',
    model_type='end2end',
    post_processing=dict(
        score_threshold=0.05,
        iou_threshold=0.5,
        max_output_boxes_per_class=200,
        pre_top_k=5000,
        keep_top_k=100,
        background_label_id=-1,
        export_postprocess_mask=False,
    ),
)
backend_config = dict(type='onnxruntime')
