"""What to say of an option or a command that is not there: what people who come from other tools mean by it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from harness.errors import UserError

_NEAR = 0.7  # of difflib: what is less alike is no typing mistake

_BACKBONE = "--backbone NAME:{}, such as sd-1-4:{}"
_REGEN = "--regen resafe:{}"
_OPTIONS = {
    "--bench": "benchmark benchmarks benches task tasks dataset datasets prompts prompt-set suite eval-set",
    "--defense": "defenses defence defences method methods eraser unlearning safety",
    "--backbone": "model models model-name model-id checkpoint ckpt pretrained base-model pipeline unet sd-version",
    "--regen": "regens regenerator regenerators resafe sanitizer sanitiser posthoc post-hoc editor",
    "--num-gpus": "gpus gpu n-gpu n-gpus ngpus devices cuda device use-cuda",
    "--workers": "num-workers jobs n-jobs parallel processes actors concurrency",
    "--limit": "n num max num-samples num-prompts max-samples max-prompts n-samples subset first samples num-images",
    "--out": "output output-dir output-path outdir out-dir results results-dir run-dir runs save-dir",
    "--store": "cache cache-dir shards",
    "--data": "data-dir data-path datasets-dir root",
    "--cards": "config config-dir config-path configs yaml card",
    "--seed": "random-seed seeds generator-seed",
    "--address": "ray-address cluster head",
    "--verbose": "debug log-level progress",
    "--json": "as-json",
    "--dry-run": "dryrun plan no-run",
    "--max-errors": "max-failures errors tolerance",
    "--category": "categories",
    "--wandb": "report-to tracker wandb-mode wandb-project-name",
    "--images": "image image-dir image-folder images-dir input input-dir folder path dir",
    "--concept": "concepts target target-concept erase concept-to-erase",
    "--scorer": "scorers detector classifier metric metrics",
    "--format": "fmt output-format style",
    "--judge": "vlm judge-model llm evaluator",
    "--task": "question tasks",
}
_SETTINGS = {  # what is set behind a name
    _BACKBONE.format("steps=N", "steps=25"): "steps num-steps num-inference-steps sampling-steps ddim-steps",
    _BACKBONE.format("guidance=G", "guidance=5"): "guidance guidance-scale cfg cfg-scale scale",
    _BACKBONE.format("scheduler=NAME", "scheduler=DDIMScheduler"): "scheduler sampler",
    _BACKBONE.format("micro_batch=N", "micro_batch=4"): "batch-size batch bs micro-batch per-device-batch-size",
    _BACKBONE.format("dtype=D", "dtype=float16"): "dtype fp16 bf16 half precision torch-dtype",
    _REGEN.format("alpha=0.5"): "alpha",
    _REGEN.format("lam=0.5"): "lam lambda",
    _REGEN.format("tokens=8"): "tokens num-tokens prompt-length",
    _REGEN.format("iterations=300"): "iterations iters num-iters opt-iters",
}  # fmt: skip
_ELSEWHERE = {
    "running the same command again goes on where it stopped": "resume resume-from continue restart",
    "nothing stored is computed again unless something that it depends on changed; another --store computes all anew": (
        "force overwrite no-cache refresh rerun"
    ),
    "a policy's threshold is in its card (`harness list policies`), and `harness report RUN --curve` shows all": (
        "threshold thresholds thr"
    ),
    "scorers are the profile's; `harness score RUN --scorer NAME` adds one": "scorer scorers detector metric metrics",
    "a judge is asked about a finished run: `harness judge ask RUN --task TASK --judge NAME`": "judge vlm llm",
    "a finished run is printed by `harness report RUN --format md|csv|json`": "format to-csv csv markdown md latex",
}
_COMMANDS = {
    "eval": "run evaluate evaluation benchmark bench test generate sample infer inference attack",
    "list": "ls-cards defenses benchmarks datasets scorers models show-all",
    "describe": "show info cat card inspect about",
    "fetch": "download get pull install weights",
    "build": "train finetune fine-tune unlearn erase fit",
    "report": "table tables summary results print render export",
    "doctor": "check env status version-info setup",
    "regen": "resafe regenerate sanitize sanitise edit",
    "score": "rescore detect classify",
    "store": "ls du prune cache clean gc",
    "publish": "wandb upload push sync",
    "plan": "dry-run estimate cost",
    "compare": "diff-runs versus vs mcnemar",
    "judge": "vlm human ask form",
}


def of_option(name: str, options: Iterable[str]) -> str:
    """What is meant by an option that the command lacks, "; did you mean --bench?", or nothing.

    Args:
        name: as it was typed, "--tasks".
        options: the command's own.
    """
    own = set(options)
    word = name.lstrip("-").replace("_", "-").lower()
    typed = f"--{word}"
    if typed in own:
        return f"; did you mean {typed}?"
    close = difflib.get_close_matches(typed, sorted(own - {"--help"}), n=1, cutoff=_NEAR)
    for option, words in _OPTIONS.items():
        if option in own and word in words.split():
            return f"; did you mean {option}?"
    for setting, words in _SETTINGS.items():
        if setting.split(maxsplit=1)[0] in own and word in words.split():
            return f"; it is set behind a name: {setting}"
    if close:
        return f"; did you mean {close[0]}?"
    return next((f"; {said}" for said, words in _ELSEWHERE.items() if word in words.split()), "")


def of_command(name: str, commands: Iterable[str]) -> str:
    """What is meant by a command that is not there, or nothing."""
    own = set(commands)
    word = name.lower().replace("_", "-")
    meant = next((c for c, words in _COMMANDS.items() if c in own and word in words.split()), None)
    close = difflib.get_close_matches(word, sorted(own), n=1, cutoff=_NEAR)
    nearest = close[0] if close else meant
    return f"; did you mean `{nearest}`?" if nearest else ""


def message(error: Any) -> str:
    """What a usage error of click says, in one sentence; of an unknown option also what was meant."""
    if not hasattr(error, "possibilities") or error.ctx is None:
        said: str = error.format_message()
        return said.removesuffix(".")
    options = [o for p in error.ctx.command.get_params(error.ctx) for o in (*p.opts, *p.secondary_opts)]
    typed = str(error.option_name)
    return f"no option {typed}{of_option(typed, [o for o in options if o.startswith('--')])}"


def watch(command: Any) -> None:
    """Have a group, and those within it, refuse an unknown command with what was meant.

    Args:
        command: a click command or group; a command stays as it is.
    """
    commands = getattr(command, "commands", None)
    if commands is None:
        return
    resolve = command.resolve_command

    def resolve_command(context: Any, words: list[str]) -> Any:
        if words and not words[0].startswith("-") and command.get_command(context, words[0]) is None:
            near = of_command(words[0], commands)
            raise UserError(f"no command {words[0]!r}{near} (there are: {', '.join(commands)})")
        return resolve(context, words)

    command.resolve_command = resolve_command
    for nested in commands.values():
        watch(nested)
