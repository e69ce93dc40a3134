"""`python train.py`: the SCF reference's command, with its options, for stage 2 of this library.

Options, their abbreviations and defaults are those of ``train.py`` in MathsShen/SCF (read by argparse there
and here); what each becomes is in docs/reference-command.md. Also ``python -m spherecf.cli.reference``.
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
    """The reference's options; those without which it fails are required.

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
    add("--dataset", required=True, help="NAME: DATAROOT/list/NAME_list.txt, or a RecordIO folder")
    add("--dataroot", default="", help="folder of the data (default: this one)")
    add("--seed", type=int, required=True)
    add("--gpu_ids", nargs="+", default=["0"], metavar="ID", help="0,1,2: one process for each")
    add("--batch_size", type=int, required=True, help="of all processes together")
    add("--eval_batch_size", type=int, default=1, help="of no effect, as in the reference")
    add("--output_dir", required=True, help="gets runs/, ckpts/, hparams.json and confidence.safetensors")
    add("--saved_bkb", required=True, help="checkpoint of the recogniser")
    add("--saved_fc", required=True, help="checkpoint of its classifier")
    add("--num_workers", type=int, default=6, help="decoding threads of all processes together")
    add("--no_cuda", action="store_false", dest="cuda", help="train on the CPU")
    add("--epochs", type=int, default=100)
    add("--lr", type=float, default=3e-4)
    add("--lr_scheduler", choices=SCHEDULERS, help="default: a constant rate")
    add("--step_size", type=int, help="of StepLR, in epochs")
    add("--gamma", type=float, help="of StepLR")
    add("--weight_decay", type=float, default=5e-4)
    add("--convf_dim", type=int, default=25088, help="numbers in the recogniser's last map")
    add("--z_dim", type=int, default=512, help="length of its embedding")
    add("--radius", type=float, required=True)
    add("--max_grad_clip", type=float, default=0.0, help="largest gradient value, 0 for none")
    add("--max_grad_norm", type=float, default=0.0, help="largest gradient norm, 0 for none")
    add("--tensorboard", action="store_true", help="write events to OUTPUT_DIR/runs")
    add("--finetune_bkb", action="store_true", help="train the recogniser as well")
    add("--loss", choices=("exact", "released"), default="exact",
        help="ours: released computes the loss with the reference's epsilons (default: exact)")  # fmt: skip
    return options


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options, ``gpu_ids`` joined by commas; a wrong one ends the program with exit code 2."""
    known = parser()
    options = known.parse_args(words)
    options.gpu_ids = ",".join(options.gpu_ids).strip(",")
    ids = options.gpu_ids.split(",")
    if not all(ids) or len(set(ids)) < len(ids):
        known.error(f"argument --gpu_ids: expected different numbers such as 0,1, got {options.gpu_ids!r}")
    if options.lr_scheduler == "StepLR" and None in (options.step_size, options.gamma):
        known.error("--lr_scheduler StepLR needs --step_size and --gamma")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0 done, 1 failed, 130 interrupted.

    Several ``--gpu_ids`` start as many processes, unless ``torchrun`` did so already. The report, as JSON on
    stdout: the files, the last epoch, and what was left out and why.
    """
    return run_command(lambda: _main(list(sys.argv[1:] if words is None else words)))


def _main(words: Sequence[str]) -> int:
    options = parse(words)
    count = len(options.gpu_ids.split(","))
    if options.cuda and "WORLD_SIZE" not in os.environ:  # otherwise the launcher assigns the GPUs
        os.environ["CUDA_VISIBLE_DEVICES"] = options.gpu_ids
    if count > 1 and "WORLD_SIZE" not in os.environ:
        return _start(count, words)
    from spherecf.cli.reference_run import train

    if report := train(options):
        typer.echo(json.dumps(report, indent=2))
    return 0


def _start(count: int, words: Sequence[str]) -> int:
    """Run the same command in ``count`` processes, started as ``torchrun`` does; each reports its errors."""
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
