"""``kslottery info``: what a file or folder of ours is, what is in it, and what to do with it."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json
from kslottery_fast.ops import native
from kslottery_fast.tickets.tickets import Tickets

Facts = dict[str, Any]


def describe_installation() -> Facts:
    """Versions, and which kernels are active: CPU instruction set, threads, CUDA or why not."""
    kernels = native.info()
    facts: Facts = {
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
    return facts


def describe(path: Path) -> Facts:
    """Facts about a run folder, an artifact of a run, or an adapter folder.

    Raises
    ------
    InputError : nothing there, or nothing that this package writes.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        for marker, folder_reader in _FOLDERS.items():
            if (path / marker).exists():
                return {"path": str(path), **folder_reader(path)}
        raise InputError(f"{path} is neither a run (no run.json) nor an adapter (no adapter_config.json)")
    reader = _FILES.get(path.suffix)
    if reader is None:
        raise InputError(f"{path}: expected a run folder, an adapter folder, a .json or a .safetensors file")
    return {"path": str(path), **reader(path)}


def _run_folder(path: Path) -> Facts:
    header, stages = read_json(path / "run.json"), path / "stages"
    finished = [entry.name for entry in stages.iterdir() if not entry.name.startswith(".")] if stages.is_dir() else []
    facts: Facts = {
        "what": "an experiment of `kslottery run` or `kslottery compare`",
        "format": header.get("format"),
        "stages": f"{len(finished)} finished",
        "settings": header.get("settings"),
        "grid": header.get("grid"),
    }
    if (path / "summary.json").exists():
        facts |= {name: value for name, value in _json(path / "summary.json").items() if name != "what"}
    return facts


def _adapter(path: Path) -> Facts:
    config = read_json(path / "adapter_config.json")
    facts: Facts = {
        "what": "a PEFT adapter; load it with peft.PeftModel.from_pretrained or kslottery_fast's load_adapter",
        "type": config.get("peft_type"),
        "base model": config.get("base_model_name_or_path"),
        "module": config.get("target_modules"),
    }
    return facts | {k: v for k, v in _tensors(path / "adapter_model.safetensors").items() if k == "tensors"}


def _json(path: Path) -> Facts:
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a file of kslottery")
    if str(value.get("format", "")).startswith("kslottery-tickets/"):
        tickets = Tickets.load(path)
        return {
            "what": "winning tickets; read them with Tickets.load, train them with attach_rows",
            "summary": tickets.summary(),
            "token ids": tickets.token_ids.tolist(),
        }
    if str(value.get("format", "")).startswith("kslottery-comparison/"):
        languages = value["languages"].values()
        return {
            "what": "the results of a comparison: every arm in every language, differences, tickets, advice",
            "title": value.get("title"),
            "grid": value.get("grid"),
            "NLL per token": {
                language["name"]: {
                    spec: round(arm["scores"]["nll"]["value"], 4) for spec, arm in language["arms"].items()
                }
                for language in languages
            },
        }
    if str(value.get("format", "")).startswith(
        ("kslottery-experiment/", "kslottery-run/", "kslottery-comparison-run/")
    ):
        return {"what": "the settings of a run", **value}
    if "models" in value and "tickets" in value:
        return {
            "what": "the results of a run: scores of every model, tickets, certificate, findings",
            "title": value.get("title"),
            "tickets": f"{value['tickets']['count']}, selected by {value['tickets']['selected_by']}",
            "NLL per token": {name: round(scores["nll"], 4) for name, scores in value["models"].items()},
        }
    if str(value.get("format", "")).startswith("kslottery-scan/"):
        facts = {name: item for name, item in value.items() if not isinstance(item, (list, dict))}
        return {"what": "how far the rows of two checkpoints lie apart, by `kslottery scan`", **facts}
    if "packages" in value and "system" in value:
        names = ("command", "date", "seed", "model", "packages", "system", "peak_memory_mb", "resumed_on")
        return {
            "what": "where and how a run was made",
            **{name: value[name] for name in names if name in value},
        }
    raise InputError(f"{path} is JSON, but not a file of kslottery")


def _tensors(path: Path) -> Facts:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            shapes = {name: f"{file.get_slice(name).get_dtype()} {file.get_slice(name).get_shape()}" for name in names}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file ({error})") from None
    if {"token_ids", "embed_tuned", "partial_tuned"} <= set(names):
        what = "rows of the tickets: row i is that of token_ids[i], after Embed Tuning and after Partial Tuning"
    else:
        what = "tensors"
    return {"what": what, "tensors": shapes}


_FOLDERS: dict[str, Callable[[Path], Facts]] = {"run.json": _run_folder, "adapter_config.json": _adapter}
_FILES: dict[str, Callable[[Path], Facts]] = {".json": _json, ".safetensors": _tensors}
