"""Small definitions of architectures that no package brings in a size for a quick test. Needs torch alone.

Every function without arguments makes a module with random weights, seeded by its caller, and is listed in `OWN`
with its inputs.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn
from torch.nn import functional


def lively(module: nn.Module) -> nn.Module:
    """Random values where a fresh module has constants (normalisation, layer scales): a block that is multiplied by
    zero, or a scale of one, would hide faults."""
    with torch.no_grad():
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if not value.is_floating_point() or value.numel() < 2 or bool((value != value.flatten()[0]).any()):
                continue
            around = 1.0 if name.endswith(("weight", "gamma", "running_var", "gamma_1", "gamma_2")) else 0.0
            value.copy_(around + 0.1 * torch.randn_like(value).clamp(-3, 3))
    return module.eval()


def block(inner: int, outer: int, kernel: int = 3, stride: int = 1, **options: int) -> nn.Sequential:
    """Convolution, batch normalisation, SiLU."""
    padding = options.pop("dilation", 1) * (kernel // 2)
    dilation = {"dilation": padding // (kernel // 2)} if kernel > 1 else {}
    convolution = nn.Conv2d(inner, outer, kernel, stride, padding, bias=False, **dilation, **options)
    return nn.Sequential(convolution, nn.BatchNorm2d(outer), nn.SiLU())


class UNet(nn.Module):
    """Ronneberger et al. 2015, three levels, up by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (16, 32, 64)
        self.first = block(3, sizes[0])
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), block(a, b), block(b, b)) for a, b in pairs(sizes))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs(sizes)))
        self.merge = nn.ModuleList(block(2 * a, a) for a, _ in reversed(pairs(sizes)))
        self.last = nn.Conv2d(sizes[0], 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.first(image)
        kept = []
        for down in self.down:
            kept.append(x)
            x = down(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([kept.pop(), up(x)], 1))
        return self.last(x)


def pairs(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(sizes))


class DeepLab(nn.Module):
    """DeepLabV3's head (Chen et al. 2017): parallel dilations, pooled context, bilinear back to the picture's size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(3, 16, stride=2), block(16, 32, stride=2), block(32, 48, stride=2))
        self.rates = nn.ModuleList(block(48, 24, dilation=rate) for rate in (1, 2, 4))
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(48, 24, 1), nn.ReLU())
        self.last = nn.Sequential(block(96, 32, 1), nn.Conv2d(32, 5, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        size = x.shape[-2:]
        context = functional.interpolate(self.pooled(x), size=size, mode="bilinear", align_corners=False)
        x = self.last(torch.cat([*(rate(x) for rate in self.rates), context], 1))
        return functional.interpolate(x, size=image.shape[-2:], mode="bilinear", align_corners=False)


class C2f(nn.Module):
    """YOLOv8's stage: split, residual blocks, every part concatenated."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.half = outer // 2
        self.before, self.after = block(inner, outer, 1), block(outer + self.half, outer, 1)
        self.inside = nn.Sequential(block(self.half, self.half), block(self.half, self.half))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.before(x).split(self.half, 1)
        return self.after(torch.cat([left, right, right + self.inside(right)], 1))


class Pyramid(nn.Module):
    """A backbone with three scales and a top-down path, as YOLO has them."""

    widths = (32, 48, 64)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(3, 16, stride=2), block(16, 24, stride=2))
        sizes = (24, *self.widths)
        self.stages = nn.ModuleList(nn.Sequential(block(a, b, stride=2), C2f(b, b)) for a, b in pairs(sizes))
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.spread = block(64 * 4, 64, 1)
        self.up = nn.ModuleList([C2f(64 + 48, 48), C2f(48 + 32, 32)])

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        x, found = self.stem(image), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        pooled = [x]
        for _ in range(3):
            pooled.append(self.pool(pooled[-1]))
        x = self.spread(torch.cat(pooled, 1))
        scales = [x]
        for up, skip in zip(self.up, (found[1], found[0]), strict=True):
            x = up(torch.cat([functional.interpolate(x, scale_factor=2.0, mode="nearest"), skip], 1))
            scales.append(x)
        return scales[::-1]


class YoloV8(nn.Module):
    """An anchor-free head: distances as distributions of 16 bins, decoded to boxes in the graph."""

    bins, classes = 16, 10

    def __init__(self, size: int = 128) -> None:
        super().__init__()
        self.body = Pyramid()
        self.boxes = nn.ModuleList(nn.Conv2d(w, 4 * self.bins, 1) for w in Pyramid.widths)
        self.scores = nn.ModuleList(nn.Conv2d(w, self.classes, 1) for w in Pyramid.widths)
        self.project = nn.Conv2d(self.bins, 1, 1, bias=False)
        self.project.weight.data.copy_(torch.arange(self.bins, dtype=torch.float).view(1, -1, 1, 1))
        places, strides = [], []
        for stride in (8, 16, 32):
            along = torch.arange(size // stride) + 0.5
            y, x = torch.meshgrid(along, along, indexing="ij")
            places.append(torch.stack((x, y), -1).view(-1, 2))
            strides.append(torch.full((places[-1].shape[0], 1), float(stride)))
        self.register_buffer("places", torch.cat(places).T.unsqueeze(0).contiguous())
        self.register_buffer("strides", torch.cat(strides).T.contiguous())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scales = self.body(image)
        heads = zip(scales, self.boxes, self.scores, strict=True)
        flat = torch.cat([torch.cat((box(x), score(x)), 1).flatten(2) for x, box, score in heads], 2)
        box, score = flat.split((4 * self.bins, self.classes), 1)
        batch, _, count = box.shape
        box = self.project(box.view(batch, 4, self.bins, count).transpose(2, 1).softmax(1)).view(batch, 4, count)
        near, far = box.chunk(2, 1)
        near, far = self.places - near, self.places + far
        box = torch.cat(((near + far) / 2, far - near), 1) * self.strides
        return torch.cat((box, score.sigmoid()), 1)


class YoloV5(nn.Module):
    """Three anchors a cell, decoded in the graph: views of five axes, grids as constants."""

    anchors = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))
    classes = 10

    def __init__(self, size: int = 128) -> None:
        super().__init__()
        self.body = Pyramid()
        self.heads = nn.ModuleList(nn.Conv2d(w, 3 * (5 + self.classes), 1) for w in Pyramid.widths)
        for i, stride in enumerate((8, 16, 32)):
            along = torch.arange(size // stride, dtype=torch.float)
            y, x = torch.meshgrid(along, along, indexing="ij")
            self.register_buffer(f"grid{i}", torch.stack((x, y), 2).expand(1, 3, -1, -1, 2).contiguous() - 0.5)
            self.register_buffer(f"anchor{i}", torch.tensor(self.anchors[i]).float().view(1, 3, 1, 1, 2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = []
        for i, (x, head) in enumerate(zip(self.body(image), self.heads, strict=True)):
            x = head(x)
            batch, _, height, width = x.shape
            x = x.view(batch, 3, -1, height, width).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
            xy, wh, rest = x.split((2, 2, 1 + self.classes), 4)
            xy = (xy * 2 + getattr(self, f"grid{i}")) * (8 << i)
            wh = (wh * 2) ** 2 * getattr(self, f"anchor{i}")
            found.append(torch.cat((xy, wh, rest), 4).view(batch, -1, 5 + self.classes))
        return torch.cat(found, 1)


class Ssd(nn.Module):
    """Class scores and boxes of every prior (Liu et al. 2016), decoded, without suppression."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Pyramid()
        self.scores = nn.ModuleList(nn.Conv2d(w, 4 * 6, 3, padding=1) for w in Pyramid.widths)
        self.boxes = nn.ModuleList(nn.Conv2d(w, 4 * 4, 3, padding=1) for w in Pyramid.widths)
        self.register_buffer("priors", torch.rand(1, 4 * (256 + 64 + 16), 4) + 0.1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scales, batch = self.body(image), image.shape[0]
        scores = [
            head(x).permute(0, 2, 3, 1).reshape(batch, -1, 6) for x, head in zip(scales, self.scores, strict=True)
        ]
        boxes = [head(x).permute(0, 2, 3, 1).reshape(batch, -1, 4) for x, head in zip(scales, self.boxes, strict=True)]
        box = torch.cat(boxes, 1)
        middle = self.priors[..., :2] + box[..., :2] * 0.1 * self.priors[..., 2:]
        size = self.priors[..., 2:] * torch.exp(box[..., 2:] * 0.2)
        return torch.cat(scores, 1).softmax(-1), torch.cat((middle - size / 2, middle + size / 2), -1)


class Recurrent(nn.Module):
    """Two recurrent layers over a sequence, a class from the last step."""

    def __init__(self, kind: type[nn.RNNBase], bidirectional: bool = False) -> None:
        super().__init__()
        self.layers = kind(20, 32, 2, batch_first=True, bidirectional=bidirectional)
        self.last = nn.Linear(64 if bidirectional else 32, 6)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        return self.last(self.layers(sequence)[0][:, -1])


class Streaming(nn.Module):
    """A GRU whose state is an input and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(16, 24, batch_first=True)

    def forward(self, frame: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made, after = self.layer(frame, state)
        return made.tanh(), after


class Words(nn.Module):
    """Embedding, LSTM, class."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.last = nn.Embedding(50, 24), nn.LSTM(24, 24, batch_first=True), nn.Linear(24, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(self.layer(self.embed(ids))[1][0][-1]).softmax(-1)


class Causal(nn.Module):
    """A temporal convolutional network (Bai et al. 2018): dilated, padded on the left, with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(8, 32, 1)
        self.layers = nn.ModuleList(nn.Conv1d(32, 32, 3, dilation=2**i) for i in range(4))
        self.last = nn.Conv1d(32, 5, 1)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        x = self.first(sequence)
        for i, layer in enumerate(self.layers):
            x = x + layer(functional.pad(x, (2 * 2**i, 0))).relu()
        return self.last(x)


class Conformer(nn.Module):
    """Gulati et al. 2020: half feed-forward, attention, gated depthwise convolution, half feed-forward; two blocks."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.into = nn.Linear(8 * 10, width)
        self.blocks = nn.ModuleList(ConformerBlock(width) for _ in range(2))
        self.last = nn.Linear(width, 30)

    def forward(self, spectrum: torch.Tensor) -> torch.Tensor:
        x = self.first(spectrum.unsqueeze(1))
        x = self.into(x.transpose(1, 2).flatten(2))
        for inside in self.blocks:
            x = inside(x)
        return self.last(x).log_softmax(-1)


class ConformerBlock(nn.Module):
    """One block of `Conformer`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.halves = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.gate, self.out = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 1)
        self.deep, self.batch = nn.Conv1d(width, width, 15, padding=7, groups=width), nn.BatchNorm1d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 0.5 * self.halves[0](x)
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = functional.glu(self.gate(self.norms[1](x).transpose(1, 2)), 1)
        x = x + self.out(functional.silu(self.batch(self.deep(y)))).transpose(1, 2)
        x = x + 0.5 * self.halves[1](x)
        return self.norms[2](x)


class Lambda(nn.Module):
    """Layers, then a function of their output."""

    def __init__(self, after, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.after = nn.Sequential(*layers), after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.layers(x))


class Warp(nn.Module):
    """A spatial transformer (Jaderberg et al. 2015): a predicted affine grid, GridSample."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Sequential(nn.Conv2d(3, 8, 7, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.theta = nn.Linear(8, 6)
        self.last = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        theta = self.theta(self.where(image)).view(-1, 2, 3) * 0.1 + torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]])
        grid = functional.affine_grid(theta, list(image.shape), align_corners=False)
        return self.last(functional.grid_sample(image, grid, align_corners=False))


class Flow(nn.Module):
    """GridSample with a grid that is an input."""

    def forward(self, image: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return functional.grid_sample(image, grid.tanh(), mode="bilinear", padding_mode="border", align_corners=True)


class Einsum(nn.Module):
    """Multi-head attention written with einsum, with relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Parameter(torch.randn(32, 4, 8) / 6) for _ in range(3))
        self.out = nn.Parameter(torch.randn(4, 8, 32) / 6)
        self.bias = nn.Parameter(torch.randn(4, 12, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (torch.einsum("bld,dhe->bhle", x, w) for w in (self.query, self.key, self.value))
        weights = (torch.einsum("bhle,bhme->bhlm", q, k) / math.sqrt(8) + self.bias).softmax(-1)
        return torch.einsum("bhle,hed->bld", torch.einsum("bhlm,bhme->bhle", weights, v), self.out)


class SqueezeExcite(nn.Module):
    """Depthwise, squeeze and excite, hard swish, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 5, padding=2, groups=16), nn.BatchNorm2d(16), nn.Hardswish())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Hardsigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.deep(x)
        return x + y * self.gate(y)


class Decoder(nn.Module):
    """torch's own Transformer: encoder and causal decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Transformer(32, 4, 1, 1, 64, 0.0, batch_first=True)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.layers(source, target, tgt_mask=self.mask)


def pointnet() -> nn.Module:
    return Lambda(
        lambda x: x.max(-1).values,
        *(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 64, 1), nn.ReLU()),
    )


def autoencoder() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(16, 32, 3, 2, 1), nn.PReLU(32)),
        *(nn.ConvTranspose2d(32, 16, 3, 2, 1, output_padding=1), nn.ELU(), nn.ConvTranspose2d(16, 3, 4, 2, 1)),
        nn.Tanh(),
    )


PICTURE = {"image": (1, 3, 128, 128)}
OWN = {
    "unet": (UNet, {"image": (1, 3, 64, 64)}),
    "deeplab": (DeepLab, {"image": (1, 3, 96, 96)}),
    "yolov5_like": (YoloV5, PICTURE),
    "yolov8_like": (YoloV8, PICTURE),
    "ssd": (Ssd, PICTURE),
    "lstm_classifier": (lambda: Recurrent(nn.LSTM), {"sequence": (1, 30, 20)}),
    "bilstm_classifier": (lambda: Recurrent(nn.LSTM, bidirectional=True), {"sequence": (1, 30, 20)}),
    "gru_classifier": (lambda: Recurrent(nn.GRU), {"sequence": (1, 30, 20)}),
    "rnn_classifier": (lambda: Recurrent(nn.RNN), {"sequence": (1, 30, 20)}),
    "gru_streaming": (Streaming, {"frame": (1, 1, 16), "state": (1, 1, 24)}),
    "word_lstm": (Words, {"ids": ((1, 12), "int64")}),
    "tcn": (Causal, {"sequence": (1, 8, 64)}),
    "conformer": (Conformer, {"spectrum": (1, 64, 40)}),
    "torch_transformer": (Decoder, {"source": (1, 10, 32), "target": (1, 6, 32)}),
    "depthwise_separable": (
        lambda: nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(16, 8, 1)),
        {"x": (1, 8, 20, 24)},
    ),
    "dilated": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding=4, dilation=(4, 2)), nn.ReLU()),
        {"x": (1, 4, 30, 20)},
    ),
    "transposed": (autoencoder, {"x": (1, 3, 48, 32)}),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(12, 24, 3, 2, 1, groups=3), nn.GELU()), {"x": (1, 12, 17, 23)}),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2)),
        {"x": (1, 2, 8, 12, 12)},
    ),
    "pixel_shuffle": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 27, 3), nn.PixelShuffle(3)),
        {"x": (1, 3, 24, 20)},
    ),
    "pixel_unshuffle": (lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3)), {"x": (1, 3, 24, 20)}),
    "spatial_transformer": (Warp, {"image": (1, 3, 40, 36)}),
    "grid_sample": (Flow, {"image": (1, 3, 24, 24), "grid": (1, 10, 12, 2)}),
    "einsum_attention": (Einsum, {"x": (1, 12, 32)}),
    "squeeze_excite": (SqueezeExcite, {"x": (1, 16, 20, 20)}),
    "pointnet": (pointnet, {"points": (1, 3, 100)}),
    "group_norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.Mish(), nn.InstanceNorm2d(16, affine=True)),
        {"x": (1, 3, 20, 20)},
    ),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(20, 64), nn.Softplus(), nn.Linear(64, 8), nn.LogSoftmax(-1)),
        {"x": (1, 20)},
    ),
    "super_resolution": (
        lambda: Lambda(
            lambda x: functional.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False),
            nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        ),
        {"x": (1, 3, 20, 20)},
    ),
}  # fmt: skip
