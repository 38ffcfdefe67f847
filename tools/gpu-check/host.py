"""The machine: its GPU, driver, versions, and where libraries lie."""

import glob
import importlib.metadata
import os
import platform
import shutil
import site
import sysconfig
import tempfile

import proc

QUERY = "name,uuid,driver_version,memory.total,compute_cap,pcie.link.gen.current,pcie.link.width.current"


class NoGpu(Exception):
    """There is none that can be used: why."""


def gpu(env):
    """What the driver says of the GPU that programs see first."""
    program = shutil.which("nvidia-smi", path=env.get("PATH"))
    if program is None:
        raise NoGpu("nvidia-smi was not found: this machine has no NVIDIA driver")
    query = [program, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    # It shows all GPUs, whichever CUDA is told to show.
    visible = env.get("CUDA_VISIBLE_DEVICES")
    asked = proc.run(query + (["--id", visible] if visible else []), 20, env)
    rows = [line for line in asked.out.splitlines() if line.count(",") == QUERY.count(",")]
    if asked.code != 0 or not rows:
        raise NoGpu(f"nvidia-smi: {asked.why()}")
    named = dict(zip(QUERY.split(","), (cell.strip() for cell in rows[0].split(","))))
    plain = proc.run([program], 20, env)
    cuda = [word for line in plain.out.splitlines() if "CUDA Version" in line for word in line.split("CUDA Version:")[1:]]
    named["cuda"] = cuda[0].split()[0] if cuda else "unknown"
    named["gpus"] = len(rows)
    return named


def versions(env):
    """Lines: what of the machine can change a number."""
    found = [f"Linux {platform.release()}, {os.cpu_count()} processors, {platform.libc_ver()[1]} glibc", f"Python {platform.python_version()}"]
    for package in ("torch", "transformers", "triton"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {package}")
    lies = [folder for folder in env["LD_LIBRARY_PATH"].split(os.pathsep) if glob.glob(f"{folder}/libcublasLt.so*")]
    whose = "none but what the system's loader finds" if not lies else "that of Python's packages" if "-packages" in lies[0] else "the toolkit's"
    found.append(f"cuBLASLt: {whose}")
    tool = sanitizer(env)
    if tool is None:
        found.append("no compute-sanitizer")
    else:
        said = proc.run([tool, "--version"], 20, env).out.splitlines()
        version = [line for line in said if line.startswith("Version")]
        found.append(f"compute-sanitizer {version[0].split()[1] if version else '(version unknown)'}")
    return found


def sanitizer(env):
    """compute-sanitizer, where it is installed."""
    places = [env.get("PATH", ""), *sorted(glob.glob("/usr/local/cuda*/bin"), reverse=True), *sorted(glob.glob("/opt/cuda*/bin"))]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def environment():
    """The variables of programs under test: cuBLASLt may lie where only PyTorch looks for it."""
    env = dict(os.environ)
    folders = {sysconfig.get_paths()["purelib"], *site.getsitepackages()}
    patterns = [f"{folder}/nvidia/*/lib/libcublasLt.so*" for folder in folders] + ["/usr/local/cuda*/lib64/libcublasLt.so*"]
    found = sorted({os.path.dirname(path) for pattern in patterns for path in glob.glob(pattern)})
    told = [folder for folder in env.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    # What the user named comes first.
    env["LD_LIBRARY_PATH"] = os.pathsep.join(told + found)
    env["NO_COLOR"] = "1"
    # What the driver compiles is kept for later programs, all of it.
    env.setdefault("CUDA_CACHE_MAXSIZE", str(4 << 30))
    if not os.access(os.path.expanduser("~"), os.W_OK):
        env.setdefault("CUDA_CACHE_PATH", os.path.join(tempfile.gettempdir(), "gpu-check-compiled"))
    return env
