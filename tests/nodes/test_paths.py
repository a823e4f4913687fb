"""Names from outside: what may be read or written through them. Runs without ComfyUI."""

import os
import sys
import types
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pack_modules import pack_module

paths = pack_module("nodes.common.paths")
errors = pack_module("difflora.errors")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("outside")
    (tmp_path / "output-2").mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("slider.safetensors", "slider.safetensors"),
        ("wan/slider.safetensors", "wan/slider.safetensors"),
        ("wan\\slider.safetensors", "wan/slider.safetensors"),
        ("./wan//slider/", "wan/slider"),
        ("名前 with spaces/é.png", "名前 with spaces/é.png"),
        ("a..b/c", "a..b/c"),
        ("~/x", "~/x"),
        ("console/comics/nully.png", "console/comics/nully.png"),
        ("%USERPROFILE%/$HOME", "%USERPROFILE%/$HOME"),
        ("x" * 255, "x" * 255),
    ],
)
def test_ordinary_names_stay_what_they_are(output, name, expected):
    assert paths.inside(output, name) == output.resolve() / expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        (".", "empty"),
        ("./", "empty"),
        ("..", "leave the folder"),
        ("../secret.txt", "leave the folder"),
        ("..\\secret.txt", "leave the folder"),
        ("a/../../secret.txt", "leave the folder"),
        ("a/b/..", "leave the folder"),
        ("../output-2/x", "leave the folder"),
        (".. /secret.txt", "dot or a space"),
        ("... /x", "dot or a space"),
        ("a./x", "dot or a space"),
        ("name ", "dot or a space"),
        ("/etc/passwd", "absolute or network"),
        ("\\Windows\\win.ini", "absolute or network"),
        ("//server/share/x", "absolute or network"),
        ("\\\\server\\share\\x", "absolute or network"),
        ("\\\\?\\C:\\x", "absolute or network"),
        ("\\\\.\\PhysicalDrive0", "absolute or network"),
        ("C:\\x", "drive letter"),
        ("c:x", "drive letter"),
        ("C:/x", "drive letter"),
        ("a/C:/x", "on Windows"),
        ("file.txt:stream", "on Windows"),
        ("what?.png", "on Windows"),
        ("a\0b", "control character"),
        ("a\nb", "control character"),
        ("a\x7fb", "control character"),
        ("\udcff", "Unicode"),
        ("CON", "device"),
        ("nul", "device"),
        ("a/NUL.safetensors", "device"),
        ("Aux.tar.gz", "device"),
        ("com1.png", "device"),
        ("LPT¹", "device"),
        ("CONIN$", "device"),
        ("prn .txt", "device"),
        ("x" * 256, "256 bytes"),
        ("é" * 128, "256 bytes"),
        ("a/" * 600, "1200 characters"),
    ],
)
def test_names_that_leave_the_folder_or_fail_on_windows_are_refused(output, name, reason):
    with pytest.raises(errors.FileError, match=reason):
        paths.inside(output, name)


def test_writing_raises_the_error_for_writing(output):
    with pytest.raises(errors.OutputError, match="leave the folder"):
        paths.inside(output, "../x", errors.OutputError)


@pytest.mark.skipif(os.name == "nt", reason="making links needs a privilege on Windows")
def test_an_error_does_not_tell_where_the_server_keeps_its_files(output):
    (output / "loop").symlink_to(output / "loop")
    for name in ("../x", "loop/x"):
        with pytest.raises(errors.FileError) as caught:
            paths.inside(output, name)
        assert str(output.parent) not in str(caught.value)


def test_a_report_names_a_file_by_its_place_below_the_folder(output):
    assert paths.below(output, paths.inside(output, "a/b.png")) == f"{output.name}/a/b.png"


@pytest.mark.skipif(os.name == "nt", reason="making links needs a privilege on Windows")
class TestLinks:
    def test_a_link_out_of_the_folder_is_refused(self, output):
        (output / "out").symlink_to(output.parent)
        (output / "file").symlink_to(output.parent / "secret.txt")
        (output / "dangling").symlink_to(output.parent / "not-yet")
        for name in ("out", "out/secret.txt", "out/new.txt", "file", "dangling"):
            with pytest.raises(errors.FileError, match="through a link"):
                paths.inside(output, name)

    def test_a_link_to_the_folder_itself_is_refused(self, output):
        (output / "self").symlink_to(output)
        with pytest.raises(errors.FileError, match="through a link"):
            paths.inside(output, "self")

    def test_a_link_within_the_folder_is_followed(self, output):
        (output / "real").mkdir()
        (output / "alias").symlink_to(output / "real")
        assert paths.inside(output, "alias/x.png") == (output / "real" / "x.png").resolve()

    def test_a_folder_that_is_a_link_itself_is_trusted(self, output):
        linked = output.parent / "linked"
        linked.symlink_to(output)
        assert paths.inside(linked, "x.png") == output.resolve() / "x.png"


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["..", ".", "", "a", "C:", "/", "\\", "~", "NUL", " ", "é", "\0", "\ud800"]), max_size=6)
)
def test_whatever_is_accepted_lies_inside(output, pieces):
    for joined in ("/".join(pieces), "\\".join(pieces), "".join(pieces)):
        try:
            path = paths.inside(output, joined)
        except errors.FileError:
            continue
        assert path != output.resolve()
        assert path.is_relative_to(output.resolve())


def test_a_network_path_is_no_file_of_a_list_where_comfyui_raises_for_one(monkeypatch):
    """os.path.relpath has no path from one drive of Windows to another."""

    def get_full_path(kind, name):
        raise ValueError("path is on mount '\\\\\\\\server\\\\share', start on mount 'C:'")

    fake = types.ModuleType("folder_paths")
    fake.get_full_path = get_full_path
    monkeypatch.setitem(sys.modules, "folder_paths", fake)
    monkeypatch.delitem(sys.modules, "pack.nodes.common.inputs", raising=False)
    inputs = pack_module("nodes.common.inputs")
    assert inputs.found("loras", r"\\server\share\a.safetensors") is None
    with pytest.raises(errors.DiffLoraError, match="not in the loras folder"):
        inputs.listed_file("loras", r"\\server\share\a.safetensors")
    monkeypatch.delitem(sys.modules, "pack.nodes.common.inputs")


@pytest.mark.parametrize(
    "name",
    [
        ".hidden",
        "...hidden",
        "a/.hidden",
        ".png",
        "a/ ",
        " ",
        "lora\u202egnp.exe",
        "a\u2066b",
        "a\u200bb",
        "\ufeffa",
        "a\u2028b",
    ],
)
def test_names_that_hide_or_deceive_are_refused(name: str, output: Path) -> None:
    with pytest.raises(errors.FileError):
        paths.inside(output, name)


@pytest.mark.parametrize("name", ["\U0001f469\u200d\U0001f4bb.png", "می\u200cخواهم", "a.b", "_x", "-x"])
def test_names_of_every_language_are_taken(name: str, output: Path) -> None:
    assert paths.inside(output, name) == output / name
