"""Vision transformers for faces as insightface's arcface_torch names them, and those made after them."""

from collections.abc import Mapping
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from spherecf.errors import InputError
from spherecf.models.network import Network, Shapes

_STD = 0.02  # of the initial weights
_SIZE = 112
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
"""Arguments of `VisionTransformer` by name: ``vit_*`` are arcface_torch's (LVFace's too), all for 112x112."""


class Attention(nn.Module):
    """Softmax(q k^T / sqrt(d)) v in each head (A. Vaswani et al., 2017), always in float32."""

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
            seen = scaled_dot_product_attention(query.float(), key.float(), value.float())
        seen = seen.transpose(1, 2).reshape(count, tokens, channels)
        return self.proj_drop(self.proj(seen.to(joint.dtype)))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two dense layers with ReLU6 between them, of each token by itself."""

    def __init__(self, channels: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, inner), nn.Linear(inner, channels)
        self.act, self.drop = nn.ReLU6(), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, T, C) to tokens."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))  # type: ignore[no-any-return]


class DropPath(nn.Module):
    """Stochastic depth (G. Huang et al., ECCV 2016): ``rate`` of the images go without the branch."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Unchanged in evaluation; in training zero for some images, and larger for the others."""
        if not self.training or not self.rate:
            return branch
        keep = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * keep / (1 - self.rate)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

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
    """Square patches as tokens; what is left over at the right and the bottom is not seen."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (n, 3, h, w) to tokens (n, T, C), row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class VisionTransformer(Network):
    """Patches as tokens through ``depth`` blocks; all normalised tokens side by side become the embedding.

    There is no class token. The map is those tokens on the patches' grid, 512x12x12 for ``vit_b``. In
    training a share ``mask`` of the patches is left out of the blocks, drawn anew for every image, and comes
    back as one learned token. State dictionaries are those of arcface_torch's ``vit.py``, of CVLface's, and
    with ``se`` of TransFace's.

    Args:
        depth: number of blocks.
        channels: of a token, before ``width``, which keeps them a multiple of ``heads``.
        heads: of the attention; a state dictionary's shapes do not tell them.
        patch: side of a patch in pixels.
        ratio: inner width of the dense layers over that of a token.
        se: tokens weighted by sigmoid(W2 relu(W1 all tokens)), as TransFace does.
        drop_path: largest rate of `DropPath`, that of the last block; it rises from 0 in the first.
        mask: share of the patches left out in training, in [0, 1).
        options: see `Network`; ``dropout`` is the original's ``drop_rate``, behind positions, attention and
            dense layers.

    Raises:
        InputError: a rate outside [0, 1), or images smaller than a patch.
    """

    anchor = "feature.3.running_mean"
    training_only = ("mask_token",)
    foreign: ClassVar[Mapping[str, str]] = {
        ".rpe_": "it has relative position encodings (CVLface's KP-RPE and iRPE), which SphereCF does not "
        "have. KP-RPE also wants key points beside each image; for the others, export an ONNX file with the "
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
        # Without masking nothing would ever reach it, and ranks would wait for its gradient.
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
        """Patches in a row."""
        return self.size // self.patch

    def config(self) -> dict[str, Any]:
        """See `Network.config`."""
        return {**super().config(), "drop_path": self.drop_path, "mask": self.mask}

    @classmethod
    def measure(cls, shapes: Shapes) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Network.measure`.

        A narrower network (``width`` below 1) is taken for the smallest original of its depth.
        """
        _, tokens, width = shapes["pos_embed"]
        patch, side = shapes["patch_embed.proj.weight"][2], isqrt(tokens)
        if side**2 != tokens:
            raise ValueError(f"{tokens} patches are no square")
        sizes = {
            "depth": sum(key.endswith(".attn.qkv.weight") for key in shapes),
            "patch": patch,
            "ratio": shapes["blocks.0.mlp.fc1.weight"][0] // width,
            "se": "senet.0.weight" in shapes,
        }
        like = {"patch": 9, "ratio": 4, "se": False}
        fitting = [
            known for known in TRANSFORMERS.values()
            if known["channels"] >= width and sizes.items() <= {**like, **known}.items()
        ]  # fmt: skip
        architecture = min(fitting, key=lambda known: known["channels"], default={**sizes, "channels": width})
        options = {"dim": shapes["feature.2.weight"][0], "width": width / architecture["channels"]}
        options["size"] = _SIZE if _SIZE // patch == side else patch * side
        return architecture, options if "mask_token" in shapes else {**options, "mask": 0.0}

    def convolve(self, x: Tensor) -> Tensor:
        """The normalised tokens, in training with masked ones among them, as a map (n, C, side, side)."""
        x = self.pos_drop(self.patch_embed(x) + self.pos_embed)
        masked = self.training and self.mask > 0
        if masked:
            order = torch.rand(x.shape[:2], device=x.device).argsort(1)
            x = _gathered(x, order[:, : max(1, int(x.shape[1] * (1 - self.mask)))])
        for block in self.blocks:
            x = self.run(block, x)
        with torch.autocast(x.device.type, enabled=False):
            x = self.norm(x.to(self.norm.weight.dtype))
        if masked:
            absent = self.mask_token.expand(len(x), order.shape[1] - x.shape[1], -1)
            x = _gathered(torch.cat([x, absent], 1), order.argsort(1))
        return x.transpose(1, 2).reshape(x.shape[0], -1, self.side, self.side)

    def embed(self, features: Tensor) -> Tensor:
        """All tokens side by side, weighted if TransFace's, through two dense layers with normalisation."""
        tokens = features.flatten(2).transpose(1, 2)
        if self.senet is not None:
            tokens = tokens * self.senet(tokens.flatten(1))[:, :, None]
        return self.feature(tokens.flatten(1))  # type: ignore[no-any-return]


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _gathered(tokens: Tensor, order: Tensor) -> Tensor:
    """Tokens (n, T, C) in each image's own order (n, t)."""
    return tokens.gather(1, order[:, :, None].expand(-1, -1, tokens.shape[2]))
