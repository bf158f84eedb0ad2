"""Every operator keeps the contract of torch.library; native and pure-torch kernels agree."""

from __future__ import annotations

import inspect
import itertools
import math

import pytest
import torch

from kslottery_fast import ops
from kslottery_fast.base.errors import InputError
from kslottery_fast.ops import native, records, reference, schemas

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
HYPER = {"step": 3, "lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tables(rows=7, d=33, dtype=torch.float32):
    """Two tables: some rows equal, some slightly moved, many ties."""
    before = (random(rows, d) * 4).round() / 4
    moved = before + 0.5 * (torch.arange(rows)[:, None] % 3)
    return before.to(dtype), moved.to(dtype)


def adamw_arguments(vocab=9, d=5, dtype=torch.float32, *, identity=False, master=False):
    rows = None if identity else torch.tensor([7, 0, 4])
    k = vocab if identity else 3
    table = random(vocab, d, dtype=dtype, seed=1)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    masters = (table if identity else table[rows]).float() if master else None
    moments = random(k, d, dtype=state, seed=3), random(k, d, dtype=state, seed=4).square()
    return (table, rows, random(k, d, seed=2), *moments), {**HYPER, "master": masters}


def step_arguments():
    """Three tables of one step: rows of a float32 one, all of a float64 one, rows of a bfloat16 one with a master."""
    parts = [
        adamw_arguments(dtype=torch.float32),
        adamw_arguments(dtype=torch.float64, identity=True),
        adamw_arguments(dtype=torch.bfloat16, master=True),
    ]
    masters = [torch.empty(0) if keywords["master"] is None else keywords["master"] for _, keywords in parts]
    steps, lrs = [torch.tensor(float(i)) for i in range(3)], [torch.tensor(0.1 * 2.0**-i) for i in range(3)]
    lists = [list(values) for values in zip(*(arguments for arguments, _ in parts), strict=True)]
    hyper = {"beta1": [0.9, 0.8, 0.3], "beta2": [0.999] * 3, "eps": [1e-8] * 3, "weight_decay": [0.0, 0.1, 0.2]}
    hyper["whole_grads"] = [False, True, True]  # the second is of a whole table anyway
    lists[2][2] = random(9, 5, seed=7)
    return (*lists, masters, steps, lrs, torch.zeros(3, dtype=torch.int32)), hyper


def embedding_arguments(vocab=9, d=5, k=3, dtype=torch.float32, *, grad=True):
    slots = torch.full((vocab,), -1, dtype=torch.int32)
    slots[torch.tensor([7, 0, 4])] = torch.arange(k, dtype=torch.int32)
    rows = random(k, d, seed=5).requires_grad_(grad)
    return random(vocab, d, dtype=dtype, seed=1), rows, slots, torch.tensor([[7, 1, 0, 7], [2, 4, 8, 3]])


def backward_arguments():
    _, rows, slots, ids = embedding_arguments(grad=False)
    return random(*ids.shape, rows.shape[1], seed=6), slots, ids, rows.shape[0]


def sample_inputs():
    """(op name, positional arguments, keyword arguments) that every contract test goes through."""
    for dtype in DTYPES:
        yield "ks_statistics", tables(dtype=dtype), {}
        yield "row_adamw_", *adamw_arguments(dtype=dtype)
        yield "row_embedding", embedding_arguments(dtype=dtype), {}
    yield "ks_rows", (random(4, 6), random(4, 9, seed=1)), {}
    yield "ks_rows", (random(0, 6), random(0, 9)), {}
    yield "ks_rows", (random(4, 6).requires_grad_(), random(4, 9, seed=1)), {}
    yield "ks_statistics", tables(rows=0), {}
    yield "ks_statistics", (*tables(), 10), {}
    yield "ks_decide", (*tables(), 10), {}
    yield "row_adamw_", *adamw_arguments(identity=True)
    yield "row_adamw_", *adamw_arguments(dtype=torch.bfloat16, master=True)
    yield "row_adamw_step_", *step_arguments()
    for flags in ({"found_inf": 0.0, "grad_scale": 4.0}, {"found_inf": 1.0}):
        arguments, keywords = step_arguments()
        yield "row_adamw_step_", arguments, keywords | {name: torch.tensor(value) for name, value in flags.items()}
    arguments, keywords = step_arguments()
    arguments[2][1][2, 3] = math.inf
    yield "row_adamw_step_", arguments, keywords | {"skip_nonfinite": True}
    yield "row_embedding", embedding_arguments(grad=False), {}
    yield "row_embedding_backward", backward_arguments(), {}


SAMPLES = list(sample_inputs())
IDS = [f"{index}-{name}" for index, (name, _, _) in enumerate(SAMPLES)]


def clones(arguments):
    def clone(a):
        if isinstance(a, list):
            return clones(a)
        return a.detach().clone().requires_grad_(a.requires_grad) if torch.is_tensor(a) else a

    return [clone(a) for a in arguments]


def tensors_in(arguments):
    """The tensors, those in lists too."""
    for a in arguments:
        if isinstance(a, list):
            yield from tensors_in(a)
        elif torch.is_tensor(a):
            yield a


def strided(tensor):
    """The same matrix as a transposed view of every second row of a larger one; anything else as it is."""
    if isinstance(tensor, list):
        return [strided(each) for each in tensor]
    if not torch.is_tensor(tensor) or not tensor.dtype.is_floating_point or tensor.dim() != 2:
        return tensor
    view = tensor.new_zeros(tensor.shape[1] * 2, tensor.shape[0] + 1)[::2, 1:].t()
    return view.copy_(tensor.detach())


def run(function, arguments, keywords):
    """Outputs and all tensor arguments afterwards, for a function that may write in place."""
    arguments = clones(arguments)
    keywords = dict(zip(keywords, clones(keywords.values()), strict=True))
    outputs = function(*arguments, **keywords)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return list(tensors_in((*outputs, *arguments, *keywords.values())))


def assert_same_bits(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=0, equal_nan=True)


def test_every_registered_operator_has_samples():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith(f"{schemas.NAMESPACE}::")}
    assert {name.split("::")[1] for name in registered} == {name for name, _, _ in SAMPLES}


@pytest.mark.parametrize(
    ("function", "record"), [(ops.row_adamw_, records.RowUpdate), (ops.row_adamw_step_, records.StepUpdate)]
)
def test_the_public_function_takes_what_the_record_holds(function, record):
    parameters = inspect.signature(function).parameters
    assert tuple(parameters) == record._fields
    keywords = [name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    schema = getattr(torch.ops.kslottery, function.__name__).default._schema
    assert [argument.name for argument in schema.arguments if argument.kwarg_only] == keywords


@pytest.mark.parametrize(("name", "arguments", "keywords"), SAMPLES, ids=IDS)
class TestEveryOperator:
    def test_passes_opcheck(self, name, arguments, keywords):
        op = getattr(torch.ops.kslottery, name).default
        torch.library.opcheck(op, tuple(clones(arguments)), keywords)

    def test_native_and_reference_agree(self, name, arguments, keywords):
        assert native.info()["native"], native.info()["error"]
        got, expected = (run(getattr(m, name), arguments, keywords) for m in (ops, reference))
        if name.startswith("row_adamw"):  # torch's square root may be one unit off, which the values then show
            values = {id(t) for t in tensors_in([arguments[0], *arguments[5:6], keywords.get("master")])}
            shown = [id(t) in values for t in tensors_in([*arguments, *keywords.values()])]
            for a, b in zip(itertools.compress(got, shown), itertools.compress(expected, shown), strict=True):
                one_unit = torch.finfo(a.dtype).eps
                torch.testing.assert_close(a, b, rtol=one_unit, atol=one_unit * HYPER["lr"])
            got, expected = (
                [t for t, is_value in zip(each, shown, strict=True) if not is_value] for each in (got, expected)
            )
        assert_same_bits(got, expected)

    def test_compiles_as_one_graph_and_gives_the_same_bits(self, name, arguments, keywords):
        eager = getattr(ops, name)
        compiled = torch.compile(eager, fullgraph=True, backend="aot_eager", dynamic=False)
        assert_same_bits(run(compiled, arguments, keywords), run(eager, arguments, keywords))

    def test_any_number_of_threads_gives_the_same_bits(self, name, arguments, keywords):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            expected = run(getattr(ops, name), arguments, keywords)
            torch.set_num_threads(3)
            assert_same_bits(run(getattr(ops, name), arguments, keywords), expected)
        finally:
            torch.set_num_threads(before)

    def test_strided_and_transposed_views_give_the_same_bits(self, name, arguments, keywords):
        # Moments and masters are what must be contiguous.
        kept = range(3, 6) if name.startswith("row_adamw") else ()
        viewed = [a if i in kept else strided(a) for i, a in enumerate(clones(arguments))]
        outputs = getattr(ops, name)(*viewed, **dict(zip(keywords, clones(keywords.values()), strict=True)))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        got = list(tensors_in((*outputs, *viewed)))
        expected = run(getattr(ops, name), arguments, keywords)
        assert_same_bits(got, expected[: len(got)])

    def test_any_other_device_gets_the_reference_and_a_gpu_its_own_kernels(self, name, arguments, keywords):
        kernel = f"kslottery::{name}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(kernel, "CompositeExplicitAutograd")
        assert torch._C._dispatch_has_kernel_for_dispatch_key(kernel, "CUDA")


@pytest.mark.parametrize("position", range(2))
@pytest.mark.parametrize("name", ["ks_rows", "ks_statistics", "ks_decide", "row_embedding", "row_adamw_"])
def test_something_other_than_a_tensor_is_a_type_error_that_names_it(name, position):
    _, arguments, keywords = next(sample for sample in SAMPLES if sample[0] == name)
    arguments = list(arguments)
    position = 2 * position if name == "row_adamw_" else position  # rows may be None
    arguments[position] = [[1.0, 2.0]]
    with pytest.raises(TypeError, match=r"^\w+ is the list \[\[1.0, 2.0\]\]: expected a torch.Tensor$"):
        getattr(ops, name)(*arguments, **keywords)


@pytest.mark.parametrize(
    ("name", "argument", "wrong", "message"),
    [
        ("ks_statistics", "threshold", 0.5, "threshold is 0.5: expected an integer"),
        ("ks_decide", "threshold", None, "threshold is None: expected an integer"),
        ("row_adamw_", "rows", [3], r"rows is the list \[3\]: expected a torch.Tensor or None"),
        ("row_adamw_", "step", 1.5, "step is 1.5: expected an integer"),
        ("row_adamw_", "lr", "fast", "lr is 'fast': expected a number"),
        ("row_adamw_step_", "tables", None, "tables is None: expected a list of tensors"),
        ("row_adamw_step_", "rows", [3], "rows holds 3: expected a list of tensors or None"),
        ("row_adamw_step_", "beta1", 0.9, "beta1 is 0.9: expected a list of numbers"),
        ("row_adamw_step_", "whole_grads", [1], "whole_grads holds 1: expected a list of bools"),
        ("row_adamw_step_", "skip_nonfinite", "no", "skip_nonfinite is 'no': expected True or False"),
        ("row_embedding_backward", "k", "2", "k is '2': expected an integer"),
    ],
)
def test_an_argument_of_a_wrong_type_is_named(name, argument, wrong, message):
    _, arguments, keywords = next(sample for sample in SAMPLES if sample[0] == name)
    function = getattr(ops, name)
    given = inspect.signature(function).bind(*arguments, **keywords).arguments
    with pytest.raises(TypeError, match=f"^{message}$"):
        function(**given | {argument: wrong})


BAD_KS = [
    ((random(3, 4), random(2, 4)), "x has 3 rows and y has 2"),
    ((random(3, 4), random(3, 0)), r"y has shape \[3, 0\]; a sample needs at least one value"),
    ((random(12), random(12)), r"x has shape \[12\]; expected two dimensions"),
    (
        (torch.ones(3, 4, dtype=torch.int64), random(3, 4)),
        "x has dtype torch.int64; expected float32, float64",
    ),
    ((random(3, 4).to_sparse(), random(3, 4)), r"x has layout torch.sparse_coo; .* use x.to_dense\(\)"),
    ((random(3, 4), random(3, 4).to("meta")), "y is on meta, x on cpu; move them to one device"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_KS)
def test_ks_rows_names_the_bad_argument(arguments, message):
    with pytest.raises(InputError, match=message):
        ops.ks_rows(*arguments)
    with pytest.raises(InputError, match=message):
        reference.ks_rows(*arguments)


@pytest.mark.parametrize("op", [ops.ks_statistics, lambda a, b: ops.ks_decide(a, b, 1)])
def test_tables_must_have_one_shape_with_columns(op):
    with pytest.raises(InputError, match=r"before has shape \[3, 4\] and after \[3, 5\]; expected one shape"):
        op(random(3, 4), random(3, 5))
    with pytest.raises(InputError, match=r"before has shape \[3, 0\]; a row needs at least one value"):
        op(random(3, 0), random(3, 0))


@pytest.mark.parametrize("module", [ops, reference], ids=["native", "reference"])
class TestNaNAndInfinity:
    def test_a_row_with_nan_is_flagged_and_has_no_statistic(self, module):
        before, after = tables(rows=4)
        after[1, 5], before[2, 0] = math.nan, math.inf
        before[3, 1], after[3, 2] = -math.inf, math.nan
        plus, minus, plus_at, minus_at, flags = module.ks_rows(before, after)
        assert flags.tolist() == [0, schemas.HAS_NAN, schemas.HAS_INF, schemas.HAS_NAN | schemas.HAS_INF]
        assert [plus[1], minus[1], plus[3], minus[3]] == [-1] * 4
        assert plus_at[[1, 3]].isnan().all()
        assert minus_at[[1, 3]].isnan().all()
        assert module.ks_statistics(before, after)[0][[1, 3]].tolist() == [-1, -1]
        assert module.ks_decide(before, after, -5)[0].tolist() == [True, False, True, False]

    def test_infinities_are_ordinary_values(self, module):
        x = torch.tensor([[-math.inf, 0.0, 1.0, math.inf]])
        y = torch.tensor([[-math.inf, -math.inf, math.inf, math.inf]])
        plus, minus, plus_at, minus_at, _ = module.ks_rows(x, y)
        assert (plus.item(), minus.item(), plus_at.item(), minus_at.item()) == (1, 1, 1.0, -math.inf)


def test_the_reference_in_blocks_equals_the_reference_at_once(monkeypatch):
    x, y = random(11, 6), random(11, 9, seed=1)
    expected = reference.ks_rows(x, y)
    monkeypatch.setattr(reference, "_BLOCK_ELEMENTS", 40)
    assert_same_bits(reference.ks_rows(x, y), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(schemas.SCHEMAS))
def test_compiles_with_the_default_backend(name):
    _, arguments, keywords = next(sample for sample in SAMPLES if sample[0] == name)
    compiled = torch.compile(getattr(ops, name), fullgraph=True)
    expected = run(getattr(ops, name), arguments, keywords)
    assert_same_bits(run(compiled, arguments, keywords), expected)


@pytest.mark.parametrize("op", [ops.ks_rows, torch.ops.kslottery.ks_rows, torch.compile(ops.ks_rows, backend="eager")])
@pytest.mark.parametrize("reference_only", [False, True])
def test_the_results_of_ks_rows_never_require_grad(op, reference_only, monkeypatch, recwarn):
    if reference_only:
        monkeypatch.setattr(native, "caller", lambda _device: None)
    x, y = random(4, 6), random(4, 9, seed=1)
    results = op(x.clone().requires_grad_(), y.clone().requires_grad_())
    assert [result.requires_grad for result in results] == [False] * 5
    scale = torch.ones(4, dtype=torch.float64, requires_grad=True)
    (results[2] * scale).sum().backward()
    assert torch.equal(scale.grad, ops.ks_rows(x, y)[2])
    assert [str(warning.message) for warning in recwarn] == []
