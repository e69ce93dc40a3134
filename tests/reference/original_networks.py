"""The networks of arcface_torch, the SCF reference, TFace, TransFace and CVLface, written plainly: a table of
keys and random tensors, and arithmetic on the table. No modules, nothing of ours."""

import torch
from torch.nn.functional import adaptive_avg_pool2d, batch_norm, conv2d, linear, max_pool2d, prelu


def _convolution(table, key, outputs, inputs, side=1):
    table[f"{key}.weight"] = torch.randn(outputs, inputs, side, side) / (inputs * side * side) ** 0.5


def _norm(table, key, channels, affine=True):
    if affine:
        table[f"{key}.weight"] = 0.5 + torch.rand(channels)
        table[f"{key}.bias"] = torch.randn(channels) / 4
    table[f"{key}.running_mean"] = torch.randn(channels) / 4
    table[f"{key}.running_var"] = 0.5 + torch.rand(channels)
    table[f"{key}.num_batches_tracked"] = torch.tensor(7)


def _slopes(table, key, channels):
    table[f"{key}.weight"] = torch.rand(channels)


def _excitation(table, key, channels):
    _convolution(table, f"{key}.fc1", max(1, channels // 16), channels)
    _convolution(table, f"{key}.fc2", channels, max(1, channels // 16))


def _dense(table, key, outputs, inputs, bias=True):
    table[f"{key}.weight"] = torch.randn(outputs, inputs) / inputs**0.5
    if bias:
        table[f"{key}.bias"] = torch.randn(outputs)


def _normed(t, key, x, eps=1e-5):
    values = [t.get(f"{key}.{name}") for name in ("running_mean", "running_var", "weight", "bias")]
    return batch_norm(x, *values, eps=eps)


def _excited(t, key, x):
    inner = torch.relu(conv2d(adaptive_avg_pool2d(x, 1), t[f"{key}.fc1.weight"]))
    return x * torch.sigmoid(conv2d(inner, t[f"{key}.fc2.weight"]))


def iresnet_table(depths, se=False, dim=512, widths=(64, 64, 128, 256, 512), side=7):
    """arcface_torch's iresnet."""
    t = {}
    _convolution(t, "conv1", widths[0], 3, 3)
    _norm(t, "bn1", widths[0])
    _slopes(t, "prelu", widths[0])
    before = widths[0]
    for stage, (depth, after) in enumerate(zip(depths, widths[1:]), 1):
        for index in range(depth):
            key = f"layer{stage}.{index}"
            _norm(t, f"{key}.bn1", before)
            _convolution(t, f"{key}.conv1", after, before, 3)
            _norm(t, f"{key}.bn2", after)
            _slopes(t, f"{key}.prelu", after)
            _convolution(t, f"{key}.conv2", after, after, 3)
            _norm(t, f"{key}.bn3", after)
            if se:
                _excitation(t, f"{key}.se_block", after)
            if index == 0:
                _convolution(t, f"{key}.downsample.0", after, before)
                _norm(t, f"{key}.downsample.1", after)
            before = after
    _norm(t, "bn2", before)
    _dense(t, "fc", dim, before * side * side)
    _norm(t, "features", dim)
    return t


def iresnet(t, depths, x, se=False):
    """(embedding, output of bn2)."""
    x = prelu(_normed(t, "bn1", conv2d(x, t["conv1.weight"], padding=1)), t["prelu.weight"])
    for stage, depth in enumerate(depths, 1):
        for index in range(depth):
            key, stride = f"layer{stage}.{index}", 2 if index == 0 else 1
            y = conv2d(_normed(t, f"{key}.bn1", x), t[f"{key}.conv1.weight"], padding=1)
            y = prelu(_normed(t, f"{key}.bn2", y), t[f"{key}.prelu.weight"])
            y = _normed(t, f"{key}.bn3", conv2d(y, t[f"{key}.conv2.weight"], stride=stride, padding=1))
            if se:
                y = _excited(t, f"{key}.se_block", y)
            if index == 0:
                x = _normed(
                    t, f"{key}.downsample.1", conv2d(x, t[f"{key}.downsample.0.weight"], stride=stride)
                )
            x = x + y
    features = _normed(t, "bn2", x)
    embedding = linear(features.reshape(len(x), -1), t["fc.weight"], t["fc.bias"])
    return _normed(t, "features", embedding), features


def _ir_blocks(depths, bottleneck, widths):
    """(inputs, channels, stride) of every block."""
    blocks, before = [], widths[0]
    for depth, width in zip(depths, widths):
        after = 4 * width if bottleneck else width
        blocks += [(before, after, 2)] + [(after, after, 1)] * (depth - 1)
        before = after
    return blocks


def ir_table(depths, kind, se=False, dim=512, widths=(64, 128, 256, 512), side=7):
    """``kind``: "scf" (the reference's), "tface" (also AdaFace, CVLface) or "tface-bottleneck"."""
    t = {}
    _convolution(t, "input_layer.0", widths[0], 3, 3)
    _norm(t, "input_layer.1", widths[0])
    _slopes(t, "input_layer.2", widths[0])
    for index, (before, after, _) in enumerate(_ir_blocks(depths, kind == "tface-bottleneck", widths)):
        key = f"body.{index}.res_layer"
        if before != after:
            _convolution(t, f"body.{index}.shortcut_layer.0", after, before)
            _norm(t, f"body.{index}.shortcut_layer.1", after)
        _norm(t, f"{key}.0", before)
        if kind == "scf":
            _convolution(t, f"{key}.1", after, before, 3)
            _slopes(t, f"{key}.2", after)
            _convolution(t, f"{key}.3", after, after, 3)
            _norm(t, f"{key}.4", after)
        elif kind == "tface":
            _convolution(t, f"{key}.1", after, before, 3)
            _norm(t, f"{key}.2", after)
            _slopes(t, f"{key}.3", after)
            _convolution(t, f"{key}.4", after, after, 3)
            _norm(t, f"{key}.5", after)
        else:
            inner = after // 4
            _convolution(t, f"{key}.1", inner, before)
            _norm(t, f"{key}.2", inner)
            _slopes(t, f"{key}.3", inner)
            _convolution(t, f"{key}.4", inner, inner, 3)
            _norm(t, f"{key}.5", inner)
            _slopes(t, f"{key}.6", inner)
            _convolution(t, f"{key}.7", after, inner)
            _norm(t, f"{key}.8", after)
        if se:
            _excitation(t, f"{key}.5" if kind == "scf" else f"{key}.se_block", after)
    _norm(t, "output_layer.0", after)
    _dense(t, "output_layer.3", dim, after * side * side)
    _norm(t, "output_layer.4", dim, affine=False)
    return t


def ir(t, depths, kind, x, se=False, widths=(64, 128, 256, 512)):
    """(embedding, output of body)."""
    x = conv2d(x, t["input_layer.0.weight"], padding=1)
    x = prelu(_normed(t, "input_layer.1", x), t["input_layer.2.weight"])
    for index, (before, after, stride) in enumerate(_ir_blocks(depths, kind == "tface-bottleneck", widths)):
        key, short = f"body.{index}.res_layer", f"body.{index}.shortcut_layer"
        w = {n: t.get(f"{key}.{n}.weight") for n in range(9)}
        y = _normed(t, f"{key}.0", x)
        if kind == "scf":
            y = prelu(conv2d(y, w[1], padding=1), w[2])
            y = _normed(t, f"{key}.4", conv2d(y, w[3], stride=stride, padding=1))
        elif kind == "tface":
            y = prelu(_normed(t, f"{key}.2", conv2d(y, w[1], padding=1)), w[3])
            y = _normed(t, f"{key}.5", conv2d(y, w[4], stride=stride, padding=1))
        else:
            y = prelu(_normed(t, f"{key}.2", conv2d(y, w[1])), w[3])
            y = prelu(_normed(t, f"{key}.5", conv2d(y, w[4], padding=1)), w[6])
            y = _normed(t, f"{key}.8", conv2d(y, w[7], stride=stride))
        if se:
            y = _excited(t, f"{key}.5" if kind == "scf" else f"{key}.se_block", y)
        if before == after:
            x = max_pool2d(x, 1, stride)
        else:
            x = _normed(t, f"{short}.1", conv2d(x, t[f"{short}.0.weight"], stride=stride))
        x = x + y
    y = _normed(t, "output_layer.0", x).reshape(len(x), -1)
    return _normed(t, "output_layer.4", linear(y, t["output_layer.3.weight"], t["output_layer.3.bias"])), x


def _mbf_blocks(depths, scale, unit):
    """(key, inputs, outputs, inner, stride) of every inverted block."""
    low, high = unit * scale, 2 * unit * scale
    if depths[0] > 1:
        for j in range(depths[0]):
            yield f"layers.1.layers.{j}.layers", low, low, 2 * unit, 1
    yield "layers.2.layers", low, low, 2 * unit, 2
    for j in range(depths[1]):
        yield f"layers.3.layers.{j}.layers", low, low, 2 * unit, 1
    yield "layers.4.layers", low, high, 4 * unit, 2
    for j in range(depths[2]):
        yield f"layers.5.layers.{j}.layers", high, high, 4 * unit, 1
    yield "layers.6.layers", high, high, 8 * unit, 2
    for j in range(depths[3]):
        yield f"layers.7.layers.{j}.layers", high, high, 4 * unit, 1


def mobilefacenet_table(depths, scale, dim=512, unit=64, side=7):
    """arcface_torch's MobileFaceNet; 64 is the original's unit of channels."""
    t = {}

    def unit_of(key, outputs, inputs, kernel=1, slopes=True):
        _convolution(t, f"{key}.layers.0", outputs, inputs, kernel)
        _norm(t, f"{key}.layers.1", outputs)
        if slopes:
            _slopes(t, f"{key}.layers.2", outputs)

    low = unit * scale
    unit_of("layers.0", low, 3, 3)
    if depths[0] == 1:
        unit_of("layers.1", low, scale, 3)  # groups of `scale` channels
    for key, inputs, outputs, inner, _ in _mbf_blocks(depths, scale, unit):
        unit_of(f"{key}.0", inner, inputs)
        unit_of(f"{key}.1", inner, 1, 3)
        unit_of(f"{key}.2", outputs, inner, slopes=False)
    unit_of("conv_sep", 8 * unit, 2 * low)
    unit_of("features.layers.0", 8 * unit, 1, side, slopes=False)
    _dense(t, "features.layers.2", dim, 8 * unit, bias=False)
    _norm(t, "features.layers.3", dim)
    return t


def mobilefacenet(t, depths, scale, x, unit=64):
    """(embedding, output of conv_sep)."""

    def unit_of(key, x, **options):
        x = _normed(t, f"{key}.layers.1", conv2d(x, t[f"{key}.layers.0.weight"], **options))
        slopes = t.get(f"{key}.layers.2.weight")
        return x if slopes is None else prelu(x, slopes)

    x = unit_of("layers.0", x, stride=2, padding=1)
    if depths[0] == 1:
        x = unit_of("layers.1", x, padding=1, groups=unit)
    for key, _, _, inner, stride in _mbf_blocks(depths, scale, unit):
        y = unit_of(f"{key}.1", unit_of(f"{key}.0", x), stride=stride, padding=1, groups=inner)
        y = unit_of(f"{key}.2", y)
        x = x + y if stride == 1 else y
    features = unit_of("conv_sep", x)
    y = unit_of("features.layers.0", features, groups=8 * unit).reshape(len(x), -1)
    return _normed(t, "features.layers.3", linear(y, t["features.layers.2.weight"])), features


# depth, channels, heads, patch, ratio of the dense layers, TransFace's weights of tokens
TRANSFORMERS = {
    "vit_t": (12, 256, 8, 9, 4, False), "vit_s": (12, 512, 8, 9, 4, False),
    "vit_b": (24, 512, 8, 9, 4, False),
    "vit_l": (24, 768, 8, 9, 4, False), "vit_h": (48, 1024, 8, 9, 4, False),
    "transface_s": (12, 512, 8, 9, 4, True), "transface_b": (24, 512, 8, 9, 4, True),
    "transface_l": (24, 768, 8, 9, 4, True), "cvlface_vit_s": (12, 512, 8, 8, 5, False),
    "cvlface_vit_b": (24, 512, 16, 8, 3, False),
}  # fmt: skip


def transformer_table(depth, channels, patch, ratio, weighted, dim, side):
    t = {"pos_embed": torch.randn(1, side**2, channels) / 4, "mask_token": torch.randn(1, 1, channels)}
    _convolution(t, "patch_embed.proj", channels, 3, patch)
    t["patch_embed.proj.bias"] = torch.randn(channels) / 4

    def layer_norm_of(key):
        t[f"{key}.weight"], t[f"{key}.bias"] = 0.5 + torch.rand(channels), torch.randn(channels) / 4

    for index in range(depth):
        key = f"blocks.{index}"
        layer_norm_of(f"{key}.norm1")
        layer_norm_of(f"{key}.norm2")
        _dense(t, f"{key}.attn.qkv", 3 * channels, channels, bias=False)
        _dense(t, f"{key}.attn.proj", channels, channels)
        _dense(t, f"{key}.mlp.fc1", ratio * channels, channels)
        _dense(t, f"{key}.mlp.fc2", channels, ratio * channels)
    layer_norm_of("norm")
    _dense(t, "feature.0", channels, channels * side**2, bias=False)
    _norm(t, "feature.1", channels)
    _dense(t, "feature.2", dim, channels, bias=False)
    _norm(t, "feature.3", dim)
    if weighted:
        _dense(t, "senet.0", side**2, channels * side**2, bias=False)
        _dense(t, "senet.2", side**2, side**2, bias=False)
    return t


def _layer_normed(t, key, x):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * t[f"{key}.weight"] + t[f"{key}.bias"]


def transformer(t, depth, channels, heads, patch, weighted, x):
    """(embedding, tokens as a map): every image, head and pair of tokens as the formula has it."""
    side = x.shape[2] // patch
    x = conv2d(x, t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2) + t["pos_embed"]
    size = channels // heads
    for index in range(depth):
        key = f"blocks.{index}"
        joint = linear(_layer_normed(t, f"{key}.norm1", x), t[f"{key}.attn.qkv.weight"])
        q, k, v = joint.split(channels, 2)
        parts = []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            scores = torch.softmax(q[..., own] @ k[..., own].transpose(1, 2) / size**0.5, 2)
            parts.append(scores @ v[..., own])
        x = x + linear(torch.cat(parts, 2), t[f"{key}.attn.proj.weight"], t[f"{key}.attn.proj.bias"])
        y = linear(_layer_normed(t, f"{key}.norm2", x), t[f"{key}.mlp.fc1.weight"], t[f"{key}.mlp.fc1.bias"])
        x = x + linear(y.clamp(0, 6), t[f"{key}.mlp.fc2.weight"], t[f"{key}.mlp.fc2.bias"])
    tokens = x = _layer_normed(t, "norm", x)
    if weighted:
        y = torch.relu(linear(x.flatten(1), t["senet.0.weight"]))
        x = x * torch.sigmoid(linear(y, t["senet.2.weight"]))[:, :, None]
    for dense, norm in (("feature.0", "feature.1"), ("feature.2", "feature.3")):
        x = _normed(t, norm, linear(x.flatten(1), t[f"{dense}.weight"]), eps=2e-5)
    return x, tokens.transpose(1, 2).reshape(len(x), channels, side, side)


DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 101: (3, 13, 30, 3)}


def original(name, width=1.0, dim=512, side=None):
    """Table and forward pass of the original that `make_backbone` calls ``name``; ``side`` is of the map."""
    if name.split("_dp")[0] in TRANSFORMERS:
        depth, channels, heads, patch, ratio, weighted = TRANSFORMERS[name.split("_dp")[0]]
        channels, side = int(channels * width), side or 112 // patch
        table = transformer_table(depth, channels, patch, ratio, weighted, dim, side)
        return table, lambda x: transformer(table, depth, channels, heads, patch, weighted, x)
    side = side or 7
    widths = tuple(int(w * width) for w in (64, 128, 256, 512))
    if name.startswith("mbf"):
        depths, scale = ((1, 4, 6, 2), 2) if name == "mbf" else ((2, 8, 12, 4), 4)
        unit = widths[0]
        table = mobilefacenet_table(depths, scale, dim, unit, side)
        return table, lambda x: mobilefacenet(table, depths, scale, x, unit)
    layers, se = int("".join(filter(str.isdigit, name))), "se" in name.split("-")
    if name.startswith("r"):
        depths = {**DEPTHS, 200: (6, 26, 60, 6)}[layers]
        table = iresnet_table(depths, se, dim, (widths[0], *widths), side)
        return table, lambda x: iresnet(table, depths, x, se)
    depths = {**DEPTHS, 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}[layers]
    kind = "scf" if name.startswith("ir-") else "tface" if layers < 152 else "tface-bottleneck"
    table = ir_table(depths, kind, se, dim, widths, side)
    return table, lambda x: ir(table, depths, kind, x, se, widths)
