"""Writes tests/golden/tensors: small files as PyTorch, NumPy and safetensors write them, and what is in each.

Each file has an entry in expected.json: its tensors as [dtype, dims, elements in hexadecimal], by name or in a list, or the words
that the error must have.
"""

import io
import json
import pathlib
import pickle
import zipfile
from collections import OrderedDict

import numpy
import torch
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "tensors"
NAMES = {
    torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32",
    torch.uint8: "u8", torch.bool: "bool",
}
expected = {}


def described(tensor):
    tensor = tensor.detach().contiguous()
    flat = tensor.reshape(-1)
    raw = flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8)
    return [NAMES[tensor.dtype], list(tensor.shape), bytes(raw.tolist()).hex()]


def contents(value):
    if isinstance(value, torch.Tensor):
        return described(value)
    if isinstance(value, dict):
        return {str(key): described(tensor) for key, tensor in value.items()}
    return {"list": [described(tensor) for tensor in value]}


def pt(name, value, refused=None, **how):
    torch.save(value, FOLDER / f"{name}.pt", **how)
    expected[f"{name}.pt"] = {"error": refused} if refused else {"is": contents(value)}


def npy(name, array, tensor=None, refused=None):
    numpy.save(FOLDER / f"{name}.npy", array)
    expected[f"{name}.npy"] = {"error": refused} if refused else {"is": contents(tensor)}


def other_order(name):
    """The same file as a machine of the other byte order writes it."""
    source, target = io.BytesIO((FOLDER / f"{name}.pt").read_bytes()), io.BytesIO()
    with zipfile.ZipFile(source) as have, zipfile.ZipFile(target, "w") as make:
        for entry in have.infolist():
            data = have.read(entry)
            if entry.filename.endswith("/byteorder"):
                data = b"big"
            elif "/data/" in entry.filename:
                data = numpy.frombuffer(data, dtype="<f4").astype(">f4").tobytes()
            make.writestr(zipfile.ZipInfo(entry.filename), data)
    (FOLDER / f"{name}_big_endian.pt").write_bytes(target.getvalue())
    expected[f"{name}_big_endian.pt"] = expected[f"{name}.pt"]


def deflated(name):
    """The same file, as somebody packed it anew."""
    target = FOLDER / f"{name}_deflated.pt"
    with zipfile.ZipFile(FOLDER / f"{name}.pt") as have, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as make:
        for entry in have.infolist():
            make.writestr(zipfile.ZipInfo(entry.filename), have.read(entry), zipfile.ZIP_DEFLATED)
    expected[target.name] = expected[f"{name}.pt"]


class Elsewhere:
    def __reduce__(self):
        import os
        return os.system, ("true",)


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(5)
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    for dtype, name in NAMES.items():
        pt(f"plain_{name}", (base[:2, :3] % 2).to(dtype) if dtype == torch.bool else base[:2, :3].to(dtype).clone())
    pt("scalar", torch.tensor(7.5))
    pt("empty", torch.zeros(0, 3))
    pt("transposed", base.t())
    pt("offset", base[1:3, 2:5])
    pt("stepped", base[::2, ::3])
    pt("shown_twice", torch.tensor([1.0]).expand(100_000), refused=".contiguous()")
    pt("parameter", torch.nn.Parameter(base[:2, :2].clone()))
    pt("requires_grad", base.clone().requires_grad_())
    pt("dict", {"a": base, "b": base[1], 3: torch.tensor([True, False])})
    pt("ordered", OrderedDict(a=base))
    pt("state_dict", torch.nn.Linear(3, 2).state_dict())
    pt("list", [base, base[0]])
    pt("tuple", (base, base[0]))
    for protocol in range(2, 6):
        pt(f"protocol_{protocol}", base.t(), pickle_protocol=protocol)
        pt(f"legacy_protocol_{protocol}", base.t(), pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    pt("legacy_dict", {"a": base, "b": base[1:]}, _use_new_zipfile_serialization=False)
    pt("legacy_bf16", base.to(torch.bfloat16), _use_new_zipfile_serialization=False)
    other_order("offset")
    deflated("transposed")
    pt("f64", base.double(), refused="f64")
    pt("legacy_f64", base.double(), refused="f64", _use_new_zipfile_serialization=False)
    pt("i16", base.short(), refused="ShortStorage")
    pt("complex", torch.complex(base, base), refused="ComplexFloatStorage")
    pt("float8", base.to(torch.float8_e5m2), refused="float8")
    pt("negated", torch.complex(base, base).conj().imag, refused="metadata")
    pt("sparse", base.to_sparse(), refused="_rebuild_sparse")
    pt("number", 5, refused="an int")
    pt("checkpoint", {"model": {"a": base}, "epoch": 3}, refused="'model' is a dict")
    pt("module", torch.nn.Linear(2, 2), refused="torch.nn")
    pt("system", {"a": Elsewhere()}, refused="system")
    pt("legacy_system", Elsewhere(), refused="system", _use_new_zipfile_serialization=False)
    (FOLDER / "pickled.pt").write_bytes(pickle.dumps({"a": 1}))
    expected["pickled.pt"] = {"error": "not one that torch.save wrote"}

    for kind, tensor in [("<f4", base), (">f4", base), ("<f2", base.half()), ("<i8", base.long()), (">i4", base.int()),
                         ("|u1", base.byte()), ("|b1", base % 2 == 1)]:
        order = {"<": "little", ">": "big", "|": "bytes"}[kind[0]]
        npy(f"{order}_{kind[1:]}", tensor.numpy().astype(kind), tensor)
    npy("fortran", numpy.asfortranarray(base.numpy()), base)
    npy("scalar", numpy.array(3, dtype="<i4"), torch.tensor(3, dtype=torch.int32))
    npy("f64", base.double().numpy(), refused="f64")
    npy("text", numpy.array(["a", "b"]), refused="<U1")
    numpy.save(FOLDER / "object.npy", numpy.array([{}, None], dtype=object), allow_pickle=True)
    expected["object.npy"] = {"error": "|O"}
    numpy.lib.format.write_array(open(FOLDER / "version_3.npy", "wb"), base.numpy(), version=(3, 0))
    expected["version_3.npy"] = {"is": contents(base)}

    mixed = {"a": base, "b": base.bfloat16()[1].clone(), "c": torch.tensor([True, False, True])}
    save_file(mixed, FOLDER / "mixed.safetensors", metadata={"format": "pt"})
    expected["mixed.safetensors"] = {"is": contents(mixed)}
    save_file({"x": base.double()}, FOLDER / "f64.safetensors")
    expected["f64.safetensors"] = {"error": "F64"}

    text = json.dumps({"torch": torch.__version__, "numpy": numpy.__version__, "files": expected}, indent=1, sort_keys=True)
    (FOLDER / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
