"""Backbones of KerasHub with two small layers and random weights: `BACKBONES`, by name.

A function takes `keras_hub.models` and returns a built model; `data_of` makes its inputs.
"""

import keras
import numpy as np

STEPS, WORDS, IMAGE = 6, 20, (32, 32, 3)

_PLAIN = {"vocabulary_size": WORDS, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 32}
_TEXT = {**_PLAIN, "num_heads": 2}
_POSITIONS = {**_TEXT, "max_sequence_length": STEPS}
_DECODER = {**_PLAIN, "num_query_heads": 2, "num_key_value_heads": 1}
_VISION = {"patch_size": 8, "num_layers": 2, "hidden_dim": 16, "num_heads": 2}
_EXPERTS = {"moe_intermediate_dim": 16, "num_experts": 4, "top_k": 2}


def _text(name, sizes=_POSITIONS, **more):
    return lambda models: getattr(models, f"{name}Backbone")(**{**sizes, **more})


def _gemma(models):
    return models.GemmaBackbone(**_DECODER, head_dim=8)


def _gemma3(models):
    return models.Gemma3Backbone(
        **_DECODER, head_dim=8, image_size=16, use_sliding_window_attention=True
    )


def _resnet(models, pre=False):
    return models.ResNetBackbone(
        [64],
        [3],
        [64, 64],
        [1, 1],
        [1, 2],
        "basic_block",
        use_pre_activation=pre,
        image_shape=IMAGE,
    )


def _deeplab(models):
    encoder = models.ResNetBackbone(
        [64], [3], [64, 64, 64], [1, 1, 1], [1, 2, 2], "basic_block", image_shape=IMAGE
    )
    return models.DeepLabV3Backbone(
        encoder, "P4", (4, 4), [1, 2], low_level_feature_key="P2", image_shape=IMAGE
    )


def _efficientnet(models):
    return models.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * 2,
        stackwise_depth_coefficients=[1.0] * 2,
        stackwise_kernel_sizes=[3, 5],
        stackwise_num_repeats=[1, 1],
        stackwise_input_filters=[8, 8],
        stackwise_output_filters=[8, 16],
        stackwise_expansion_ratios=[1, 4],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        stackwise_strides=[1, 2],
        stackwise_block_types=["v1", "v1"],
        input_shape=IMAGE,
        num_features=32,
    )


def _cspnet(models):
    return models.CSPNetBackbone(
        stem_filters=8,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_depth=[1, 1],
        stackwise_strides=[2, 2],
        stackwise_num_filters=[8, 16],
        block_type="dark_block",
        stage_type="csp",
        bottle_ratio=[0.5],
        block_ratio=[1.0],
        expand_ratio=[2.0],
        image_shape=IMAGE,
    )


def _mit(models):
    return models.MiTBackbone(
        layerwise_depths=[1, 1],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[4, 2],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        image_shape=IMAGE,
        hidden_dims=[8, 16],
    )


def _segformer(models):
    return models.SegFormerBackbone(_mit(models), projection_filters=16)


def _swin(models):
    return models.SwinTransformerBackbone(
        image_shape=IMAGE, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4, patch_size=2
    )


def _vit(models):
    return models.ViTBackbone(image_shape=IMAGE, **_VISION, mlp_dim=32)


def _deit(models):
    return models.DeiTBackbone(image_shape=IMAGE, **_VISION, intermediate_dim=32)


def _dino_v2(models):
    return models.DINOV2Backbone(
        **_VISION, intermediate_dim=32, image_shape=IMAGE, position_embedding_shape=IMAGE
    )


def _dino_v3(models):
    return models.DINOV3Backbone(**_VISION, intermediate_dim=32, image_shape=IMAGE)


def _vit_det(models):
    return models.ViTDetBackbone(
        hidden_size=16,
        num_layers=2,
        intermediate_dim=32,
        num_heads=2,
        global_attention_layer_indices=[1],
        image_shape=IMAGE,
        patch_size=8,
        num_output_channels=8,
        window_size=2,
    )


def _clip(models):
    vision = models.CLIPVisionEncoder(
        patch_size=8,
        hidden_dim=16,
        num_layers=2,
        num_heads=2,
        intermediate_dim=32,
        image_shape=IMAGE,
    )
    text = models.CLIPTextEncoder(
        vocabulary_size=WORDS,
        embedding_dim=16,
        hidden_dim=16,
        num_layers=2,
        num_heads=2,
        intermediate_dim=32,
        max_sequence_length=STEPS,
    )
    return models.CLIPBackbone(vision, text, 8)


def _hgnet(models):
    return models.HGNetV2Backbone(
        depths=[1, 1],
        embedding_size=8,
        hidden_sizes=[16, 16],
        stem_channels=[3, 8, 8],
        hidden_act="relu",
        use_learnable_affine_block=True,
        stackwise_stage_filters=[[8, 8, 16, 1, 2, 3], [16, 8, 16, 1, 2, 3]],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, True],
        image_shape=IMAGE,
    )


def _mobilenet(models):
    return models.MobileNetBackbone(
        stackwise_expansion=[[8], [16, 16]],
        stackwise_num_blocks=[1, 2],
        stackwise_num_filters=[[8], [16, 16]],
        stackwise_kernel_size=[[3], [5, 5]],
        stackwise_num_strides=[[2], [2, 1]],
        stackwise_se_ratio=[[0.25], [None, 0.25]],
        stackwise_activation=[["relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1], [2, 2]],
        output_num_filters=32,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=32,
        squeeze_and_excite=None,
        image_shape=IMAGE,
    )


BACKBONES = {
    "albert": _text("Albert", embedding_dim=8),
    "bart": _text("Bart"),
    "bert": _text("Bert"),
    "bloom": _text("Bloom", _TEXT),
    "clip": _clip,
    "csp_net": _cspnet,
    "deberta_v3": _text("DebertaV3", bucket_size=4),
    "deep_lab_v3": _deeplab,
    "deit": _deit,
    "dense_net": lambda models: models.DenseNetBackbone([1, 1], IMAGE, growth_rate=8),
    "dino_v2": _dino_v2,
    "dino_v3": _dino_v3,
    "distil_bert": _text("DistilBert"),
    "efficient_net": _efficientnet,
    "electra": lambda models: models.ElectraBackbone(
        WORDS, 2, 2, 16, 8, 32, max_sequence_length=STEPS
    ),
    "esm": _text("ESM"),
    "f_net": _text("FNet", {**_PLAIN, "max_sequence_length": STEPS}),
    "falcon": lambda models: models.FalconBackbone(**_PLAIN, num_attention_heads=2),
    "gemma": _gemma,
    "gemma3": _gemma3,
    "gpt2": _text("GPT2"),
    "gpt_neox": _text("GPTNeoX"),
    "gpt_oss": _text("GptOss", _DECODER, num_experts=4),
    "hg_net_v2": _hgnet,
    "llama": _text("Llama", _DECODER),
    "llama3": _text("Llama3", _DECODER),
    "mistral": _text("Mistral", _DECODER),
    "mit": _mit,
    "mixtral": _text("Mixtral", _DECODER, num_experts=4),
    "mobile_net": _mobilenet,
    "opt": _text("OPT"),
    "phi3": _text("Phi3", _DECODER),
    "qwen": _text("Qwen", _DECODER),
    "qwen3": _text("Qwen3", _DECODER, head_dim=8),
    "qwen3_moe": _text("Qwen3Moe", _DECODER, **_EXPERTS),
    "res_net": _resnet,
    "res_net_v2": lambda models: _resnet(models, pre=True),
    "roberta": _text("Roberta"),
    "roformer_v2": _text("RoformerV2", _TEXT, head_size=8),
    "seg_former": _segformer,
    "swin": _swin,
    "t5": _text("T5", _TEXT),
    "vgg": lambda models: models.VGGBackbone([1, 1], [8, 16], IMAGE),
    "vit": _vit,
    "vit_det": _vit_det,
    "whisper": _text(
        "Whisper",
        _TEXT,
        num_mels=8,
        max_encoder_sequence_length=2 * STEPS,
        max_decoder_sequence_length=STEPS,
    ),
    "xception": lambda models: models.XceptionBackbone([[8, 8], [16, 16]], [True, False], IMAGE),
    "xlm_roberta": _text("XLMRoberta"),
    "xl_net": _text("XLNet", _TEXT),
}


def build(name, models):
    """Returns the backbone `name`, its weights drawn from a fixed seed."""
    keras.utils.set_random_seed(0)
    return BACKBONES[name](models)


def data_of(model, rows=32):
    """Returns inputs of `model`, a dict: images, ids, and masks of which some rows are short."""
    rng, arrays = np.random.default_rng(1), {}
    for x in model.inputs:
        shape = (rows, *(n or STEPS for n in x.shape[1:]))
        if keras.backend.is_float_dtype(x.dtype):
            arrays[x.name] = rng.uniform(size=shape).astype(np.float32)
        elif "mask" in x.name:
            lengths = rng.integers(STEPS // 2, shape[1] + 1, rows)
            arrays[x.name] = (np.arange(shape[1]) < lengths[:, None]).astype(np.int32)
        elif "segment" in x.name:
            arrays[x.name] = np.zeros(shape, np.int32)
        else:
            arrays[x.name] = rng.integers(0, WORDS, shape).astype(np.int32)
    return arrays


def flat(model, data):
    """Returns a model of lists of tensors, and its inputs: what converters agree on."""
    arrays = [data[x.name] for x in model.inputs]
    model = keras.Model(model.inputs, keras.tree.flatten(model.outputs))
    return model, arrays if len(arrays) > 1 else arrays[0]
