"""The kernels run in Triton's interpreter, in a child process: `main`, which prints what it found as JSON."""

import json
import sys

import pytest
import torch
from conftest import run, tiny_config, tiny_model, to_batch

from atomica_hf import AtomicaConfig, AtomicaModel, convolution_triton_atomica
from atomica_hf.geometry_atomica import (
    BOND_HARMONICS,
    HARMONICS,
    EdgeFeatures,
    Irrep,
    TensorProductConvolution,
    irreps_size,
    mean_weight,
)
from atomica_hf.modeling_atomica import encoder_irreps


needs_triton = pytest.mark.skipif(
    convolution_triton_atomica.triton is None, reason="Triton is not installed: pip install triton"
)
VECTORS = (Irrep(2, 1, -1), Irrep(2, 1, 1))
SCALARS = (Irrep(4, 0, -1), Irrep(4, 0, 1))
SMALL_TILES = {1: (4, 2, 4, 1), 4: (2, 2, 4, 1), 8: (2, 1, 4, 1)}  # several tiles along every axis, and one that is not full
# irreps in, harmonics, irreps out, receivers, neighbours, dtype, dropout, own tiles
CASES = {
    "first layer": (encoder_irreps(0, 4), HARMONICS, encoder_irreps(1, 4), 5, 3, "float64", 0.0, True),
    "last layer": (encoder_irreps(3, 4), HARMONICS, encoder_irreps(4, 4), 4, 7, "float64", 0.0, True),
    "single precision": (encoder_irreps(1, 4), HARMONICS, encoder_irreps(2, 4), 4, 7, "float32", 0.0, True),
    "half precision": (encoder_irreps(1, 4), HARMONICS, encoder_irreps(2, 4), 4, 7, "bfloat16", 0.0, True),
    "torsion head, dropout": (encoder_irreps(3, 4), BOND_HARMONICS, SCALARS, 5, 5, "float64", 0.4, True),
    "rigid head, many neighbours": (encoder_irreps(3, 4), HARMONICS, VECTORS, 2, 37, "float64", 0.0, True),
    "many outputs": (encoder_irreps(0, 4), HARMONICS, (Irrep(70, 0, 1), Irrep(18, 1, -1)), 3, 2, "float64", 0.0, True),
    "small tiles": (encoder_irreps(1, 4), HARMONICS, encoder_irreps(2, 4), 5, 3, "float64", 0.0, False),
    "no receivers": (encoder_irreps(1, 4), HARMONICS, encoder_irreps(2, 4), 0, 3, "float64", 0.0, True),
    "no neighbours": (encoder_irreps(1, 4), HARMONICS, encoder_irreps(2, 4), 3, 0, "float64", 0.0, True),
}


def differences(irreps_in, irreps_edge, irreps_out, n, k, dtype, dropout):
    """Kernels against the plain form in double precision: largest difference of the result and of each gradient, over its
    largest entry."""
    torch.manual_seed(0)
    sizes = (3, 5, 4, 4) if irreps_edge == HARMONICS and irreps_out != VECTORS else (3, 0, 0, 4)
    make = lambda implementation: TensorProductConvolution(
        irreps_in, irreps_edge, irreps_out, *sizes, dropout, implementation
    ).double()
    plain, fused = make("torch"), make("triton").to(getattr(torch, dtype))
    fused.load_state_dict(plain.state_dict())
    plain.load_state_dict(fused.state_dict())  # rounded alike
    nodes = n + 2
    mask = torch.rand(n, k) < 0.7
    mask[1:2] = False
    given = {
        "x": torch.randn(nodes, irreps_size(irreps_in)),
        "harmonics": torch.randn(n, k, irreps_size(irreps_edge)),
        "radial": torch.rand(n, k, 3),
        "types": torch.randn(4, 5),
    }
    if not sizes[1]:
        del given["types"]
    senders, kinds = torch.randint(nodes, (n, k)), torch.randint(4, (n, k))
    found = []
    for convolution in (plain, fused):
        own = convolution.edge_dense.weight.dtype
        leaves = {name: value.to(fused.edge_dense.weight.dtype).to(own).requires_grad_() for name, value in given.items()}
        scalars = leaves["x"][:, :4]
        edges = EdgeFeatures(
            senders, kinds if sizes[1] else None, leaves["harmonics"], leaves["radial"], mean_weight(mask, own)
        )
        torch.manual_seed(1)
        out = convolution.train(dropout > 0)(
            leaves["x"], edges, leaves.get("types"), scalars[:n] if sizes[2] else None, scalars
        )
        direction = torch.linspace(-1, 1, out.numel(), dtype=own).view_as(out)
        found.append([out, *torch.autograd.grad((out * direction).sum(), [*leaves.values(), *convolution.parameters()])])
    return max([((a - b).abs().max() / a.abs().max().clamp_min(1e-9)).item() for a, b in zip(*found) if a.numel()], default=0.0)


def model_differences():
    from atomica_hf import ROOT, AtomicaPreTrainingCollator, AtomicaProcessor

    processor = AtomicaProcessor.from_pretrained(ROOT)
    examples = [processor.encode(processor.read(item)[0]) for item in (("CO", "O"), "CO")]
    batch = AtomicaPreTrainingCollator()([{**e, "example_index": i, "epoch": 0} for i, e in enumerate(examples)])
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    found = []
    for implementation in ("torch", "triton"):
        model = tiny_model(
            hidden_size=4, atom_hidden_size=4, edge_size=4, num_hidden_layers=1, num_neighbors=2,
            conv_implementation=implementation,
        )  # fmt: skip
        loss = model(**batch).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    return max((a - b).abs().max().item() for a, b in zip(*found, strict=True))


def main():
    own = dict(convolution_triton_atomica.TILES)
    found = {}
    for name, (*case, own_tiles) in CASES.items():
        convolution_triton_atomica.TILES = own if own_tiles else SMALL_TILES
        convolution_triton_atomica.PROGRAMS = 512 if own_tiles else 20
        found[name] = differences(*case)
    convolution_triton_atomica.TILES = own
    found["model"] = model_differences()
    json.dump(found, sys.stdout)


@pytest.fixture(scope="module")
def interpreted():
    code = "import sys; sys.path.insert(0, 'tests'); from test_convolution_triton import main; main()"
    done = run("-c", code, TRITON_INTERPRET="1")
    if "InterpreterError" in done.stderr and "only 0-dimensional arrays" in done.stderr:
        pytest.skip("the interpreter of this Triton does not work with this NumPy; that of 3.9 does")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@needs_triton
@pytest.mark.parametrize("name", [*CASES, "model"])
def test_kernels_give_what_the_plain_form_gives_with_all_gradients(interpreted, name):
    """Double precision tells a wrong term from rounding. Single precision adds up a few hundred products, each off by 6e-8 of
    itself. Half precision rounds what is multiplied to 8 bits, 4e-3 of itself, and the result once more."""
    dtype = CASES[name][5] if name in CASES else "float64"
    assert interpreted[name] < {"float64": 1e-12, "float32": 2e-6, "bfloat16": 4e-2}[dtype]
    if dtype != "float64":
        assert interpreted[name] > 1e-12  # it was computed with


@needs_triton
def test_asked_for_where_there_is_no_device_is_an_error(examples):
    model = AtomicaModel(tiny_config(conv_implementation="triton")).eval()
    with pytest.raises(RuntimeError, match="needs a CUDA device, but the features are on 'cpu'"):
        model(**to_batch(examples[:1], torch.float32))


def test_asked_for_without_the_package_is_an_error(monkeypatch):
    monkeypatch.setattr(convolution_triton_atomica, "triton", None)
    with pytest.raises(ImportError, match="pip install triton"):
        AtomicaModel(tiny_config(conv_implementation="triton"))
    AtomicaModel(tiny_config())


def test_the_choice_is_an_argument_of_loading_and_is_not_saved(tmp_path, examples):
    model = tiny_model(conv_implementation="torch").atomica
    model.save_pretrained(tmp_path)
    assert "conv_implementation" not in json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (tmp_path / "convolution_triton_atomica.py").exists()
    assert AtomicaConfig.from_pretrained(tmp_path).conv_implementation == "auto"
    again = AtomicaModel.from_pretrained(tmp_path, conv_implementation="torch").eval()
    assert again.config.conv_implementation == "torch"
    assert again.atom_encoder.layers[0].message.convolution.implementation == "torch"
    message = "`conv_implementation` is 'cuda', expected one of auto, torch, triton"
    with pytest.raises(ValueError, match=message):
        AtomicaConfig(conv_implementation="cuda")
    with pytest.raises(ValueError, match=message):
        AtomicaModel.from_pretrained(tmp_path, conv_implementation="cuda")
    batch = to_batch(examples[:2])
    assert torch.equal(again(**batch).pooler_output, model(**batch).pooler_output)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_kernels_compile_for_devices_that_are_not_here(capability, products):
    """Triton's own assembler makes machine code; whether it is fast, only a device can tell."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for power, (receivers, channels, hidden, warps) in convolution_triton_atomica.TILES.items():
        for name in ("out", "y_gradient", "h_gradient", "weight_gradient"):
            kernel = getattr(convolution_triton_atomica, f"{name}_kernel")
            constants = {"M": {1: 1, 4: 3, 8: 5}[power], "BN": receivers, "BU": channels, "BW": hidden, "BK": 16, "BV": 16,
                         "DOT": getattr(tl, products), "SUM": tl.float32, "PRECISION": "ieee"}  # fmt: skip
            kinds = {argument: "i32" if argument in {*"NKUWV", "tiles"} else "*fp32" for argument in kernel.arg_names}
            kinds |= dict.fromkeys(constants, "constexpr")
            source = ASTSource(fn=kernel, signature=kinds, constexprs=constants)
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
            assert made.asm["cubin"] and made.metadata.shared <= 99 * 1024


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_benchmark_says_that_there_is_no_device(tmp_path):
    done = run("benchmarks/convolution_gpu.py", "--output", tmp_path / "out")
    assert done.returncode == 2 and "no CUDA device" in done.stderr and not (tmp_path / "out").exists()


@needs_triton
@pytest.mark.slow
def test_the_benchmark_can_be_rehearsed(tmp_path):
    done = run("benchmarks/convolution_gpu.py", "--output", tmp_path, "--rehearse", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "convolution_gpu.json").read_text(encoding="utf-8"))
    assert report["rehearsal"] and not report["left_out"] and "rehearsal" in (tmp_path / "convolution_gpu.md").read_text()
    assert max(report["errors"]["triton, highest"].values()) < 2e-6
    assert {row["run"] for row in report["speeds"]} >= {"torch, highest", "triton, highest", "triton, bfloat16 autocast"}
