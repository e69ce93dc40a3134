"""float32 stays float32 on a GPU within a block that requests it; the settings exist without a GPU."""

import threading
from collections.abc import Iterator

import pytest
import torch

from spherecf.errors import InputError
from spherecf.models import FrozenBackbone, Preprocessing, float32_arithmetic, make_backbone
from spherecf.models.engines import tf32_notes

GPU = torch.device("cuda")
later = pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9")


def settings() -> tuple[bool, str]:
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


FULL, TF32 = (False, "highest"), (True, "high")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    if hasattr(torch.backends.cudnn, "conv"):
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("initial", [(True, "highest"), (False, "highest"), (True, "high"), (True, "medium")])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_block_sets_its_precision_and_restores_the_previous_one(
    initial: tuple[bool, str], precision: str
) -> None:
    torch.backends.cudnn.allow_tf32 = initial[0]
    torch.set_float32_matmul_precision(initial[1])
    with float32_arithmetic(precision, GPU):
        allowed = {TF32, (True, "medium")} if precision == "tf32" else {FULL}
        assert settings() in allowed
    assert settings() == initial


def test_an_error_restores_the_previous_precision() -> None:
    with pytest.raises(ZeroDivisionError), float32_arithmetic("float32", GPU):
        1 / 0  # noqa: B018
    assert settings() == (True, "highest")


def test_the_innermost_block_wins() -> None:
    with float32_arithmetic("tf32", GPU):
        with float32_arithmetic("float32", GPU):
            assert settings() == FULL
            with float32_arithmetic("tf32", GPU):
                assert settings() == TF32
            assert settings() == FULL
        assert settings() == TF32
    assert settings() == (True, "highest")


def test_concurrent_blocks_get_the_highest_requested_precision() -> None:
    inside, released = threading.Event(), threading.Event()

    def compute_in_float32() -> None:
        with float32_arithmetic("float32", GPU):
            inside.set()
            released.wait(10)

    thread = threading.Thread(target=compute_in_float32)
    with float32_arithmetic("tf32", GPU):
        thread.start()
        assert inside.wait(10)
        assert settings() == FULL
        released.set()
        thread.join()
        assert settings() == TF32
    assert settings() == (True, "highest")


def test_many_threads_restore_the_previous_precision() -> None:
    violations = []

    def work(precision: str) -> None:
        for _ in range(200):
            with float32_arithmetic(precision, GPU):
                if precision == "float32" and torch.backends.cudnn.allow_tf32:
                    violations.append(settings())

    threads = [threading.Thread(target=work, args=[name]) for name in ("float32", "tf32", "float32", "tf32")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert violations == [] and settings() == (True, "highest")


@later
@pytest.mark.parametrize(("convolutions", "products"), [("ieee", "ieee"), ("tf32", "tf32"), ("none", "none")])
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_settings_of_torch_2_9_are_respected(convolutions: str, products: str, precision: str) -> None:
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    conv.fp32_precision, matmul.fp32_precision = convolutions, products
    # "none" means full precision, as does "ieee"
    initial = (
        conv.fp32_precision == "tf32",
        matmul.fp32_precision == "tf32",
    )
    with float32_arithmetic(precision, GPU):
        allowed = {"tf32"} if precision == "tf32" else {"ieee", "none"}
        assert {conv.fp32_precision, matmul.fp32_precision} <= allowed
    assert (conv.fp32_precision == "tf32", matmul.fp32_precision == "tf32") == initial


def test_settings_are_unchanged_on_the_cpu() -> None:
    torch.set_float32_matmul_precision("high")
    with float32_arithmetic("float32", torch.device("cpu")):
        assert settings() == TF32


def test_tf32_requires_a_gpu() -> None:
    refused = pytest.raises(InputError, match="tf32 is arithmetic of GPUs, got the device cpu; use float32")
    with refused, float32_arithmetic("tf32", torch.device("cpu")):
        pass
    network = make_backbone("r18", dim=16, size=32, width=0.25).eval()
    pixels = Preprocessing("rgb", 127.5, 127.5, (32, 32))
    with pytest.raises(InputError, match="tf32 is arithmetic of GPUs"):
        FrozenBackbone.from_module(network, pixels, dtype="tf32")
    with pytest.raises(InputError, match="tf32 is arithmetic of GPUs"):
        FrozenBackbone.default(dtype="tf32")


def test_the_error_due_to_tf32_is_reported() -> None:
    truth = torch.tensor([[1.0, 2.0]]), torch.full((1, 1, 1, 1), 4.0)
    rounded = torch.tensor([[1.0, 2.002]]), torch.full((1, 1, 1, 1), 4.002)
    assert tf32_notes("tf32", "onnxruntime", rounded, truth) == [
        "runs in TF32: on two images of noise its embedding differs from that of onnxruntime by 1.0e-03 of "
        "its largest value, its map by 5.0e-04"
    ]
    assert tf32_notes("float32", "onnxruntime", truth, truth) == []
