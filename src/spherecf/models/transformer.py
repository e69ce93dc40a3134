"""Vision transformers for face recognition: insightface's arcface_torch, and the models derived from them."""

from collections.abc import Mapping
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from spherecf.errors import InputError
from spherecf.models.network import Network, Shapes

_STD = 0.02  # standard deviation of the initial weights
_SIZE = 112  # side of the images in all original models
_T, _S = {"depth": 12, "channels": 256}, {"depth": 12, "channels": 512}
_B, _L, _H = ({"depth": d, "channels": c} for d, c in ((24, 512), (24, 768), (48, 1024)))

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "vit_t": _T, "vit_s": _S, "vit_b": _B, "vit_l": _L, "vit_h": {**_H, "mask": 0.0},
    "vit_t_dp005_mask0": {**_T, "drop_path": 0.05, "mask": 0.0},
    "vit_s_dp005_mask_0": {**_S, "drop_path": 0.05, "mask": 0.0},
    "vit_b_dp005_mask_005": {**_B, "drop_path": 0.05, "mask": 0.05},
    "vit_l_dp005_mask_005": {**_L, "drop_path": 0.05, "mask": 0.05},
    "transface_s": {**_S, "se": True}, "transface_b": {**_B, "se": True}, "transface_l": {**_L, "se": True},
    "cvlface_vit_s": {**_S, "patch": 8, "ratio": 5},
    "cvlface_vit_b": {**_B, "patch": 8, "ratio": 3, "heads": 16},
}  # fmt: skip
"""Arguments of `VisionTransformer` by name, all for 112x112; arcface_torch and LVFace share the ``vit_*``."""


class Attention(nn.Module):
    """Multi-head attention, softmax(q k^T / sqrt(d)) v, in float32 (A. Vaswani et al., NeurIPS 2017)."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, T, C) to tokens."""
        count, tokens, channels = x.shape
        joint = self.qkv(x).reshape(count, tokens, 3, self.heads, channels // self.heads)
        query, key, value = joint.permute(2, 0, 3, 1, 4).unbind()
        with torch.autocast(x.device.type, enabled=False):
            mixed = scaled_dot_product_attention(query.float(), key.float(), value.float())
        mixed = mixed.transpose(1, 2).reshape(count, tokens, channels)
        return self.proj_drop(self.proj(mixed.to(joint.dtype)))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two dense layers with ReLU6 in between, applied to each token separately."""

    def __init__(self, channels: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, inner), nn.Linear(inner, channels)
        self.act, self.drop = nn.ReLU6(), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, T, C) to tokens."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))  # type: ignore[no-any-return]


class DropPath(nn.Module):
    """Stochastic depth (G. Huang et al., ECCV 2016): skip the branch for a share ``rate`` of images."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Identity in evaluation mode; in training zero for some images and scaled up for the others."""
        if not self.training or not self.rate:
            return branch
        keep = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * keep / (1 - self.rate)


class Block(nn.Module):
    """Transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, channels: int, heads: int, inner: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = Attention(channels, heads, dropout)
        self.mlp = Mlp(channels, inner, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, T, C) to tokens."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class PatchEmbed(nn.Module):
    """Square patches as tokens; incomplete patches at the right and bottom edges are cut off."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (n, 3, h, w) to tokens (n, T, C), row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class VisionTransformer(Network):
    """Patches as tokens through ``depth`` blocks; the concatenated, normalised tokens give the embedding.

    There is no class token. The feature map is these tokens on the grid of patches, 512x12x12 for ``vit_b``.
    In training a random fraction ``mask`` of each image's patches skips the blocks and is replaced by a
    learned token afterwards. State dictionaries are compatible with arcface_torch's ``vit.py``, with CVLface
    and, with ``se``, with TransFace.

    Args:
        depth: number of blocks.
        channels: of a token, before scaling by ``width``; the result is rounded to a multiple of ``heads``.
        heads: number of attention heads, which the shapes of a state dictionary do not reveal.
        patch: side of a patch in pixels.
        ratio: inner width of the dense layers over the width of a token.
        se: weight tokens by sigmoid(W2 relu(W1 all tokens)), as in TransFace.
        drop_path: rate of `DropPath` in the last block; it increases linearly from 0 in the first block.
        mask: fraction of the patches left out in training, in [0, 1).
        options: see `Network`; ``dropout`` is the original's ``drop_rate``, applied after the position
            embedding, the attention and the dense layers.

    Raises:
        InputError: a rate outside [0, 1), or images smaller than a patch.
    """

    anchor = "feature.3.running_mean"
    training_only = ("mask_token",)
    foreign: ClassVar[Mapping[str, str]] = {
        ".rpe_": "it has relative position encodings (CVLface's KP-RPE and iRPE), which SphereCF does not "
        "support. KP-RPE also needs key points for each image; for the others, export an ONNX file with the "
        "original code"
    }

    def __init__(
        self,
        *,
        depth: int,
        channels: int,
        heads: int = 8,
        patch: int = 9,
        ratio: int = 4,
        se: bool = False,
        drop_path: float = 0.1,
        mask: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 0 <= drop_path < 1 or not 0 <= mask < 1 or self.size < patch:
            raise InputError(
                f"backbone: expected drop_path and mask in [0, 1) and a size of {patch} or more, got "
                f"drop_path={drop_path}, mask={mask}, size={self.size}"
            )
        self.patch, self.drop_path, self.mask = patch, drop_path, mask
        self.map_channels = width = heads * max(1, round(channels * self.width / heads))
        tokens = self.side**2
        self.patch_embed = PatchEmbed(width, patch)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, width), std=_STD))
        self.pos_drop = nn.Dropout(self.dropout_rate)
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(width, heads, ratio * width, self.dropout_rate, rate) for rate in rates
        )
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(tokens * width, width, bias=False), nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, self.dim, bias=False), nn.BatchNorm1d(self.dim, eps=2e-5),
        )  # fmt: skip
        # Frozen without masking: it would get no gradient, for which distributed ranks would wait.
        self.mask_token = nn.Parameter(
            nn.init.normal_(torch.empty(1, 1, width), std=_STD), requires_grad=mask > 0
        )
        self.apply(_initialize)
        self.senet = nn.Sequential(
            nn.Linear(tokens * width, tokens, bias=False), nn.ReLU(),
            nn.Linear(tokens, tokens, bias=False), nn.Sigmoid(),
        ) if se else None  # fmt: skip

    @property
    def side(self) -> int:
        """Number of patches per row and column."""
        return self.size // self.patch

    def config(self) -> dict[str, Any]:
        """See `Network.config`."""
        return {**super().config(), "drop_path": self.drop_path, "mask": self.mask}

    @classmethod
    def measure(cls, shapes: Shapes) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Network.measure`.

        A narrower network (``width`` below 1) is assumed to be a scaled version of the narrowest original.
        """
        _, tokens, width = shapes["pos_embed"]
        patch, side = shapes["patch_embed.proj.weight"][2], isqrt(tokens)
        if side**2 != tokens:
            raise ValueError(f"{tokens} patches do not form a square")
        sizes = {
            "depth": sum(key.endswith(".attn.qkv.weight") for key in shapes),
            "patch": patch,
            "ratio": shapes["blocks.0.mlp.fc1.weight"][0] // width,
            "se": "senet.0.weight" in shapes,
        }
        defaults = {"patch": 9, "ratio": 4, "se": False}
        fitting = [
            original for original in TRANSFORMERS.values()
            if original["channels"] >= width and sizes.items() <= {**defaults, **original}.items()
        ]  # fmt: skip
        scaled = {**sizes, "channels": width}
        architecture = min(fitting, key=lambda original: original["channels"], default=scaled)
        options = {"dim": shapes["feature.2.weight"][0], "width": width / architecture["channels"]}
        options["size"] = _SIZE if _SIZE // patch == side else patch * side
        return architecture, options if "mask_token" in shapes else {**options, "mask": 0.0}

    def convolve(self, x: Tensor) -> Tensor:
        """The normalised tokens, including masked ones in training, as a map (n, C, side, side)."""
        x = self.pos_drop(self.patch_embed(x) + self.pos_embed)
        masked = self.training and self.mask > 0
        if masked:
            order = torch.rand(x.shape[:2], device=x.device).argsort(1)
            x = _gather(x, order[:, : max(1, int(x.shape[1] * (1 - self.mask)))])
        for block in self.blocks:
            x = self.run(block, x)
        with torch.autocast(x.device.type, enabled=False):
            x = self.norm(x.to(self.norm.weight.dtype))
        if masked:
            masked_tokens = self.mask_token.expand(len(x), order.shape[1] - x.shape[1], -1)
            x = _gather(torch.cat([x, masked_tokens], 1), order.argsort(1))
        return x.transpose(1, 2).reshape(x.shape[0], -1, self.side, self.side)

    def embed(self, features: Tensor) -> Tensor:
        """Concatenate all tokens, weighted with ``se``, and apply two dense layers with normalisation."""
        tokens = features.flatten(2).transpose(1, 2)
        if self.senet is not None:
            tokens = tokens * self.senet(tokens.flatten(1))[:, :, None]
        return self.feature(tokens.flatten(1))  # type: ignore[no-any-return]


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _gather(tokens: Tensor, order: Tensor) -> Tensor:
    """Select tokens (n, T, C) in a different order (n, t) for each image."""
    return tokens.gather(1, order[:, :, None].expand(-1, -1, tokens.shape[2]))
