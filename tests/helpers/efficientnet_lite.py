"""EfficientNet-lite0 and -lite2: a plain torch module, and a transformers model around it."""

from itertools import islice, pairwise
from typing import Any, Literal

import torch
from assets import lite_weights
from torch import Tensor, nn
from torch.nn.functional import pad, relu6
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
    ViTImageProcessor,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

Size = Literal[0, 2]

PIXELS = {0: 224, 2: 260}
WIDTHS = {0: (32, 16, 24, 40, 80, 112, 192, 320), 2: (32, 16, 24, 48, 88, 120, 208, 352)}
REPEATS = {0: (1, 2, 2, 3, 3, 4, 1), 2: (1, 3, 3, 4, 4, 5, 1)}
KERNELS = (3, 3, 5, 3, 5, 5, 3)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
D_FEATURES = 1280


class SameConv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's 'same': an odd pixel goes below and to the right."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(n_in, n_out, kernel, stride, groups=groups, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in maps.shape[2:])
        return super().forward(pad(maps, (width // 2, width - width // 2, height // 2, height - height // 2)))


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation with TensorFlow's epsilon."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-3)


class Block(nn.Module):
    """An inverted residual block, or a depthwise-separable one where nothing is expanded."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = n_in * expansion
        self.expands, self.residual = expansion > 1, stride == 1 and n_in == n_out
        if self.expands:
            self._expand_conv, self._bn0 = SameConv(n_in, inner, 1), BatchNorm(inner)
        self._depthwise_conv, self._bn1 = (
            SameConv(inner, inner, kernel, stride, groups=inner),
            BatchNorm(inner),
        )
        self._project_conv, self._bn2 = SameConv(inner, n_out, 1), BatchNorm(n_out)

    def forward(self, maps: Tensor) -> Tensor:
        inner = relu6(self._bn0(self._expand_conv(maps))) if self.expands else maps
        inner = relu6(self._bn1(self._depthwise_conv(inner)))
        out = self._bn2(self._project_conv(inner))
        return maps + out if self.residual else out


class EfficientNetLite(nn.Module):
    """Pixels `(n, 3, h, w)` to features `(n, 1280)`; modules are named as in the published state dicts."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        widths, self.repeats = WIDTHS[size], REPEATS[size]
        self._conv_stem, self._bn0 = SameConv(3, widths[0], 3, stride=2), BatchNorm(widths[0])
        stages = zip(pairwise(widths), REPEATS[size], KERNELS, STRIDES, EXPANSIONS, strict=True)
        blocks = []
        for (n_in, n_out), repeats, kernel, stride, expansion in stages:
            blocks.append(Block(n_in, n_out, kernel, stride, expansion))
            blocks.extend(Block(n_out, n_out, kernel, 1, expansion) for _ in range(repeats - 1))
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = SameConv(widths[-1], D_FEATURES, 1), BatchNorm(D_FEATURES)

    def stages(self, pixel_values: Tensor) -> list[Tensor]:
        """Feature maps `(n, c, h, w)` after the stem, each stage and the last convolution, whose are 1280."""
        stages = [relu6(self._bn0(self._conv_stem(pixel_values)))]
        blocks = iter(self._blocks)
        for count in self.repeats:
            maps = stages[-1]
            for block in islice(blocks, count):
                maps = block(maps)
            stages.append(maps)
        return [*stages, relu6(self._bn1(self._conv_head(stages[-1])))]

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.stages(pixel_values)[-1].mean((2, 3))


class EfficientNetLiteConfig(PretrainedConfig):
    """Configuration of an `EfficientNetLiteModel`: its size, 0 or 2."""

    model_type = "efficientnet_lite_test"

    def __init__(self, size: Size = 0, **kwargs: Any) -> None:
        self.size = size
        super().__init__(**kwargs)


class EfficientNetLiteModel(PreTrainedModel):
    """`EfficientNetLite` as a transformers model."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.encoder = EfficientNetLite(config.size)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        stages = self.encoder.stages(pixel_values)
        return BaseModelOutputWithPooling(
            last_hidden_state=stages[-1],
            pooler_output=stages[-1].mean((2, 3)),
            hidden_states=tuple(stages) if output_hidden_states else None,
        )


class EfficientNetLiteForImageClassification(PreTrainedModel):
    """`EfficientNetLiteModel` with a linear head."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "body"
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.body = EfficientNetLiteModel(config)
        self.classifier = nn.Linear(1280, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.classifier(self.body(pixel_values).pooler_output))


def register() -> None:
    """Make transformers' Auto classes know the models; once more does nothing."""
    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
    AutoModelForImageClassification.register(
        EfficientNetLiteConfig, EfficientNetLiteForImageClassification, exist_ok=True
    )


def lite_module(size: Size) -> EfficientNetLite:
    """The pretrained plain module."""
    module = EfficientNetLite(size)
    module.load_state_dict(feature_weights(size))
    return module.eval()


def lite_model(size: Size) -> EfficientNetLiteModel:
    """The pretrained transformers model."""
    model = EfficientNetLiteModel(EfficientNetLiteConfig(size=size))
    model.encoder.load_state_dict(feature_weights(size))
    return model.eval()


def lite_processor(size: Size) -> ViTImageProcessor:
    """Images to what the pretrained weights expect, `(uint8 − 127) / 128` at 224 or 260 pixels."""
    return ViTImageProcessor(
        size={"height": PIXELS[size], "width": PIXELS[size]},
        rescale_factor=1 / 128,
        image_mean=[127 / 128] * 3,
        image_std=[1.0] * 3,
    )


def feature_weights(size: Size) -> dict[str, Tensor]:
    """The published state dict without its ImageNet classifier."""
    weights = torch.load(lite_weights(size), weights_only=True)
    return {name: tensor for name, tensor in weights.items() if not name.startswith("_fc.")}
