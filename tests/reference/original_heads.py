"""The confidence heads of the SCF reference and TFace, written plainly: a table of keys and random tensors,
and arithmetic on the table."""

import torch
from torch.nn.functional import batch_norm, conv2d, linear


def _dense(table, key, outputs, inputs):
    table[f"_log_kappa.{key}.weight"] = torch.randn(outputs, inputs) / inputs**0.5
    table[f"_log_kappa.{key}.bias"] = torch.randn(outputs) / 4


def linear_table(size):
    """The reference's uncertainty network on flattened maps of ``size`` values."""
    t = {}
    for key, outputs, inputs in ((0, size // 2, size), (2, size // 4, size // 2), (4, 1, size // 4)):
        _dense(t, key, outputs, inputs)
    return t


def conv_table(depth=512):
    """TFace's: three convolutions without padding before the same three layers."""
    t = {}
    for key in (0, 2, 5):
        t[f"conv_.{key}.weight"] = torch.randn(depth, depth, 3, 3) / (9 * depth) ** 0.5
    for key in (3, 6):
        t[f"conv_.{key}.weight"] = 0.5 + torch.rand(depth)
        t[f"conv_.{key}.bias"] = torch.randn(depth) / 4
        t[f"conv_.{key}.running_mean"] = torch.randn(depth) / 4
        t[f"conv_.{key}.running_var"] = 0.5 + torch.rand(depth)
        t[f"conv_.{key}.num_batches_tracked"] = torch.tensor(3)
    for key, outputs, inputs in ((0, depth // 2, depth), (2, depth // 4, depth // 2), (4, 1, depth // 4)):
        _dense(t, key, outputs, inputs)
    return t


def log_kappa(t, features):
    """What either gives for maps (n, C, H, W): log(1e-6 + exp(last layer))."""
    x = features
    if "conv_.0.weight" in t:
        norms = {
            k: [t[f"conv_.{k}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
            for k in (3, 6)
        }
        x = torch.relu(conv2d(x, t["conv_.0.weight"]))
        x = torch.relu(batch_norm(conv2d(x, t["conv_.2.weight"]), *norms[3]))
        x = batch_norm(conv2d(x, t["conv_.5.weight"]), *norms[6]).mean((2, 3))
    x = x.reshape(len(x), -1)
    for key in (0, 2):
        x = torch.relu(linear(x, t[f"_log_kappa.{key}.weight"], t[f"_log_kappa.{key}.bias"]))
    x = linear(x, t["_log_kappa.4.weight"], t["_log_kappa.4.bias"]).squeeze(1)
    return torch.log(1e-6 + torch.exp(x))
