"""Which tensors of two checkpoints are compared, and how: as rows or as numbers. All others are named."""

from dataclasses import dataclass, field
from typing import TypeAlias

from kslottery_fast.base.errors import InputError
from kslottery_fast.base.options import ComparedRows, TableName
from kslottery_fast.checkpoints.checkpoint import Checkpoint
from kslottery_fast.checkpoints.tensor_names import find_tensor
from kslottery_fast.checkpoints.tensors import StoredTensor

from .aligned import aligned_names

Pair: TypeAlias = tuple[StoredTensor, StoredTensor]


@dataclass
class Pairs:
    """The tensors that two checkpoints share.

    Attributes
    ----------
    matrices : list of Pair
        Matrices and 3-D tensors of floats with rows of one length, sorted by name.
    vectors : list of Pair
        All other tensors of floats of one shape.
    only_before, only_after, other_shape, quantized, not_2d, renamed
        The attributes of :class:`kslottery_fast.tickets.scan.Scan`.
    """

    matrices: list[Pair] = field(default_factory=list)
    vectors: list[Pair] = field(default_factory=list)
    only_before: list[str] = field(default_factory=list)
    only_after: list[str] = field(default_factory=list)
    other_shape: list[str] = field(default_factory=list)
    quantized: list[str] = field(default_factory=list)
    not_2d: int = 0
    renamed: dict[str, str] = field(default_factory=dict)


def pair_tensors(first: Checkpoint, second: Checkpoint, rows: ComparedRows, name_map: dict[str, str]) -> Pairs:
    """Sort the tensors of two checkpoints into :class:`Pairs`.

    Raises
    ------
    InputError
        ``name_map`` does not fit, or a tensor cannot be read.
    """
    names = aligned_names(first, second, name_map)
    found = Pairs(
        only_before=sorted(first.keys() - names.keys()),
        only_after=sorted(second.keys() - set(names.values())),
        renamed={name: other for name, other in sorted(names.items()) if name != other},
    )
    for name in sorted(names):
        pair = first[name], second[names[name]]
        has_rows = all(_has_rows(tensor) for tensor in pair)
        if any(tensor.floats is None for tensor in pair):
            if has_rows:
                found.quantized.append(name)
            else:
                found.not_2d += 1
        elif has_rows and _comparable(pair, rows):
            found.matrices.append(pair)
        elif pair[0].shape != pair[1].shape:
            found.other_shape.append(name)
        elif 0 in pair[0].shape:
            found.not_2d += 1
        else:
            found.vectors.append(pair)
    return found


def only_table(first: Checkpoint, pairs: Pairs, table: TableName) -> Pairs:
    """Leave the pair of the table that was asked for.

    Raises
    ------
    InputError
        The first checkpoint has no such table, or the other one lacks it in this shape.
    """
    found = find_tensor(first, "auto", table)
    chosen = [pair for pair in pairs.matrices if pair[0].name == found.name]
    if chosen:
        renamed = {name: other for name, other in pairs.renamed.items() if name == found.name}
        return Pairs(chosen, renamed=renamed)
    if found.name in pairs.other_shape:
        raise InputError(
            f"{found} has another shape in the other checkpoint: rows='shared' (--rows shared) compares the rows that "
            "both have, if these are equally long"
        )
    raise InputError(
        f"{found} is not in the other checkpoint by this name and shape; name_map (--map OLD=NEW) says what it is "
        "called there, and ks_select_checkpoints (kslottery select) takes two names (tensor=)"
    )


def nothing_shared(first: Checkpoint, second: Checkpoint, pairs: Pairs) -> InputError:
    """The error about two checkpoints without a matrix that can be compared."""
    examples = [f"{each.source} has {', '.join([*each][:2]) or 'none'}" for each in (first, second)]
    reason = "; are they two states of one model?"
    if pairs.quantized:
        name = pairs.quantized[0]
        dtypes = " and ".join({first[name].dtype, second[pairs.renamed.get(name, name)].dtype})
        reason = f"; {len(pairs.quantized)} are not of floats ({name} is {dtypes}): was one of them quantized?"
    elif pairs.other_shape:
        name = pairs.other_shape[0]
        shapes = f"{list(first[name].shape)} and {list(second[pairs.renamed.get(name, name)].shape)}"
        reason = f"; {len(pairs.other_shape)} have different shapes, such as {name}, {shapes}"
        reason += "; rows='shared' (--rows shared) compares the rows that both have"
    return InputError(
        f"{first.source} and {second.source} share no matrix of floats by name and shape: {'; '.join(examples)}{reason}"
    )


def _has_rows(tensor: StoredTensor) -> bool:
    return len(tensor.shape) in (2, 3) and tensor.shape[-1] > 0


def _comparable(pair: Pair, rows: ComparedRows) -> bool:
    first, second = (tensor.shape for tensor in pair)
    return first == second or (rows == "shared" and len(first) == len(second) == 2 and first[1] == second[1])
