"""`python train.py`: the command of the SCF reference implementation, for stage 2 of this library.

The options, their abbreviations and their defaults are those of ``train.py`` in MathsShen/SCF, which also
uses argparse. docs/reference-command.md maps each option to our settings. The command can also be run as
``python -m spherecf.cli.reference``.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence

import typer

from spherecf.cli.options import run_command

SCHEDULERS = ("StepLR", "ReduceLROnPlateau")


def parser() -> argparse.ArgumentParser:
    """Parser of the reference's options. Options without which the reference fails are required.

    Example:
        >>> options = (
        ...     "--dataset ms1m --seed 7 --batch_size 8 --output_dir out --saved_bkb b --saved_fc f --rad 64"
        ... )
        >>> parser().parse_args(options.split()).radius
        64.0
    """
    options = argparse.ArgumentParser(
        "train.py", description="Train a confidence head as the SCF reference does."
    )
    add = options.add_argument
    add("--dataset", required=True,
        help="name of the data set: reads DATAROOT/list/NAME_list.txt, or a RecordIO folder")  # fmt: skip
    add("--dataroot", default="", help="folder of the data (default: the current folder)")
    add("--seed", type=int, required=True, help="random seed")
    add("--gpu_ids", nargs="+", default=["0"], metavar="ID",
        help="GPUs to train on, e.g. 0,1,2; starts one process per GPU (default: 0)")  # fmt: skip
    add("--batch_size", type=int, required=True, help="batch size, summed over all processes")
    add("--eval_batch_size", type=int, default=1, help="has no effect, as in the reference")
    add("--output_dir", required=True,
        help="folder for runs/, ckpts/, hparams.json and confidence.safetensors")  # fmt: skip
    add("--saved_bkb", required=True, help="checkpoint of the recogniser")
    add("--saved_fc", required=True, help="checkpoint of the recogniser's classifier")
    add("--num_workers", type=int, default=6, help="decoding threads, summed over all processes (default: 6)")
    add("--no_cuda", action="store_false", dest="cuda", help="train on the CPU")
    add("--epochs", type=int, default=100, help="number of epochs (default: 100)")
    add("--lr", type=float, default=3e-4, help="learning rate (default: 3e-4)")
    add("--lr_scheduler", choices=SCHEDULERS, help="learning rate schedule (default: constant)")
    add("--step_size", type=int, help="step size of StepLR, in epochs")
    add("--gamma", type=float, help="decay factor of StepLR")
    add("--weight_decay", type=float, default=5e-4, help="weight decay (default: 5e-4)")
    add("--convf_dim", type=int, default=25088,
        help="number of values in the recogniser's last feature map (default: 25088)")  # fmt: skip
    add("--z_dim", type=int, default=512, help="dimension of the recogniser's embedding (default: 512)")
    add("--radius", type=float, required=True, help="radius r of the loss")
    add("--max_grad_clip", type=float, default=0.0,
        help="clip gradient values to this; 0 for none (default: 0)")  # fmt: skip
    add("--max_grad_norm", type=float, default=0.0,
        help="clip the gradient norm to this; 0 for none (default: 0)")  # fmt: skip
    add("--tensorboard", action="store_true", help="write TensorBoard events to OUTPUT_DIR/runs")
    add("--finetune_bkb", action="store_true", help="also train the recogniser")
    add("--loss", choices=("exact", "released"), default="exact",
        help="not in the reference: released computes the loss with the reference's epsilons "
        "(default: exact)")  # fmt: skip
    return options


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the options, with ``gpu_ids`` joined by commas. A wrong option exits with code 2."""
    argument_parser = parser()
    options = argument_parser.parse_args(words)
    options.gpu_ids = ",".join(options.gpu_ids).strip(",")
    ids = options.gpu_ids.split(",")
    if not all(ids) or len(set(ids)) < len(ids):
        argument_parser.error(
            f"argument --gpu_ids: expected different numbers such as 0,1, got {options.gpu_ids!r}"
        )
    if options.lr_scheduler == "StepLR" and None in (options.step_size, options.gamma):
        argument_parser.error("--lr_scheduler StepLR needs --step_size and --gamma")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 130 interrupted.

    Starts one process per GPU in ``--gpu_ids``, unless ``torchrun`` has already started them. Prints a JSON
    report on stdout: the files written, the last epoch, and the images left out with the reason.
    """
    return run_command(lambda: _main(list(sys.argv[1:] if words is None else words)))


def _main(words: Sequence[str]) -> int:
    options = parse(words)
    count = len(options.gpu_ids.split(","))
    if options.cuda and "WORLD_SIZE" not in os.environ:  # otherwise the launcher assigns the GPUs
        os.environ["CUDA_VISIBLE_DEVICES"] = options.gpu_ids
    if count > 1 and "WORLD_SIZE" not in os.environ:
        return _start_processes(count, words)
    from spherecf.cli.reference_run import train

    if report := train(options):
        typer.echo(json.dumps(report, indent=2))
    return 0


def _start_processes(count: int, words: Sequence[str]) -> int:
    """Run the same command in ``count`` processes, as ``torchrun`` does. Each process reports its errors."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    command = ["--standalone", f"--nproc-per-node={count}", "-m", "spherecf.cli.reference", *words]
    try:
        run(parse_args(command))  # type: ignore[no-untyped-call]
    except ChildFailedError:
        return 1
    except SignalException:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
