"""The machine: its GPU, driver, versions, and where libraries lie."""

import glob
import importlib.metadata
import os
import pathlib
import platform
import resource
import shutil
import site
import sysconfig
import tempfile

import journal
import proc

QUERY = "name,uuid,driver_version,memory.total,compute_cap,pcie.link.gen.current,pcie.link.width.current"


class NoGpu(Exception):
    """There is none that can be used: why."""


def gpu(env):
    """What the driver says of the GPU that programs see first."""
    program = tool("nvidia-smi", env)
    if program is None:
        raise NoGpu("nvidia-smi was not found: this machine has no NVIDIA driver")
    query = [program, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    # It shows all GPUs, whichever CUDA is told to show.
    visible = env.get("CUDA_VISIBLE_DEVICES")
    # The first call after a while starts the driver, which takes its time.
    asked = proc.run(query + (["--id", visible] if visible else []), 60, env)
    if visible and asked.code != 0:
        # CUDA takes names there that it does not know.
        asked = proc.run(query, 60, env)
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
    for name, what in (("compute-sanitizer", "Version"), ("ncu", "Version")):
        path = tool(name, env)
        said = proc.run([path, "--version"], 20, env).out.splitlines() if path else []
        version = [line.split()[1] for line in said if line.startswith(what) and len(line.split()) > 1]
        found.append(f"{name} {version[0] if version else '(version unknown)'}" if path else f"no {name}")
    return found


def tool(name, env):
    """Where a program of the driver or the toolkit is installed, whether or not the user's path has it."""
    shown = [folder for folder in env.get("PATH", "").split(os.pathsep) if folder]
    toolkits = [*sorted(glob.glob("/usr/local/cuda*/bin"), reverse=True), *sorted(glob.glob("/opt/cuda*/bin"))]
    apart = sorted(glob.glob("/opt/nvidia/nsight-compute/*"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([*shown, "/usr/bin", "/usr/local/nvidia/bin", *toolkits, *apart]))


# Variables that may be kept with a page; others may hold what is nobody's business.
TOLD = ("CUDA", "NVIDIA", "LD_", "TORCH", "TRITON", "GENIE", "PYTHON", "PATH", "HOME", "TMPDIR", "OMP_")


def facts(env, genie):
    """Leaves in the journal what could explain a number or a failure, and whatever fails in that itself."""
    journal.add(
        "this machine",
        kernel=" ".join((platform.system(), platform.release(), platform.machine())),
        environment="\n".join(f"{name}={value}" for name, value in sorted(env.items()) if name.startswith(TOLD)),
        limits="\n".join(f"{name} {resource.getrlimit(getattr(resource, name))}" for name in ("RLIMIT_MEMLOCK", "RLIMIT_NOFILE", "RLIMIT_AS")),
        memory="\n".join(pathlib.Path("/proc/meminfo").read_text().splitlines()[:5]),
        room="\n".join(f"{place}: {shutil.disk_usage(place)}" for place in places()),
    )
    commands = [
        [tool("nvidia-smi", env), "-q"],
        [tool("nvidia-smi", env), "topo", "-m"],
        [tool("nvcc", env), "--version"],
        [shutil.which("lscpu")],
        [shutil.which("ldconfig", path="/sbin:/usr/sbin:" + env.get("PATH", "")), "-p"],
        [genie, "--version"],
        [genie, "doctor"],
    ]
    for command in commands:
        if command[0]:
            proc.run(command, 10, env)


def places():
    """Folders for what is large: in memory first."""
    return [place for place in dict.fromkeys(["/dev/shm", tempfile.gettempdir()]) if os.path.isdir(place) and os.access(place, os.W_OK)]


def environment():
    """The variables of programs under test: cuBLASLt may lie where only PyTorch looks for it."""
    env = dict(os.environ)
    folders = {sysconfig.get_paths()["purelib"], *site.getsitepackages()}
    patterns = [f"{folder}/nvidia/*/lib/libcublasLt.so*" for folder in folders] + ["/usr/local/cuda*/lib64/libcublasLt.so*"]
    found = sorted({os.path.dirname(path) for pattern in patterns for path in glob.glob(pattern)})
    told = [folder for folder in env.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    # Where containers have the driver, if nobody told the loader.
    driver = [folder for folder in ("/usr/local/nvidia/lib64", "/usr/local/nvidia/lib") if glob.glob(f"{folder}/libcuda.so.1")]
    # What the user named comes first.
    env["LD_LIBRARY_PATH"] = os.pathsep.join(dict.fromkeys(told + found + driver))
    env["NO_COLOR"] = "1"
    # One that cannot be written is not for the programs either.
    env["TMPDIR"] = tempfile.gettempdir()
    # What the driver compiles is kept for later programs, all of it.
    env.setdefault("CUDA_CACHE_MAXSIZE", str(4 << 30))
    if not os.access(env.get("HOME", "/nowhere"), os.W_OK):
        env.setdefault("CUDA_CACHE_PATH", os.path.join(tempfile.gettempdir(), "gpu-check-compiled"))
    return env


def peers_environment():
    """The variables of PyTorch: those of its user, without a network to wait for, and with a place for what it compiles."""
    env = dict(os.environ)
    env["HF_HUB_OFFLINE"] = "1"
    env["TMPDIR"] = tempfile.gettempdir()
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        env.setdefault(name, os.path.join(tempfile.gettempdir(), "gpu-check-torch", name.lower()))
    return env
