"""``kslottery info``: what a file or folder of ours is, what is in it, and what to do with it."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json

Facts = dict[str, Any]


def add_info(commands: Any) -> None:
    """``info``: any file or folder of ours, or this installation."""
    parser = commands.add_parser("info", help="explain any file that a run writes, or, without PATH, this installation")
    parser.add_argument("path", nargs="?", type=Path, metavar="PATH", help="run folder, artifact or adapter")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_info)


def _info(options: argparse.Namespace) -> int:
    facts = describe_installation() if options.path is None else describe(options.path)
    if options.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name:{width}}  {value}")
    return 0


def describe_installation() -> Facts:
    """Versions, and which kernels are active: CPU instruction set, threads, CUDA or why not."""
    import torch

    from kslottery_fast.ops import native

    kernels = native.info()
    return {
        "kslottery-fast": kernels["version"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "native core": "loaded" if kernels["native"] else f"NOT loaded, pure-torch kernels: {kernels['error']}",
        "CPU kernels": f"{kernels['isa']}, {kernels['threads']} threads of {os.cpu_count()} cores",
        "CUDA kernels": "yes" if kernels["cuda"] else f"no: {kernels['cuda_reason']}",
        "CUDA devices": torch.cuda.device_count(),
        "PEFT": metadata.version("peft") if importlib.util.find_spec("peft") else "not installed (optional)",
    }


def describe(path: Path) -> Facts:
    """Facts about a run folder, an artifact of a run, or an adapter folder; InputError for anything else."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if (path / "run.json").exists():
        facts = _run_folder(path)
    elif (path / "adapter_config.json").exists():
        facts = _adapter(path)
    elif path.is_dir():
        raise InputError(f"{path} is neither a run (no run.json) nor an adapter (no adapter_config.json)")
    elif path.suffix == ".json":
        facts = _json(path)
    elif path.suffix == ".safetensors":
        facts = _tensors(path)
    else:
        raise InputError(f"{path}: expected a run folder, an adapter folder, a .json or a .safetensors file")
    return {"path": str(path), **facts}


def _run_folder(path: Path) -> Facts:
    header = _json(path / "run.json")
    if not str(header.get("format")).startswith("kslottery-experiment/"):
        return header | {"what": "a run of version 0.1, which this version can neither continue nor report"}
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.lab.experiment.plan import Experiment
    from kslottery_fast.lab.experiment.run_folder import RunFolder
    from kslottery_fast.lab.experiment.settings import ExperimentSettings

    folder = RunFolder(path)
    jobs = Experiment(ExperimentSettings.recorded(header, path), folder, RunConsole()).jobs()
    left = [job.title for job in jobs if not folder.finished(job.stage)]
    stages = f"{len(jobs) - len(left)} of {len(jobs)} finished" + (f"; next: {left[0]}" if left else "")
    summary = _json(path / "summary.json") if (path / "summary.json").exists() else {}
    what = "an experiment: a run of `kslottery run`, or a comparison of `kslottery compare`"
    return header | {"stages": stages} | summary | {"what": what}


def _adapter(path: Path) -> Facts:
    config = read_json(path / "adapter_config.json")
    return {
        "what": "a PEFT adapter; load it with peft.PeftModel.from_pretrained or kslottery_fast's load_adapter",
        "type": config.get("peft_type"),
        "base model": config.get("base_model_name_or_path"),
        "module": config.get("target_modules"),
        "tensors": _tensors(path / "adapter_model.safetensors")["tensors"],
    }


def _json(path: Path) -> Facts:
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a file of kslottery")
    kind = str(value.get("format", "")).split("/")[0]
    if kind == "kslottery-tickets":
        from kslottery_fast.tickets.tickets import Tickets

        tickets = Tickets.load(path)
        what = "winning tickets; read them with Tickets.load, train them with attach_rows"
        return {"what": what, "summary": tickets.summary(), "token ids": tickets.token_ids.tolist()}
    if kind == "kslottery-summary":
        return _summary(value)
    if kind == "kslottery-comparison" or {"models", "findings"} <= value.keys():
        return {"what": "a summary of version 0.1: the results of its run or comparison", "title": value.get("title")}
    if kind == "kslottery-scan":
        facts = {name: item for name, item in value.items() if not isinstance(item, (list, dict))}
        return {"what": "how far the rows of two checkpoints lie apart, by `kslottery scan`", **facts}
    if kind.startswith("kslottery-") and "settings" in value:
        return {"what": "the settings of a run", **value}
    if "packages" in value and "system" in value:
        names = ("command", "date", "seed", "model", "packages", "system", "peak_memory_mb", "resumed_on")
        return {"what": "where and how a run was made", **{name: value[name] for name in names if name in value}}
    raise InputError(f"{path} is JSON, but not a file of kslottery")


def _summary(value: Facts) -> Facts:
    facts: Facts = {
        "what": "the results of an experiment: scores of every model in every language, tickets, certificate, advice",
        "title": value.get("title"),
        "grid": value.get("grid"),
    }
    if "tickets" in value:
        facts["tickets"] = f"{value['tickets']['count']}, selected by {value['tickets']['selected_by']}"
    facts["NLL per token"] = {
        language["name"]: {spec: round(arm["scores"]["nll"]["value"], 4) for spec, arm in language["arms"].items()}
        for language in value["languages"].values()
    }
    return facts


def _tensors(path: Path) -> Facts:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            shapes = {name: f"{part.get_dtype()} {part.get_shape()}" for name, part in slices.items()}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file ({error})") from None
    if {"token_ids", "embed_tuned", "partial_tuned"} <= shapes.keys():
        what = "rows of the tickets: row i is that of token_ids[i], after Embed Tuning and after Partial Tuning"
    else:
        what = "tensors"
    return {"what": what, "tensors": shapes}
