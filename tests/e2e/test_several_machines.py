"""Three servers with one folder of clips: shares of a sweep, a server that is killed, one that comes late, a full disk.

COMFYUI_DISTRIBUTED_DIR  a checkout of ComfyUI-Distributed, for its load-balanced queue
"""

import json
import os
import re
import shutil
import signal
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from safetensors.torch import load_file

from difflora.clips.video import write_video
from tests.comfy_server import HELPER_NODES, NodeFailed
from tests.e2e.test_sweep import grid, lines, message, node, painted, times
from tests.e2e.test_sweep_faults import labels, measured

FOLDER_FILE = "user/__differential_lora/clips_folder.txt"
EIGHT = [-4, -3, -2, -1, 0, 1, 2, 3]


def distributed_folder():
    folder = os.environ.get("COMFYUI_DISTRIBUTED_DIR")
    return Path(folder).resolve() if folder else None


@pytest.fixture(scope="module")
def share(tmp_path_factory):
    return tmp_path_factory.mktemp("share")


@pytest.fixture(scope="module")
def trio(start_comfy, share, tmp_path_factory):
    servers = []
    for number in range(3):
        packs = {}
        if source := distributed_folder():  # a copy for each: it keeps its settings beside its code
            packs["ComfyUI-Distributed"] = tmp_path_factory.mktemp("packs") / "ComfyUI-Distributed"
            shutil.copytree(source, packs["ComfyUI-Distributed"], ignore=shutil.ignore_patterns(".git"))
        server = start_comfy(more_packs=packs)
        servers.append(server)
        place = server.base / FOLDER_FILE
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"# the clips of server {number}\n{share}\n")
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def nothing_breaks(trio):
    yield
    for server in trio:
        (server.base / "output/break.txt").unlink(missing_ok=True)


def part(text, frames, strengths=EIGHT, **more):
    prompt = painted(", ".join(map(str, strengths)), frames, arrange="row", **more)
    prompt["sweep"]["inputs"]["share"] = text
    return prompt


def news(server, result):
    """What the page hears when it asks: a message, {} for nothing new."""
    waiting = message(result).get("waiting")
    return server.get(f"/differential_lora/sweep?{urllib.parse.urlencode({'waiting': waiting})}") if waiting else None


def texts(told):
    return [line["text"] for line in told["report"]["lines"]]


def right_cells(server, strengths):
    """Every cell of the last grid holds its own strength's pictures."""
    whole = load_file(server.base / "output/grid.safetensors")["value"]
    assert whole.shape[2] == 4 + 68 * len(strengths)
    for place, strength in enumerate(strengths):
        right = whole[0, -40, 4 + 68 * place + 48] * 255
        assert abs(right - (128 + 20 * strength)).max() <= 3, strength


def clips_in(share):
    return {path.name for path in share.iterdir() if not path.name.startswith(".")}


def all_there(server, prompt, strengths=EIGHT):
    prompt["sweep"]["inputs"]["share"] = "all"
    result = server.run(prompt)
    assert lines(result) == [f"{len(strengths)} of {len(strengths)} strengths are there"]
    right_cells(server, strengths)
    return times(result, "clip")


class TestShares:
    def test_three_servers_render_a_share_each_and_everyone_sees_all(self, trio, share):
        before = clips_in(share)
        ids = [server.queue(measured(part(f"{number} of 3", 4))) for number, server in enumerate(trio, 1)]
        results = [server.wait(prompt_id) for server, prompt_id in zip(trio, ids, strict=True)]
        assert [times(result, "clip") for result in results] == [3, 3, 2]
        assert len(clips_in(share) - before) == 8
        for number, (server, result) in enumerate(zip(trio, results, strict=True), 1):
            if told := news(server, result):
                assert texts(told)[0] == "8 of 8 strengths are there" and "waiting" not in told
                assert [clip["label"] for clip in told["player"]["clips"]][:2] == ["−4", "−3"]
                assert all(server.view(**video)[4:8] == b"ftyp" for video in told["player"]["videos"])
                history = server.get(f"/history/{ids[number - 1]}")[ids[number - 1]]["outputs"]["grid"]["difflora"][0]
                assert texts(history) == texts(told)
            assert texts(message(result))[1].startswith(f"this server renders share {number} of 3: ")
        for server in trio:
            assert all_there(server, measured(part("all", 4))) == 0

    def test_what_measures_the_sweep_runs_when_all_is_there_without_any_change(self, trio):
        first, second, _ = trio
        prompt = measured(part("1 of 2", 5))
        result = first.run(prompt)
        assert "response" not in result["outputs"] and labels(result) == ["−4", "−2", "0", "+2"]
        assert "from other shares: −3, −1, +1, +3. They appear here as they arrive" in lines(result)
        assert "the sweep output waits for them: run this again when all are there" in lines(result)
        assert news(first, result) == {}
        second.run(part("2 of 2", 5))
        told = news(first, result)
        assert texts(told)[0] == "8 of 8 strengths are there" and len(told["player"]["clips"]) == 8
        assert texts(told)[-1] == "all shares are there: run this again for the sweep output"
        again = first.run(prompt)
        assert times(again, "clip") == 0 and "response" in again["outputs"]
        right_cells(first, EIGHT)

    def test_shares_queued_on_one_server_do_not_wait_for_each_other(self, trio):
        ids = [trio[0].queue(part(f"{number} of 3", 6)) for number in (1, 2, 3)]
        results = [trio[0].wait(prompt_id) for prompt_id in ids]
        assert [len(labels(result)) for result in results] == [3, 6, 8]
        right_cells(trio[0], EIGHT)

    def test_more_shares_than_strengths_leave_one_with_nothing_to_do(self, trio):
        result = trio[0].run(part("3 of 3", 6, [5, 6]))
        assert lines(result)[:2] == ["0 of 2 strengths are there", "this server renders share 3 of 3: –"]
        assert times(result, "clip") == 0 and "keep" not in result["outputs"]

    @pytest.mark.parametrize("text", ["0 of 3", "4 of 3", "1 of 65", "some", "", "1 of 3 of 3"])
    def test_what_is_no_share_is_said(self, trio, text):
        with pytest.raises(NodeFailed, match="share is .*Write all, or"):
            trio[0].run(part(text, 6))

    def test_a_node_that_differs_each_time_cannot_be_shared(self, trio):
        prompt = part("1 of 2", 6)
        prompt["mood"] = node("TestAlwaysOther", images=["break", 0])
        prompt["grid"]["inputs"]["images"] = ["mood", 0]
        with pytest.raises(NodeFailed, match="the output is different each time: TestAlwaysOther"):
            trio[0].run(prompt)

    def test_a_run_that_the_server_does_not_know_is_not_found(self, trio):
        for waiting in ("", "x 1", "../x"):
            code, _ = trio[0]._request(f"/differential_lora/sweep?{urllib.parse.urlencode({'waiting': waiting})}")
            assert code == 404


class TestTrouble:
    def test_the_same_sweep_queued_on_all_servers_at_once_ends_right_on_each(self, trio, share):
        before = clips_in(share)
        ids = [server.queue(part("all", 7)) for server in trio]
        for server, prompt_id in zip(trio, ids, strict=True):
            assert lines(server.wait(prompt_id)) == ["8 of 8 strengths are there"]
            right_cells(server, EIGHT)
        assert len(clips_in(share) - before) == 8

    @pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
    def test_a_disk_that_is_full_for_one_server_stops_only_that_one(self, trio, share):
        """The kernel refuses it files of more than 1 MB. Its cells are larger."""
        import resource

        full = trio[1]
        resource.prlimit(full.pid, resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
        before = clips_in(share)
        try:
            ids = [server.queue(part(f"{number} of 3", 90)) for number, server in enumerate(trio, 1)]
            with pytest.raises(NodeFailed, match="larger than allowed here. Make room"):
                full.wait(ids[1])
            assert [times(server.wait(at), "clip") for server, at in ((trio[0], ids[0]), (trio[2], ids[2]))] == [3, 2]
            assert len(clips_in(share) - before) == 5
            history = full.get(f"/history/{ids[1]}")[ids[1]]["outputs"]["grid"]["difflora"][0]
            assert "missing: −3, 0, +3. The next run renders only these" in texts(history)
            assert not [path for path in share.iterdir() if path.name.startswith(".making-")]
        finally:
            resource.prlimit(full.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert times(full.run(part("2 of 3", 90)), "clip") == 3
        assert all_there(trio[0], part("all", 90)) == 0

    def test_a_share_that_is_not_connected_is_said_before_anything_is_rendered(self, trio, share):
        share.rename(share.with_name("gone"))
        try:
            with pytest.raises(NodeFailed, match="clips_folder.txt.* is not there. Connect") as failure:
                trio[0].run(part("1 of 2", 8))
            assert str(share) not in str(failure.value) and not share.exists()
        finally:
            share.with_name("gone").rename(share)

    @pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
    def test_a_killed_server_costs_what_it_had_not_finished_and_may_come_back_late(self, trio, share):
        first, second, killed = trio
        (killed.base / "output/break.txt").write_text("wait 1")
        on_killed = killed.queue(part("3 of 3", 9))
        killed.wait_for_node(on_killed, "grid.0.0.1.break")
        os.killpg(killed.pid, signal.SIGKILL)
        killed.stop()
        results = [server.run(part(f"{number} of 3", 9)) for number, server in ((1, first), (2, second))]
        assert [times(result, "clip") for result in results] == [3, 3]
        [told] = [line for line in lines(results[1]) if line.startswith("from other shares")]
        assert told == "from other shares: +1. They appear here as they arrive"
        assert news(second, results[1]) == {} and len(labels(results[1])) == 7

        # It comes back, and its packs have been put into folders of other names meanwhile.
        (killed.base / "output/break.txt").unlink()
        (killed.base / "custom_nodes/helper_nodes").unlink()
        del killed.packs["helper_nodes"]
        killed.packs["helper_nodes_of_mine"] = HELPER_NODES
        killed.start()
        assert times(killed.run(part("3 of 3", 9)), "clip") == 1
        assert texts(news(second, results[1]))[0] == "8 of 8 strengths are there"
        for server in trio:
            assert all_there(server, part("all", 9)) == 0


class TestWhatMakesAClipTheSame:
    def test_a_video_of_another_time_in_another_folder_is_the_same_and_another_one_is_not(self, trio):
        """ComfyUI's Load Video says the time of its file."""
        import numpy as np

        frames = [np.full((64, 64, 3), 40 + 20 * number, np.uint8) for number in range(4)]
        prompt = {
            "video": node("LoadVideo", file="told.mp4"),
            "parts": node("GetVideoComponents", video=["video", 0]),
            "clip": node("TestBreak", images=["parts", 0], number=["sweep", 0]),
            "sweep": painted("0, 1", 3)["sweep"],
            "grid": grid("clip"),
        }
        rendered = []
        for age, server in enumerate(trio):
            video = server.base / "input" / ("told.mp4" if age < 2 else "deep/told.mp4")
            video.parent.mkdir(exist_ok=True)
            write_video(video, frames, 16)
            os.utime(video, (1_700_000_000 + age,) * 2)
            if age == 2:
                prompt["video"]["inputs"]["file"] = "deep/told.mp4"
            rendered.append(times(server.run(prompt), "clip"))
        assert rendered == [2, 0, 0]
        write_video(video, [frame + 9 for frame in frames], 16)
        os.utime(video, (1_700_000_009,) * 2)
        trio[2].forget()
        assert times(trio[2].run(prompt), "clip") == 2

    @pytest.mark.slow
    def test_another_kind_of_machine_renders_again_unless_any_machine_is_good_enough(self, trio, share, start_comfy):
        other = start_comfy("--bf16-unet")
        place = other.base / FOLDER_FILE
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(str(share))
        prompt = part("all", 10)
        assert times(trio[0].run(prompt), "clip") == 8 and times(other.run(prompt), "clip") == 8
        prompt["grid"]["inputs"]["any_machine"] = True
        assert times(trio[0].run(prompt), "clip") == 8
        assert times(other.run(prompt), "clip") == 0
        right_cells(other, EIGHT)
        other.stop()


def test_no_request_writes_where_clips_go(trio):
    server = trio[0]
    place = server.base / FOLDER_FILE
    before = place.read_bytes()

    def post(path, data, **headers):
        request = urllib.request.Request(server.url + path, data, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    for name in ("clips_folder.txt", "../__differential_lora/clips_folder.txt", "__differential_lora/clips_folder.txt"):
        for user in ("default", "__differential_lora", "../__differential_lora"):
            post(f"/userdata/{urllib.parse.quote(name, safe='')}?overwrite=true", b"/evil", **{"Comfy-User": user})
    for folder in ("../user/__differential_lora", "..\\user\\__differential_lora"):
        fields = {"subfolder": folder, "type": "input", "overwrite": "true"}
        body = "".join(f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items())
        body += (
            '--x\r\nContent-Disposition: form-data; name="image"; filename="clips_folder.txt"\r\n\r\n/evil\r\n--x--\r\n'
        )
        post("/upload/image", body.encode(), **{"Content-Type": "multipart/form-data; boundary=x"})
    assert place.read_bytes() == before
    assert [path for path in place.parent.iterdir() if path.name.startswith("clips")] == [place]


@pytest.fixture
def distributed(trio):
    folder = distributed_folder()
    if folder is None:
        pytest.skip("COMFYUI_DISTRIBUTED_DIR does not say where a ComfyUI-Distributed is")
    return re.search(r'^version = "(.+)"', (folder / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[1]


def test_a_load_balanced_queue_hands_out_the_shares(trio, distributed, share, record_property):
    """ComfyUI-Distributed's collector stands behind the grid; each share goes to the server that has least to do."""
    record_property("ComfyUI-Distributed", distributed)
    print("ComfyUI-Distributed", distributed)
    master, *workers = trio
    known = [
        {"id": f"w{number}", "name": f"worker {number}", "host": "127.0.0.1", "port": server.port, "type": "remote",
         "enabled": True}
        for number, server in enumerate(workers)
    ]  # fmt: skip
    code, answer = master._request("/distributed/config", {"workers": known, "websocket_orchestration": False})
    assert code == 200, answer
    before = clips_in(share)
    for number in (1, 2, 3):
        prompt = part(f"{number} of 3", 11)
        prompt["collect"] = node("DistributedCollector", images=["grid", 0], load_balance=True)
        prompt["keep"]["inputs"]["value"] = ["collect", 0]
        asked = {"prompt": prompt, "client_id": "a test", "enabled_worker_ids": [each["id"] for each in known]}
        code, answer = master._request("/distributed/queue", asked)
        assert code == 200, answer
    end = time.monotonic() + 120
    while any(server.running() for server in trio) and time.monotonic() < end:
        time.sleep(0.2)
    assert not any(server.running() for server in trio)
    assert len(clips_in(share) - before) == 8
    used = {server.port for server in trio for entry in server.get("/history").values()
            if "11" in json.dumps(entry["prompt"][2].get("clip", {}).get("inputs", {}).get("frames"))}  # fmt: skip
    assert len(used) >= 2  # the master waits for the pictures of a worker's grid
    assert all_there(master, part("all", 11)) == 0


def test_a_collector_inside_the_sweep_is_refused(trio, distributed):
    prompt = part("all", 12)
    prompt["collect"] = node("DistributedCollector", images=["break", 0], load_balance=False)
    prompt["grid"]["inputs"]["images"] = ["collect", 0]
    with pytest.raises(NodeFailed, match="DistributedCollector lies between the sweep and the grid"):
        trio[0].run(prompt)
